"""Counting what devices say of a new model while the round's job waits for it (`fedgrass.cloud.aggregator.device_evaluation`).

Only those that the round asked at its opening are counted, so that "everyone has answered" means them.
"""

from __future__ import annotations

from typing import Literal

from fedgrass.cloud.rounds.changes import change, transact
from fedgrass.cloud.rounds.evaluation import check_figures
from fedgrass.cloud.rounds.notices import Delivery
from fedgrass.cloud.rounds.services import Services
from fedgrass.errors import MessageError, RecordError
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.participations import load_participation
from fedgrass.protocol.records import Participation, RoundRecord, participation_key, round_key
from fedgrass.protocol.roster import presence

_BASE = "base_"
_PART, _ROUND = range(2)  # the transaction's actions
_ATTEMPTS = 8


def answers_judging(notice: UpdateNotice, record: RoundRecord) -> bool:
    """Say whether a notice answers the job's question rather than the round's.

    The announcement that it names says so; a device that names none (older software) means the round's, unless it evaluated.

    Raises
    ------
    MessageError
        If it names an announcement that was none of this round's.
    """
    if notice.opened_at is None:
        return record.judging and notice.status == "evaluated" and record.settings.task == "fit"
    if notice.opened_at == record.opened_at:
        return False
    if notice.opened_at < record.opened_at or not record.judging:
        raise MessageError(
            f"{notice.thing!r} answers an announcement of {notice.opened_at:%Y-%m-%dT%H:%M:%S%z}; round {record.round} was "
            f"opened at {record.opened_at:%Y-%m-%dT%H:%M:%S%z}"
        )
    return True


def check_judgement(notice: UpdateNotice) -> None:
    """Raise `MessageError` if an answer to the job's question is none, or its figures cannot be."""
    if notice.status == "uploaded":
        raise MessageError(f"{notice.thing!r} has uploaded; it was asked to evaluate")
    if notice.status != "evaluated":
        return
    base = _of_base(notice)
    check_figures(notice)
    # The base's figures are bounded like the model's: both decide.
    check_figures(notice.model_copy(update={"metrics": base}))
    # The gate compares like with like; half a pair would be judged by loss against accuracy.
    if ("accuracy" in base) != ("accuracy" in notice.metrics):
        raise MessageError(f"{notice.thing!r}: has an accuracy of one of the two models only")


def record_judgement(
    services: Services, notice: UpdateNotice, delivery: Delivery, record: RoundRecord
) -> Literal["counted", "late", "duplicate", "ignored"]:
    """Count a device's figures of a candidate model, or that it has none, once; figures replace having none.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    notice
        The device's message.
    delivery
        When and how it came.
    record
        The round.

    Returns
    -------
    str
        ``counted``, ``duplicate``, ``late`` if the round does not aggregate any more, or ``ignored`` from a device
        that was not asked.
    """
    # Whoever was not asked cannot be waited for, and could tip the sums.
    if not presence(services.rounds, record, notice.thing).asked:
        return "ignored"
    table = services.rounds
    key = {"fleet": record.fleet, "key": participation_key(record.round, notice.thing)}
    # Optimistic: read, then write on condition that nothing changed; on a conflict read again.
    for _ in range(_ATTEMPTS):
        known = load_participation(table, record.fleet, record.round, notice.thing)
        before = _before(known)
        if before == "judged" or before == _status(notice):
            return "duplicate"
        seen = change(
            put={
                "round": record.round,
                "thing": notice.thing,
                "asked": True,
                "judged_at": delivery.received_at,
                "judged_metrics": notice.metrics if notice.status == "evaluated" else {},
                "judged_examples": notice.num_examples if notice.status == "evaluated" else 0,
                "judged_sums": notice.sums,
                "judged_base_sums": notice.base_sums,
            },
            condition="#judged_metrics = :none" if before else "attribute_not_exists(#judged_at)",
            values={":none": {}} if before else None,
        )
        count = change(
            # The device moves from one counter to the other in the same write, so the sum of both never exceeds those
            # asked.
            add={**_sums(notice, record.settings.checks.max_examples), **({before: -1} if before else {})},
            condition="#phase = :aggregating",
            values={":aggregating": "aggregating"},
        )
        round_item = {"fleet": record.fleet, "key": round_key(record.round)}
        refused = transact(
            table,
            [
                {"Update": {"TableName": table.name, "Key": key, **seen}},
                {"Update": {"TableName": table.name, "Key": round_item, **count}},
            ],
        )
        # Only a conflict over the device's own item is worth another try; the round's condition means it is too late.
        if refused != _PART:
            return "counted" if refused is None else "late"
    raise RecordError(f"round {record.round}: the record of {notice.thing!r} keeps changing; it will be tried again")


def _status(notice: UpdateNotice) -> str:
    return "judged" if notice.status == "evaluated" else "not_judged"


def _before(known: Participation | None) -> str | None:
    """Return the counter that a device is under."""
    if known is None or known.judged_at is None:
        return None
    return "judged" if known.judged_metrics else "not_judged"


def _of_base(notice: UpdateNotice) -> dict[str, float]:
    return {name.removeprefix(_BASE): value for name, value in notice.metrics.items() if name.startswith(_BASE)}


def _sums(notice: UpdateNotice, max_examples: int) -> dict[str, float]:
    if notice.status != "evaluated":
        return {"not_judged": 1}
    return {"judged": 1, "judged_examples": min(notice.num_examples, max_examples)}

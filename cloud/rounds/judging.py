"""Counting what devices say of a new model while the round's job waits for it (`cloud.aggregator.jury`)."""

from __future__ import annotations

from cloud.rounds.changes import change, transact
from cloud.rounds.evaluation import check_figures
from cloud.rounds.notices import Delivery
from cloud.rounds.services import Services
from fedgrass.errors import MessageError
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.records import RoundRecord, participation_key, round_key

_BASE = "base_"


def is_judgement(notice: UpdateNotice, record: RoundRecord) -> bool:
    """Say whether a notice answers the job's question rather than the round's."""
    return record.judging and record.phase == "aggregating" and notice.status != "uploaded"


def record_judgement(services: Services, notice: UpdateNotice, delivery: Delivery, record: RoundRecord) -> bool:
    """Count a device's figures, or that it has none; returns whether they were counted: each device is once.

    Raises
    ------
    MessageError
        If the figures cannot be.
    """
    put = {"round": record.round, "thing": notice.thing, "judged_at": delivery.received_at}
    key = {"fleet": record.fleet, "key": participation_key(record.round, notice.thing)}
    seen = change(put={**put, "judged_metrics": notice.metrics}, condition="attribute_not_exists(#judged_at)")
    count = change(
        add=_sums(notice, record.settings.checks.max_examples),
        condition="#phase = :aggregating",
        values={":aggregating": "aggregating"},
    )
    table = services.rounds
    round_item = {"fleet": record.fleet, "key": round_key(record.round)}
    refused = transact(
        table,
        [
            {"Update": {"TableName": table.name, "Key": key, **seen}},
            {"Update": {"TableName": table.name, "Key": round_item, **count}},
        ],
    )
    return refused is None


def _sums(notice: UpdateNotice, max_examples: int) -> dict[str, float]:
    if notice.status != "evaluated":
        return {"not_judged": 1}
    base = {name.removeprefix(_BASE): value for name, value in notice.metrics.items() if name.startswith(_BASE)}
    check_figures(notice)
    check_figures(notice.model_copy(update={"metrics": base}))
    if ("accuracy" in base) != ("accuracy" in notice.metrics):
        raise MessageError(f"{notice.thing!r}: has an accuracy of one of the two models only")
    examples = min(notice.num_examples, max_examples)
    added: dict[str, float] = {
        "judged": 1,
        "judged_examples": examples,
        "judged_loss": notice.metrics["loss"] * examples,
        "judged_base_loss": base["loss"] * examples,
    }
    if "accuracy" in base:
        added["judged_correct"] = notice.metrics["accuracy"] * examples
        added["judged_base_correct"] = base["accuracy"] * examples
    return added

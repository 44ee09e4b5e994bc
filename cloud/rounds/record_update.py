"""Count a device's update notice, each device once, and end the waiting on quorum."""

from __future__ import annotations

from typing import Any, Literal

from cloud.rounds.await_updates import complete_collecting
from cloud.rounds.changes import change, transact
from cloud.rounds.evaluation import check_figures, sums
from cloud.rounds.events import tell
from cloud.rounds.judging import is_judgement, record_judgement
from cloud.rounds.notices import Delivery, read_notice
from cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import MessageError, RecordError
from fedgrass.protocol.cohort import is_member
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.names import update_key
from fedgrass.protocol.records import Participation, RoundRecord, round_key
from fedgrass.protocol.tables import load_round

Counted = Literal["counted", "late", "duplicate", "ignored"]

_NOTICE, _ROUND = range(2)  # the transaction's actions
_DONE = {"fit": "uploaded", "evaluate": "evaluated"}

connect("rounds", "step_functions")


def handler(event: dict[str, Any], _context: object) -> None:
    """Entry point, called by the topic rule."""
    record_update(own_services(), Delivery.model_validate(event))


def record_update(services: Services, delivery: Delivery) -> Counted:
    """Record the notice; returns what became of it. A message that makes no sense is logged and dropped."""
    try:
        notice = read_notice(delivery, UpdateNotice, services.fleet)
        record = load_round(services.rounds, services.fleet, notice.round)
        if is_judgement(notice, record):
            return _judged(services, notice, delivery, record)
        _check(notice, record)
    except (MessageError, RecordError) as error:
        tell("update_notice_ignored", fleet=services.fleet, topic=delivery.topic, reason=str(error))
        return "ignored"
    late = record.phase != "collecting"
    most = record.settings.checks.max_examples
    refused = _write(services, notice, delivery, late=late, most=most)
    if refused == _ROUND:  # collecting ended between the reading and the writing
        late = True
        refused = _write(services, notice, delivery, late=late, most=most)
    counted: Counted = "duplicate" if refused == _NOTICE else "late" if late else "counted"
    tell(
        "update_notice",
        fleet=notice.fleet,
        round=notice.round,
        thing=notice.thing,
        status=notice.status,
        counted=counted,
        reason=notice.reason or None,
    )
    if not late:
        # Of a duplicate too: the first delivery may have died between counting and completing.
        complete_collecting(services, load_round(services.rounds, services.fleet, notice.round))
    return counted


def _judged(services: Services, notice: UpdateNotice, delivery: Delivery, record: RoundRecord) -> Counted:
    _check_member(notice, record)
    counted: Counted = "counted" if record_judgement(services, notice, delivery, record) else "duplicate"
    tell("judgement", fleet=notice.fleet, round=notice.round, thing=notice.thing, status=notice.status, counted=counted)
    return counted


def _check_member(notice: UpdateNotice, record: RoundRecord) -> None:
    if not is_member(record.cohort.salt, record.cohort.fraction, notice.thing):
        raise MessageError(f"{notice.thing!r} is not in the cohort of round {record.round}")


def _check(notice: UpdateNotice, record: RoundRecord) -> None:
    _check_member(notice, record)
    if notice.status in _DONE.values() and notice.status != _DONE[record.settings.task]:
        raise MessageError(f"{notice.thing!r} has {notice.status}; round {record.round} is to {record.settings.task}")
    if notice.status == "evaluated":
        check_figures(notice)
    expected = update_key(notice.fleet, notice.round, notice.thing)
    if notice.key is not None and notice.key != expected:
        raise MessageError(f"{notice.thing!r} names key {notice.key!r}; its own is {expected!r}")


def _write(services: Services, notice: UpdateNotice, delivery: Delivery, *, late: bool, most: int) -> int | None:
    part = Participation(
        **notice.model_dump(include=set(Participation.model_fields) & set(UpdateNotice.model_fields)),
        object_key=notice.key,
        late=late,
        received_at=delivery.received_at,
    )
    attributes = part.to_item()
    key = {"fleet": part.fleet, "key": attributes.pop("key")}
    attributes.pop("fleet")
    # Not a Put: the device may have reported on the round's model already.
    write = change(put=attributes, condition="attribute_not_exists(#status)")
    if late:
        count = change(add={"late": 1})
    elif notice.status in _DONE.values():
        figures = sums(notice, most) if notice.status == "evaluated" else {}
        count = change(
            put={"last_upload_at": delivery.received_at},
            add={"uploaded": 1, "bytes_uploaded": notice.bytes, **figures},
            condition="#phase = :collecting",
            values={":collecting": "collecting"},
        )
    else:
        count = change(add={notice.status: 1}, condition="#phase = :collecting", values={":collecting": "collecting"})
    table = services.rounds.name
    return transact(
        services.rounds,
        [
            {"Update": {"TableName": table, "Key": key, **write}},
            {"Update": {"TableName": table, "Key": {"fleet": part.fleet, "key": round_key(part.round)}, **count}},
        ],
    )

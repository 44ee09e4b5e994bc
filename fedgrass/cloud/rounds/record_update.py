"""Count a device's update notice, each device once, and end the waiting on quorum.

Notices come twice, late, out of order, and from whom nobody asked. What is counted of a device is the best that it said in time:
one that declines, is replaced, and then uploads has uploaded, and a decline that arrives after the upload changes nothing. An
update that the round's job found was in time, however late the notice of it is (`fedgrass.cloud.ending.in_time`).
"""

from __future__ import annotations

from typing import Literal

from fedgrass.cloud.ending.in_time import count_if_listed
from fedgrass.cloud.rounds.await_updates import complete_collecting
from fedgrass.cloud.rounds.changes import change, transact
from fedgrass.cloud.rounds.device_evaluation import answers_judging, check_judgement, record_judgement
from fedgrass.cloud.rounds.evaluation import check_figures
from fedgrass.cloud.rounds.missing import end_if_nobody_can_answer, trainer_is_gone
from fedgrass.cloud.rounds.notices import Delivery, read_notice
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import MessageError, RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.cohort import takes
from fedgrass.protocol.losses import LOSS_KEPT_SECONDS, keep_loss, load_loss, may_be_asked
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.names import update_key
from fedgrass.protocol.participations import load_participation
from fedgrass.protocol.records import Participation, RoundRecord, participation_key, round_key
from fedgrass.protocol.roster import is_of_fleet, is_silo, presence
from fedgrass.protocol.tables import load_round, load_state
from fedgrass.protocol.utility import told_loss

Counted = Literal["counted", "late", "duplicate", "ignored"]

_PART, _ROUND = range(2)  # the transaction's actions
_DONE = {"fit": "uploaded", "evaluate": "evaluated", "statistics": "uploaded"}
# A device may report failing, be restarted, and upload after all: the higher rank stands.
_RANK = {None: 0, "declined": 1, "failed": 2, "evaluated": 3, "uploaded": 3}
_ATTEMPTS = 8
_NOTICED = set(Participation.model_fields) & set(UpdateNotice.model_fields) - {"fleet"}

connect("rounds", "devices", "step_functions", "s3")


def handler(event: dict[str, object], _context: object) -> None:
    """Entry point, called by the topic rules: of updates, and of heartbeats that say that the trainer is gone."""
    delivery = Delivery.model_validate(event)
    if delivery.topic.endswith("/heartbeat"):
        trainer_is_gone(own_services(), delivery)
    else:
        record_update(own_services(), delivery)


def record_update(services: Services, delivery: Delivery) -> Counted:
    """Record the notice; returns what became of it. A message that makes no sense is logged and dropped."""
    try:
        notice = read_notice(delivery, UpdateNotice, services.fleet)
        # A round that does not exist is an error like any other: names and numbers come from the device.
        record = load_round(services.rounds, services.fleet, notice.round)
        judging = answers_judging(notice, record)
        _check(services, notice, record, judging)
    except (MessageError, RecordError) as error:
        log_event("update_notice_ignored", fleet=services.fleet, topic=delivery.topic, reason=str(error))
        return "ignored"
    count = record_judgement if judging else _count
    counted: Counted = count(services, notice, delivery, record)
    if record.cohort.by_loss is not None and notice.status == "uploaded":
        _keep_loss(services, notice, delivery, record)
    # The notice came after the collecting, but the update may be on the job's list, which decides.
    if not judging and notice.status == "uploaded" and (counted == "late" or record.phase != "collecting"):
        # Of a duplicate too: the first delivery may have died before it compared.
        part = load_participation(services.rounds, record.fleet, record.round, notice.thing)
        if part and count_if_listed(services.rounds, services.s3, services.bucket, record, part):
            counted = "counted"
    log_event(
        "evaluation_notice" if judging else "update_notice",
        fleet=notice.fleet,
        round=notice.round,
        thing=notice.thing,
        status=notice.status,
        counted=counted,
        reason=notice.reason or None,
    )
    if not judging:
        _complete(services, record, counted)
    return counted


def _complete(services: Services, record: RoundRecord, counted: Counted) -> None:
    """End the waiting of the round that has all it waits for now: the notice's own, or in a stream the open one."""
    # Of a duplicate too: the first delivery may have died between counting and completing.
    concerned = set() if counted == "late" else {record.round}
    if record.settings.is_asynchronous and (held := load_state(services.rounds, services.fleet).open) is not None:
        concerned.add(held.round)
    for number in concerned:
        now = load_round(services.rounds, services.fleet, number)
        complete_collecting(services, now)
        end_if_nobody_can_answer(services, now)


def _keep_loss(services: Services, notice: UpdateNotice, delivery: Delivery, record: RoundRecord) -> None:
    """Note the loss by which a later round may ask the device; of a late update and a duplicate too, as the device does."""
    told = told_loss(notice.metrics, record.round, record.base.graph_sha256)
    # A silo's job knows nothing of what an earlier one reported: silos are asked by lot alone.
    if told is not None and not is_silo(notice.thing):
        expires = delivery.received_at // 1000 + LOSS_KEPT_SECONDS
        keep_loss(services.rounds, services.fleet, notice.thing, told, expires)


def _check(services: Services, notice: UpdateNotice, record: RoundRecord, judging: bool) -> None:
    """Raise `MessageError` unless the thing is of the fleet and the cohort, and its answer one to what was asked."""
    if not is_of_fleet(services.devices, services.fleet, notice.thing, record.settings.silos):
        raise MessageError(
            f"{notice.thing!r} is not of fleet {services.fleet!r}: it has sent no heartbeat, or is not one of its silos"
        )
    if not takes(record.cohort, notice.thing):
        raise MessageError(f"{notice.thing!r} is not in the cohort of round {record.round}")
    if record.cohort.by_loss is not None and not may_be_asked(
        record, notice.thing, load_loss(services.rounds, services.fleet, notice.thing)
    ):
        raise MessageError(
            f"{notice.thing!r} is a candidate of round {record.round} by its lot, and has reported no loss that is high enough"
        )
    if judging:
        check_judgement(notice)
        return
    if notice.status in _DONE.values() and notice.status != _DONE[record.settings.task]:
        raise MessageError(f"{notice.thing!r} has {notice.status}; round {record.round} is to {record.settings.task}")
    if notice.status == "evaluated":
        check_figures(notice)
    # A device may only name its own object, although IAM would not let it write another.
    expected = update_key(notice.fleet, notice.round, notice.thing)
    if notice.key is not None and notice.key != expected:
        raise MessageError(f"{notice.thing!r} names key {notice.key!r}; its own is {expected!r}")


def _count(services: Services, notice: UpdateNotice, delivery: Delivery, record: RoundRecord) -> Counted:
    asked = presence(services.rounds, record, notice.thing).asked
    for _ in range(_ATTEMPTS):
        # By the record as it was read; the transaction's condition holds it against the record as it is.
        late = record.phase != "collecting"
        known = load_participation(services.rounds, record.fleet, record.round, notice.thing)
        if not _supersedes(notice, known, late=late):
            return "duplicate"
        refused = _write(services, notice, delivery, record, known, asked=asked, late=late)
        if refused is None:
            return "late" if late else "counted"
        if refused == _ROUND:  # collecting ended between the reading and the writing
            record = load_round(services.rounds, record.fleet, record.round)
    raise RecordError(f"round {record.round}: the record of {notice.thing!r} keeps changing; it will be tried again")


def _supersedes(notice: UpdateNotice, known: Participation | None, *, late: bool) -> bool:
    """Whether a notice says more than what is known of the device; what it said in time stands against what is late."""
    if known is None or known.status is None:
        return True
    # Ranks only rise, so notices may come in any order and any number: the highest wins.
    return known.late == late and _RANK[notice.status] > _RANK[known.status]


def _write(
    services: Services,
    notice: UpdateNotice,
    delivery: Delivery,
    record: RoundRecord,
    known: Participation | None,
    *,
    asked: bool,
    late: bool,
) -> int | None:
    before = known.status if known else None
    told = {"asked": asked, "late": late, "object_key": notice.key, "received_at": delivery.received_at}
    # Not a Put: the device may have reported on the round's model already.
    part = change(
        put={**notice.model_dump(mode="json", include=_NOTICED), **told},
        # Two deliveries at once: the second finds its condition broken, and looks again.
        condition="#status = :before AND #late = :late" if before else "attribute_not_exists(#status)",
        values={":before": before, ":late": late} if before else None,
    )
    key = {"fleet": record.fleet, "key": participation_key(record.round, notice.thing)}
    actions = [{"Update": {"TableName": services.rounds.name, "Key": key, **part}}]
    count = _counters(notice, before, delivery.received_at, asked=asked, late=late)
    if count:
        round_item = {"fleet": record.fleet, "key": round_key(record.round)}
        actions.append({"Update": {"TableName": services.rounds.name, "Key": round_item, **count}})
    return transact(services.rounds, actions)


def _counters(
    notice: UpdateNotice, before: str | None, received_at: int, *, asked: bool, late: bool
) -> dict[str, object]:
    """Return what moves in the round's record; nothing for a device that says no to what it was not asked."""
    if late:
        # One that said no before, and sends its update after all, is late once and has sent an update.
        moves = {"late": not before, "late_updates": notice.status == "uploaded"}
        return change(add={name: 1 for name, does in moves.items() if does}) if any(moves.values()) else {}
    done = notice.status in _DONE.values()
    # Anybody can say no; only what is done is worth counting of a device that was not asked.
    # Else any device could fill a round's counters with declines.
    if not asked and not done:
        return {}
    # Those that were not asked are counted apart: quorum and answers are about those that were.
    add: dict[str, float] = {("uploaded" if done else notice.status) if asked else "joined": 1}
    if asked and before:
        add[before] = -1  # a decline or a failure: what is done is not superseded
    if done:
        add["bytes_uploaded"] = notice.bytes
    return change(
        put={"last_upload_at": received_at if done else None},
        add=add,
        condition="#phase = :collecting",
        values={":collecting": "collecting"},
    )

"""Record what became of a model on a device: with the device, and with the round that made the model."""

from __future__ import annotations

import contextlib

from fedgrass.cloud.rounds.await_rollout import complete_rollout
from fedgrass.cloud.rounds.changes import change, transact
from fedgrass.cloud.rounds.notices import Delivery, read_notice
from fedgrass.cloud.rounds.refused_models import act_on_refusals
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import MessageError, RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.messages import ModelNotice
from fedgrass.protocol.names import version_order
from fedgrass.protocol.records import MODEL_SUFFIX, DeviceModel, RoundRecord, participation_key, round_key
from fedgrass.protocol.roster import is_of_fleet, may_count, presence
from fedgrass.protocol.tables import load_round, load_settings
from fedgrass.protocol.writes import put_item

_KEPT_SECONDS = 400 * 86_400
_ATTEMPTS = 5

connect("rounds", "devices", "step_functions")


def handler(event: dict[str, object], _context: object) -> None:
    """Entry point, called by the topic rule."""
    record_model(own_services(), Delivery.model_validate(event))


def record_model(services: Services, delivery: Delivery) -> None:
    """Record the notice. A message that makes no sense is logged and dropped, and so is that of a silo which is not listed.

    A device of which no heartbeat is known yet may be a new one, so its word is kept and shown; it is not counted.
    """
    try:
        notice = read_notice(delivery, ModelNotice, services.fleet)
        record = _made_by(services, notice)
        silos = (record.settings if record else load_settings(services.rounds, services.fleet)).silos
        if not may_count(notice.thing, silos):
            raise MessageError(
                f"{notice.thing!r} is not a silo of fleet {services.fleet!r}: list it in the settings (silos)"
            )
    except MessageError as error:
        log_event("model_notice_ignored", fleet=services.fleet, topic=delivery.topic, reason=str(error))
        return
    # Kept before it is counted: what a new device says is shown even if no round counts it.
    _record_with_device(services, notice, delivery)
    log_event(
        "model_notice",
        fleet=notice.fleet,
        round=record.round if record else None,
        thing=notice.thing,
        version=notice.version,
        outcome=notice.outcome,
        reason=notice.reason or None,
    )
    if not is_of_fleet(services.devices, services.fleet, notice.thing, silos):
        return
    # Before there is a model, nobody can have it.
    if record is not None and record.phase == "collecting":
        return
    if record is not None:
        _record_with_round(services, record, notice, delivery)
    # With the version only where no round made it: the fleet's state then may not know of it.
    if notice.outcome != "active":
        act_on_refusals(services, "" if record else notice.version)
    if record is not None:
        complete_rollout(services, load_round(services.rounds, services.fleet, record.round))


def _made_by(services: Services, notice: ModelNotice) -> RoundRecord | None:
    """Return the round that made the model; None if none did: it is the operator's own, or of another line."""
    _, number, _ = version_order(notice.version)
    if not number:
        return None
    try:
        record = load_round(services.rounds, services.fleet, number)
    except RecordError:
        return None
    return record if record.version == notice.version else None


def _record_with_device(services: Services, notice: ModelNotice, delivery: Delivery) -> None:
    item = DeviceModel(
        fleet=notice.fleet,
        thing=notice.thing + MODEL_SUFFIX,
        version=notice.version,
        outcome=notice.outcome,
        reason=notice.reason,
        active_version=notice.active_version,
        metrics=notice.metrics,
        received_at=delivery.received_at,
        # The table's TTL: a device that left the fleet is forgotten after a year or so.
        expires=delivery.received_at // 1000 + _KEPT_SECONDS,
    ).to_item()
    table = services.devices
    with contextlib.suppress(table.meta.client.exceptions.ConditionalCheckFailedException):  # a newer word is there
        put_item(
            table,
            Item=item,
            # MQTT may deliver an older notice after a newer one.
            ConditionExpression="attribute_not_exists(received_at) OR received_at <= :received_at",
            ExpressionAttributeValues={":received_at": delivery.received_at},
        )


def _record_with_round(services: Services, record: RoundRecord, notice: ModelNotice, delivery: Delivery) -> None:
    """Count a device that was alive at the opening under its outcome, and no longer under the one it reported before."""
    table = services.rounds
    awaited = presence(table, record, notice.thing).alive
    key = {"fleet": record.fleet, "key": participation_key(record.round, notice.thing)}
    for _ in range(_ATTEMPTS):
        known = table.get_item(Key=key, ConsistentRead=True).get("Item", {})
        before = known.get("model_outcome")
        heard_at = known.get("model_received_at", 0)
        # Older than what is known, or the same delivered twice.
        if heard_at > delivery.received_at or (before == notice.outcome and heard_at == delivery.received_at):
            return
        write = change(
            put={
                "round": record.round,
                "thing": notice.thing,
                "model_outcome": notice.outcome,
                "model_reason": notice.reason,
                "model_metrics": notice.metrics,
                "model_received_at": delivery.received_at,
            },
            # Optimistic: two notices of one device at once would else both move the counters.
            condition="#model_outcome = :before AND #model_received_at = :heard_at"
            if before
            else "attribute_not_exists(#model_outcome)",
            values={":before": before, ":heard_at": heard_at} if before else None,
        )
        actions = [{"Update": {"TableName": table.name, "Key": key, **write}}]
        if awaited and before != notice.outcome:  # the same said again is noted, so that nothing older replaces it
            count = change(
                # Who reports after the close says nothing about how long the roll-out took.
                put={"last_model_at": delivery.received_at if record.phase != "closed" else None},
                add={notice.outcome: 1, **({before: -1} if before else {})},
            )
            round_item = {"fleet": record.fleet, "key": round_key(record.round)}
            actions.append({"Update": {"TableName": table.name, "Key": round_item, **count}})
        refused = transact(table, actions)
        if refused is None:
            return
    raise RecordError(f"round {record.round}: the record of {notice.thing!r} keeps changing; it will be tried again")

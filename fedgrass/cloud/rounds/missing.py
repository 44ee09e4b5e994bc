"""Devices that were asked and can no longer answer: their heartbeats say that the trainer does not run.

Nobody waits for those. Nothing is marked, so nothing has to be taken back: whoever looks compares the roster with the answers and
with the newest heartbeats. A device whose trainer is back counts as asked again, as long as the round still collects. A device
that is silent may be training without a link, and is waited for until the deadline.
"""

from __future__ import annotations

from collections.abc import Collection

from fedgrass.cloud.rounds.changes import change_round
from fedgrass.cloud.rounds.notices import Delivery
from fedgrass.cloud.rounds.services import Services
from fedgrass.cloud.rounds.tokens import succeed
from fedgrass.errors import MessageError
from fedgrass.logs import log_event
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.names import parse_device_topic
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.roster import presence
from fedgrass.protocol.tables import load_round, load_state
from fedgrass.protocol.waiting import waiting_for

_FEW, _SHARE = 64, 20
"""Looked for are so many, or a twentieth of the asked: with more missing there is nothing to hope for from a look."""


def trainer_is_gone(services: Services, delivery: Delivery) -> None:
    """Take in the heartbeat of a device whose trainer does not run, and end the collecting if it was the last to wait for."""
    try:
        thing = parse_device_topic(delivery.topic).thing
        beat = Heartbeat.decode(delivery.content())
    except MessageError as error:
        log_event("heartbeat_ignored", fleet=services.fleet, topic=delivery.topic, reason=str(error))
        return
    state = load_state(services.rounds, services.fleet)
    # The topic's name counts, which IoT Core has authorised; the payload must agree with it.
    if state.open is None or beat.trainer_runs or beat.thing != thing:
        return
    record = load_round(services.rounds, services.fleet, state.open.round)
    if record.phase != "collecting" or not presence(services.rounds, record, thing).asked:
        return
    # A mark in the round's item, so that rounds in which all trainers run never read the tables below.
    noted = change_round(
        services.rounds,
        services.fleet,
        record.round,
        put={"gone_at": delivery.received_at},
        condition="#phase = :collecting",
        values={":collecting": "collecting"},
    )
    if noted is not None:
        log_event("trainer_gone", fleet=services.fleet, round=record.round, thing=thing, reason=beat.reason)
        end_if_nobody_can_answer(services, noted, {thing})


def end_if_nobody_can_answer(services: Services, record: RoundRecord, gone: Collection[str] = ()) -> None:
    """Let the state machine go on if all devices that have not answered cannot.

    Tables are read only for a round in which some device's trainer is known to be gone.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    record
        The round.
    gone
        Devices that are known to be gone although the table may not say so yet.
    """
    # Cheap bounds first: this runs at every notice.
    missing = record.asked - record.answered
    if record.gone_at is None or record.phase != "collecting" or record.collect_token is None:
        return
    if missing > max(_FEW, record.asked // _SHARE):
        return
    waiting = waiting_for(services.rounds, services.devices, record)
    # The heartbeat that brought this may not be in the table yet: its rule runs beside this one.
    if not all(one.gone or one.thing in gone for one in waiting):
        return
    log_event(
        "nobody_left_to_answer", fleet=record.fleet, round=record.round, without=[one.thing for one in waiting[:20]]
    )
    succeed(services.step_functions, record.collect_token, {"uploaded": record.uploaded})

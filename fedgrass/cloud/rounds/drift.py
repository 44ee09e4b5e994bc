"""What follows a fleet's drift: rounds that start by themselves, one after the other, and not again before the devices were calm.

Each look is a step of a small state machine whose state is one item of the table. A look that dies, comes twice or meets another
changes nothing: what is to run is written down before it is started, and an execution's name follows from that, so Step Functions
starts it once.

======================  ==========================================  ============================================
state                   what is seen                                what it becomes
======================  ==========================================  ============================================
armed                   drift, ``looks`` times in a row, and the    the first step is to run; disarmed
                        cool-down is over
to run, not started     the fleet is free                           started
to run, not started     the devices are calm again, or the setting  dropped (of the first step)
                        was taken back
started                 its execution has ended                     the next step is to run, or none is left
disarmed, none is left  the devices are calm                        armed
======================  ==========================================  ============================================
"""

from __future__ import annotations

import json

from botocore.exceptions import ClientError

from fedgrass.cloud.rounds.going_on import RUNNING, status_of
from fedgrass.cloud.rounds.services import Services
from fedgrass.logs import log_event
from fedgrass.protocol.drift import Standing, Step
from fedgrass.protocol.drift_settings import DriftSettings
from fedgrass.protocol.fleet_state import DriftRecord, FleetState
from fedgrass.protocol.tables import load_drift
from fedgrass.protocol.writes import put_item

_HOUR_MS = 3_600_000
_FIRST: Step = "evaluate"


def steps_of(settings: DriftSettings) -> tuple[Step, ...]:
    """Return the rounds that a drift starts, in their order."""
    if settings.action == "evaluate":
        return (_FIRST,)
    if settings.action == "round":
        # The profile before the training: from its announcement on, devices compare with what the model learns of.
        return (_FIRST, "statistics", "fit") if settings.renew_profile else (_FIRST, "fit")
    return ()


def act_on_drift(services: Services, standing: Standing, settings: DriftSettings, state: FleetState) -> DriftRecord:
    """Note how the fleet stands, and do the next thing that its drift asks for.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    standing
        How many devices have drifted.
    settings
        The fleet's, of drift.
    state
        The fleet's: nothing is started while somebody holds it.
    """
    before = load_drift(services.rounds, services.fleet)
    # Nothing was ever asked for, so nothing is written at each look of a fleet that does not watch.
    if settings.action == "off" and before.step is None and not before.looked_at:
        return before
    now = int(services.now().timestamp() * 1000)
    noted = _noted(before, standing, settings, now)
    record = _moved_on(services, noted, standing, settings)
    if not _write(services, before, record):
        return before  # another look is at it
    if record.step is None or record.execution is not None or not _is_free(state):
        return record
    started = record.model_copy(update={"execution": _start(services, record, record.step)})
    # If this write is lost, the next look starts the same execution once more, which is the one that runs.
    _write(services, record, started)
    return started


def _noted(before: DriftRecord, standing: Standing, settings: DriftSettings, now: int) -> DriftRecord:
    is_drift = standing.is_drift(settings)
    return before.model_copy(
        update={
            "looked_at": max(now, before.looked_at + 1),  # the condition of each write
            "alive": standing.alive,
            "compared": standing.compared,
            "drifted": standing.drifted,
            "in_a_row": before.in_a_row + 1 if is_drift else 0,
            "armed": before.armed or (before.step is None and standing.is_calm(settings)),
        }
    )


def _moved_on(services: Services, record: DriftRecord, standing: Standing, settings: DriftSettings) -> DriftRecord:
    steps = steps_of(settings)
    if record.step is None:
        return _begun(record, settings, steps)
    if record.execution is None:
        return _still_wanted(record, standing, settings, steps)
    status = status_of(services, record.execution)
    if status in RUNNING:
        return record
    log_event("drift_step_ended", fleet=record.fleet, step=record.step, number=record.number, status=status)
    # Whatever became of it: an evaluation that failed says nothing against training.
    left = steps[steps.index(record.step) + 1 :] if record.step in steps else ()
    return record.model_copy(update={"step": left[0] if left else None, "execution": None})


def _begun(record: DriftRecord, settings: DriftSettings, steps: tuple[Step, ...]) -> DriftRecord:
    rests = record.begun_at is not None and record.looked_at - record.begun_at < settings.cool_down_hours * _HOUR_MS
    if not steps or not record.armed or rests or record.in_a_row < settings.looks:
        return record
    number = record.number + 1
    log_event(
        "drift_begun",
        fleet=record.fleet,
        action=settings.action,
        drifted=record.drifted,
        alive=record.alive,
        number=number,
    )
    return record.model_copy(
        update={"step": steps[0], "number": number, "begun_at": record.looked_at, "armed": False, "execution": None}
    )


def _still_wanted(
    record: DriftRecord, standing: Standing, settings: DriftSettings, steps: tuple[Step, ...]
) -> DriftRecord:
    reason = ""
    if record.step not in steps:
        reason = f"drift.action is {settings.action}"
    elif record.step == _FIRST and standing.is_calm(settings):
        reason = "the devices are calm again"
    if not reason:
        return record
    log_event("drift_given_up", fleet=record.fleet, step=record.step, number=record.number, reason=reason)
    # If nothing was started, there is nothing to cool down from.
    untouched = {"armed": True, "begun_at": None} if record.step == _FIRST else {}
    return record.model_copy(update={"step": None, **untouched})


def _is_free(state: FleetState) -> bool:
    return state.open is None and state.hand is None and state.reserved is None and state.model is not None


def _start(services: Services, record: DriftRecord, step: Step) -> str:
    machine = services.setting("FEDGRASS_STATE_MACHINE_ARN")
    name = record.execution_name(step)
    request = {"Comment": f"drift {record.number} of the fleet's devices", "task": step, "rounds": 1}
    try:
        arn = services.step_functions.start_execution(stateMachineArn=machine, name=name, input=json.dumps(request))
        execution = arn["executionArn"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ExecutionAlreadyExists":
            raise
        # An earlier look started it, and it has ended since.
        execution = f"{machine.replace(':stateMachine:', ':execution:')}:{name}"
    log_event("drift_step_started", fleet=record.fleet, step=step, number=record.number, execution=execution)
    return execution


def _write(services: Services, before: DriftRecord, after: DriftRecord) -> bool:
    """Write the item unless another look has meanwhile; returns whether it was written."""
    table = services.rounds
    condition: dict[str, object] = {"ConditionExpression": "attribute_not_exists(looked_at)"}
    if before.looked_at:
        condition = {
            "ConditionExpression": "looked_at = :seen",
            "ExpressionAttributeValues": {":seen": before.looked_at},
        }
    try:
        put_item(table, Item=after.to_item(), **condition)
    except table.meta.client.exceptions.ConditionalCheckFailedException:
        return False
    return True

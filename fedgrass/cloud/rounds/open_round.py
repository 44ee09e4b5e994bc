"""Open a round: judge the fleet, take the lock, write the record, announce."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, Field

from fedgrass.cloud.ending.finish import finish_by_hand
from fedgrass.cloud.rounds.abort_round import abort, give_up_reservation
from fedgrass.cloud.rounds.announcement import announce_round
from fedgrass.cloud.rounds.changes import change, transact
from fedgrass.cloud.rounds.cohorts import choose_by_loss, choose_cohort, first_counting, is_wanted, quorum_of, why_fewer
from fedgrass.cloud.rounds.going_on import FORGOTTEN, RUNNING, await_previous, given_run, given_settings, status_of
from fedgrass.cloud.rounds.refused_models import act_on_refusals
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import RoundRefusedError
from fedgrass.logs import log_event
from fedgrass.protocol.budget import beyond_budget, tree_of_next
from fedgrass.protocol.cohort import is_asked
from fedgrass.protocol.costs import why_beyond
from fedgrass.protocol.fleet_state import STATE_KEY, FleetState, OpenRound
from fedgrass.protocol.losses import load_losses
from fedgrass.protocol.members import FleetMember, fleet_members
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import next_version
from fedgrass.protocol.privacy import PrivacyLedger, Tree
from fedgrass.protocol.profile import ProfileReference
from fedgrass.protocol.records import RoundRecord, ended_key
from fedgrass.protocol.roster import may_count, write_roster
from fedgrass.protocol.run_pieces import RunPiece, piece_with
from fedgrass.protocol.run_settings import Run
from fedgrass.protocol.runs import run_after
from fedgrass.protocol.secure_settings import announced_secure
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.statistics_settings import tells_sums
from fedgrass.protocol.tables import free_hand, load_round, load_state

_ENDED = 2  # the transaction's third action
_PROVISIONING_SECONDS = 900  # a Processing job's own limit counts from when its machine is there


class OpenRequest(BaseModel, defer_build=True):
    """What the state machine passes: its execution, that execution's input, and the rounds it has closed so far."""

    execution: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    results: list[dict[str, Any]] = Field(default_factory=list)


connect("rounds", "devices", "iot_data", "step_functions")


def handler(event: dict[str, object], _context: object) -> dict[str, Any]:
    """Entry point, called by the state machine, and on a schedule to look after what was left open."""
    if event.get("sweep"):
        sweep(own_services())
        return {}
    return open_round(own_services(), OpenRequest.model_validate(event))


def sweep(services: Services) -> None:
    """End what an execution, or a person, that is gone has left, as an opening would: nobody may open a round for long.

    Else devices would go on with a round that nobody waits for, if the event of its execution's end was lost.
    """
    # Nothing waits for a sweep's answer.
    with contextlib.suppress(RoundRefusedError):  # somebody holds the fleet
        _take_over(services, load_state(services.rounds, services.fleet))
        _refuse_reserved(services, load_state(services.rounds, services.fleet), "")


def open_round(services: Services, request: OpenRequest) -> dict[str, Any]:
    """Open the fleet's next round and return what the state machine needs of it.

    Run again by the execution that holds the lock, it announces the same round again.

    Raises
    ------
    RoundRefusedError
        If a round is open, no model was published, or too few devices can train.
    ConfigurationError
        If the execution's input names a setting that does not exist or is out of range.
    """
    run = given_run(request.overrides)
    # Validated before anything is written: an input with a wrong setting must leave no trace.
    settings = given_settings(services, request.overrides)
    state = load_state(services.rounds, services.fleet)
    # Step Functions repeats a task whose answer was lost: the round that it opened is this one.
    if state.open and state.open.execution == request.execution:
        record = load_round(services.rounds, services.fleet, state.open.round)
    else:
        if run is not None and run.previous is not None and not request.results:
            await_previous(services, run.previous, request.execution)
            state = load_state(services.rounds, services.fleet)
        # Before all that is read below: it changes the fleet's state.
        _take_over(services, state)
        act_on_refusals(services)
        number = state.last + 1
        run = _run(services, request, state, run)
        record = _open(services, request, settings.at_round(number, number - run.standing.done), run)
    announce_round(services)
    # The execution may have been stopped while this function ran; its event found no round to end then.
    _close_if_ended(services, record)
    log_event("round_opened", fleet=record.fleet, round=record.round, asked=record.asked, base=record.base.version)
    return {
        "round": record.round,
        "rounds": settings.rounds,
        "results": request.results,
        "collect_seconds": settings.deadline_seconds,
        "aggregate_seconds": settings.aggregation.timeout_seconds + _PROVISIONING_SECONDS,
        # A stream waits for nobody; the models of its rounds reach the devices all the same.
        "rollout_seconds": 1 if settings.is_asynchronous else max(1, settings.rollout.wait_seconds),
    }


def _run(services: Services, request: OpenRequest, state: FleetState, given: Run | None) -> Run:
    """Return the run that the next round is part of: that of this execution's round before, the given one, or a new one."""
    before = load_round(services.rounds, services.fleet, state.last) if state.last else None
    if before is not None and before.execution == request.execution:
        return run_after(before)
    return given or Run(first=state.last + 1, started_at=services.now())


def _open(services: Services, request: OpenRequest, settings: FleetSettings, run: Run) -> RoundRecord:
    fleet = services.fleet
    now = services.now()
    # A silo's account could make up names: those that the settings do not list are not there.
    members = [member for member in fleet_members(services.devices, fleet) if may_count(member.thing, settings.silos)]
    alive = [member for member in members if member.alive(now.timestamp() * 1000)]
    # From all that are known down to those that can train now; the error below says where the others were lost.
    fit = [member for member in alive if is_wanted(member, settings)]
    able = [member.thing for member in fit if member.heartbeat and member.heartbeat.able]
    if len(able) < settings.min_devices:
        raise RoundRefusedError(_too_few(fleet, members, alive, able, settings.min_devices) + why_fewer(alive, fit))
    # Read again: `_take_over` and the refusals may have changed it.
    state = load_state(services.rounds, fleet)
    # A new salt is not told before the announcement: a device cannot choose a name that is asked.
    before = load_round(services.rounds, services.fleet, state.last) if state.last else None
    losses = _losses(services, settings, state)
    if settings.task == "fit" and settings.cohort.chooses_by_loss:
        cohort, asked = choose_by_loss(able, settings, state.last + 1, losses)
    else:
        cohort, asked = choose_cohort(able, settings, fleet, before.cohort if before else None)
    announced_secure(settings, 2 * asked)  # raises if the integers are too narrow
    _refuse_reserved(services, state, request.execution)
    if state.model is None:
        raise RoundRefusedError(
            f"fleet {fleet!r} has no model to start from; publish one with `fedgrass model publish DIR`"
        )
    # The clipping norm that the last rounds arrived at stands in place of the settings' first guess.
    if settings.privacy.adaptive_clip is not None and state.privacy.clip_norm is not None:
        privacy = settings.privacy.model_copy(update={"clip_norm": state.privacy.clip_norm})
        settings = settings.model_copy(update={"privacy": privacy})
    bounds = _bounds(settings, state)
    _require_bounds(settings, bounds)
    # Charged at the opening: what devices upload is spent even if the round fails later (docs/decisions/0015).
    tree = tree_of_next(settings, state, before, cohort)
    ledger = _charged(fleet, state.last + 1, state.privacy, settings, tree)
    record = RoundRecord(
        fleet=fleet,
        round=state.last + 1,
        execution=request.execution,
        run=run,
        settings=settings,
        base=state.model,
        # The round's number is the middle of the version, so no two rounds can make the same one.
        version=next_version(state.model.version, state.last + 1),
        cohort=cohort,
        alive=len(alive),
        asked=asked,
        quorum=quorum_of(settings, asked),
        opened_at=now,
        deadline=now + timedelta(seconds=settings.deadline_seconds),
        privacy=ledger if ledger.spends else None,
        bounds=bounds,
        watch=_profile(state) if settings.drift.action != "off" else None,
        base_bytes=before.model_bytes if before and _is_new(state, before) else 0,
    )
    if beyond := why_beyond(record):
        raise RoundRefusedError(f"fleet {fleet!r}: {beyond}")
    # Before the lock: a device may answer the moment the round is announced, and its answer is counted by the roster.
    # One that no round comes to use expires.
    write_roster(
        services.rounds,
        record,
        alive=[member.thing for member in alive],
        asked={thing for thing in able if is_asked(cohort, thing, losses.get(thing))},
    )
    piece = piece_with(record, before=len(request.results))
    if not _take_lock(services, state, state.model, record, ledger, piece):
        holder = load_state(services.rounds, fleet).open
        raise RoundRefusedError(
            _is_open(fleet, holder)
            if holder
            else f"fleet {fleet!r}: its state changed while a round opened; start again"
        )
    return record


def _is_new(state: FleetState, before: RoundRecord) -> bool:
    """Whether devices download the model for the round: it is the last round's, and no deployment brought it."""
    released, model = state.released, state.model
    return (
        model is not None
        and model.version == before.version
        and (released is None or released.version != model.version)
    )


def _losses(services: Services, settings: FleetSettings, state: FleetState) -> dict[str, float]:
    """Return the loss of each device that has a known one, where losses choose who is asked."""
    if settings.task != "fit" or not settings.cohort.chooses_by_loss or state.model is None:
        return {}
    number, graph = state.last + 1, state.model.graph_sha256
    since = first_counting(settings, number)
    told = load_losses(services.rounds, services.fleet)
    found = {thing: losses.before(number, since, graph) for thing, losses in told.items()}
    return {thing: loss for thing, loss in found.items() if loss is not None}


def _bounds(settings: FleetSettings, state: FleetState) -> ProfileReference | None:
    """Return the profile that a round of statistics has its histograms' bounds from; None if there is none of this graph."""
    if settings.task != "statistics" or settings.statistics.low is not None:
        return None
    return _profile(state)


def _require_bounds(settings: FleetSettings, bounds: ProfileReference | None) -> None:
    """Raise `RoundRefusedError` if sums of statistics could not be bounded: noise hides nothing then."""
    if settings.task != "statistics" or not tells_sums(settings):
        return
    if settings.statistics.low is None and bounds is None:
        raise RoundRefusedError(
            "task statistics: with privacy.mode or secure, histograms and means need bounds beforehand, and the fleet has no "
            "profile of this model yet; set statistics.low and statistics.high"
        )


def _profile(state: FleetState) -> ProfileReference | None:
    """Return the newest profile, if it is of the present model's inputs."""
    found = state.profile
    return found if found and state.model and found.graph_sha256 == state.model.graph_sha256 else None


def _charged(
    fleet: str, number: int, ledger: PrivacyLedger, settings: FleetSettings, tree: Tree | None
) -> PrivacyLedger:
    """Return what is spent with one more round. Raises `RoundRefusedError` if that is too much."""
    privacy = settings.privacy
    # An evaluation sends figures and no update: the ledger counts updates.
    if settings.task == "evaluate":
        return ledger
    if privacy.mode == "none":
        if privacy.epsilon_budget > 0:
            raise RoundRefusedError(
                f"fleet {fleet!r}: the budget is ε {privacy.epsilon_budget:g} (privacy.epsilon_budget), and a round without "
                "noise has no finite ε. Set privacy.mode, or privacy.epsilon_budget to 0"
            )
        # Noted even without a budget: one that is set later must know that it cannot be kept.
        return ledger.with_bare(number)
    after = ledger.charged(privacy, settings.sampled_fraction, tree)
    if privacy.epsilon_budget > 0 and after.unbounded:
        raise RoundRefusedError(
            f"fleet {fleet!r}: {ledger.bare} of its rounds were without noise, the last of them round {ledger.last_bare}; what "
            f"learnt in them has no finite ε, and no budget ({privacy.epsilon_budget:g}) can be kept. Publish a model that has "
            f"not learnt from these data and set privacy.account_from to {number}, or set privacy.epsilon_budget to 0"
        )
    if beyond := beyond_budget(ledger, settings, tree):
        raise RoundRefusedError(
            f"fleet {fleet!r}: {beyond}; {ledger.rounds} rounds are spent. Keep the model as it is, or decide on a larger budget"
        )
    return after


def _take_lock(
    services: Services, state: FleetState, model: Base, record: RoundRecord, ledger: PrivacyLedger, piece: RunPiece
) -> bool:
    """Write lock and record together, if nobody did since ``state`` was read, and the execution is not known to have ended."""
    lock = OpenRound(round=record.round, execution=record.execution, opened_at=record.opened_at)
    # All that was read above may have changed since: each piece of it is a condition, so that whoever writes first is
    # the one.
    condition = (
        "attribute_not_exists(#open) AND attribute_not_exists(#hand) AND #model.#version = :version AND "
        "(attribute_not_exists(#reserved) OR #reserved = :execution) AND "
    )
    values: dict[str, object] = {":version": model.version, ":execution": record.execution}
    if state.last:
        condition += "#last = :last"
        values[":last"] = state.last
    else:
        condition += "attribute_not_exists(#last)"
    put = {"open": lock.model_dump(mode="json"), "last": record.round}
    if ledger != state.privacy:
        put["privacy"] = ledger.model_dump(mode="json", exclude_none=True)
    # The reservation ends with the opening: it was for this execution, or for nobody.
    take = change(put=put, remove=["reserved"], condition=condition, values=values)
    table = services.rounds
    ended = {"fleet": record.fleet, "key": ended_key(record.execution)}
    refused = transact(
        table,
        [
            {"Update": {"TableName": table.name, "Key": {"fleet": record.fleet, "key": STATE_KEY}, **take}},
            {"Put": {"TableName": table.name, "Item": record.to_item()}},
            {
                "ConditionCheck": {
                    "TableName": table.name,
                    "Key": ended,
                    "ConditionExpression": "attribute_not_exists(#key)",
                    "ExpressionAttributeNames": {"#key": "key"},
                }
            },
            {"Put": {"TableName": table.name, "Item": piece.to_item()}},
        ],
    )
    # The execution was stopped while this function ran: its abort found no round to end.
    if refused == _ENDED:
        raise RoundRefusedError(f"execution {record.execution} has ended: it opens no round any more")
    return refused is None


def _take_over(services: Services, state: FleetState) -> None:
    """End what an execution, or a person, that is gone has left; raises `RoundRefusedError` if it still holds the fleet."""
    fleet = services.fleet
    # The event of an execution's end can be lost; asking Step Functions finds it out.
    if state.open is not None:
        status = status_of(services, state.open.execution)
        if status in RUNNING:
            raise RoundRefusedError(_is_open(fleet, state.open))
        abort(
            services,
            state.open.execution,
            outcome="cancelled" if status == "ABORTED" else "failed",
            reason=f"its execution ended ({status}) without closing it",
        )
    if state.hand is not None:
        # A person's process may have died: after `until` the hold is void, and what it began is finished first.
        if state.hand.until >= services.now().timestamp():
            raise RoundRefusedError(
                f"fleet {fleet!r}: a person has model {state.hand.version} in hand ({state.hand.action}); start again when "
                "that is done"
            )
        finish_by_hand(services.place, state.hand.version)
        free_hand(services.rounds, fleet, state.hand)


def _refuse_reserved(services: Services, state: FleetState, execution: str) -> None:
    """Raise `RoundRefusedError` between two rounds of another execution; one that has ended gives way."""
    if state.reserved is None or state.reserved == execution:
        return
    if status_of(services, state.reserved) in RUNNING:
        raise RoundRefusedError(
            f"fleet {services.fleet!r}: execution {state.reserved} has more rounds to run; wait for it, or stop it"
        )
    give_up_reservation(services, state.reserved)


def _close_if_ended(services: Services, record: RoundRecord) -> None:
    """A stopped execution's event may be lost, or have come too early: then nobody else would close its round."""
    # After the announcement: from then on a stopped execution's event finds the round by itself.
    status = status_of(services, record.execution)
    # DescribeExecution is eventually consistent: an execution that it does not know may be a new one.
    if status not in {*RUNNING, FORGOTTEN}:
        abort(
            services,
            record.execution,
            outcome="cancelled" if status == "ABORTED" else "failed",
            reason=f"its execution had ended ({status}) when it opened",
        )


def _is_open(fleet: str, holder: OpenRound) -> str:
    return (
        f"round {holder.round} of fleet {fleet!r} is open since {holder.opened_at:%Y-%m-%d %H:%M:%S %Z} "
        f"(execution {holder.execution}); wait for it, or end it with `fedgrass round cancel`"
    )


def _too_few(fleet: str, members: list[FleetMember], alive: list[FleetMember], able: list[str], needed: int) -> str:
    message = f"fleet {fleet!r}: {len(able)} devices can train, {needed} are needed (min_devices)"
    silent = len(members) - len(alive)
    if silent:
        message += f"; {silent} of {len(members)} known devices are silent"
    unable = [member.heartbeat for member in alive if member.heartbeat and not member.heartbeat.able]
    if unable:
        examples = ", ".join(f"{heartbeat.thing}: {heartbeat.reason or 'no reason given'}" for heartbeat in unable[:3])
        message += f"; {len(unable)} decline ({examples})"
    return message + ". See `fedgrass fleet list`"

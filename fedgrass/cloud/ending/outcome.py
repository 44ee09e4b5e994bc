"""How a round ended, written once: whoever writes it first decides, and everybody else goes by it.

The job writes its outcome together with the fleet's model when all is prepared and nothing is deployed yet. An abort, or a close,
writes its own under the same condition. So a round that was cancelled has changed nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from fedgrass.errors import RecordError
from fedgrass.protocol.fleet_state import STATE_KEY, FleetState
from fedgrass.protocol.messages import Base, ServerState
from fedgrass.protocol.records import RoundOutcome, RoundRecord, round_key
from fedgrass.protocol.report import ADOPTED, RoundReport
from fedgrass.protocol.tables import Table, load_round, load_state
from fedgrass.protocol.writes import change, transact, update_item

Decision = Literal["decided", "superseded", "ended"]

# Index of the action whose condition failed, as DynamoDB's CancellationReasons say.
_STATE = 1  # the transaction's second action
_MAX_REASON = 1000


def model_of(report: RoundReport) -> Base:
    """Return a report's model as a round starts from it."""
    if report.model is None:
        raise RecordError(f"report of round {report.round}: it is {report.outcome} and has no model")
    return Base.of(report.model, report.fleet, state_of(report))


def state_of(report: RoundReport) -> ServerState | None:
    """Return what a round's strategy left beside its model; None if nothing."""
    sha256 = report.server_state_sha256
    return None if sha256 is None else ServerState(strategy=report.strategy, sha256=sha256)


def decide(rounds: Table, record: RoundRecord, report: RoundReport) -> Decision:
    """Make what the job found the round's outcome, and an adopted model the fleet's: both, or nothing.

    Parameters
    ----------
    rounds
        The rounds' table.
    record
        The round, as it was when the job began.
    report
        What the job proposes.

    Returns
    -------
    Decision
        ``decided`` if it is written now. ``ended`` if the round has an outcome or is past its aggregation;
        ``superseded`` if the fleet's model is not the round's base any more, or another round holds the fleet.
    """
    # Round and fleet in one transaction: an outcome without its model, or a model without its outcome, would be
    # nobody's to mend.
    actions = [_action(rounds, _key(record), _of_the_round(report))]
    if report.outcome in ADOPTED:
        # What devices have changes with the model only, so the condition on the one holds for the other.
        state = load_state(rounds, record.fleet)
        actions.append(_action(rounds, _state_key(record), _of_the_fleet(record, report, state)))
    refused = transact(rounds, actions)
    if refused is None:
        return "decided"
    return "superseded" if refused == _STATE else "ended"


def end(rounds: Table, record: RoundRecord, outcome: RoundOutcome, reason: str, **figures: Any) -> RoundRecord:
    """Give a round an outcome, with its figures, unless it has one.

    Parameters
    ----------
    rounds
        The rounds' table.
    record
        The round.
    outcome
        What became of it.
    reason
        Why, in words; cut to 1,000 characters.
    figures
        Attributes of the record that are written with the outcome.

    Returns
    -------
    RoundRecord
        The record as it is now, with whichever outcome was first.
    """
    # The same condition as the job's: whoever writes first decides (docs/decisions/0042).
    arguments = change(
        put={"outcome": outcome, "reason": reason[:_MAX_REASON], **figures},
        condition="attribute_not_exists(#outcome) AND #phase <> :closed",
        values={":closed": "closed"},
    )
    with contextlib.suppress(rounds.meta.client.exceptions.ConditionalCheckFailedException):  # it has one
        update_item(rounds, Key=_key(record), **arguments)
    return load_round(rounds, record.fleet, record.round)


def release_by_hand(rounds: Table, seen: FleetState, record: RoundRecord, model: Base) -> bool:
    """Release a round's model while a person holds the fleet: model and outcome change together; safe to repeat.

    Parameters
    ----------
    rounds
        The rounds' table.
    seen
        The fleet's state that the caller decided by, with the caller's hold.
    record
        The round that made the model.
    model
        The model.

    Returns
    -------
    bool
        False if the hold is lost, or the fleet is at another model than was ``seen``; then nothing is written.

    Raises
    ------
    RecordError
        If the fleet is not held.
    """
    if seen.hand is None:
        raise RecordError(f"fleet {record.fleet!r}: it must be held before a model is released by hand")
    # By the holder's random name: a hold that ran out and was taken by another is not this one.
    condition, values = "#hand.#holder = :holder AND ", {":holder": seen.hand.holder}
    if seen.model is None:
        condition += "attribute_not_exists(#model)"
    else:
        condition += "#model.#version = :version"
        values[":version"] = seen.model.version
    put = {
        "model": model.model_dump(),
        "released": seen.released_next(model, "hand").model_dump(exclude_none=True),
    }
    actions = [_action(rounds, _state_key(record), change(put=put, condition=condition, values=values))]
    if record.outcome != "released":
        reason = f"released by hand; it was {record.outcome}: {record.reason}"
        marked = change(
            put={"outcome": "released", "reason": reason},
            condition="#outcome = :before",
            values={":before": record.outcome},
        )
        actions.append(_action(rounds, _key(record), marked))
    return transact(rounds, actions) is None


def _of_the_round(report: RoundReport) -> dict[str, Any]:
    return change(
        put={"outcome": report.outcome, "reason": report.reason[:_MAX_REASON]},
        condition="#phase = :aggregating AND attribute_not_exists(#outcome)",
        values={":aggregating": "aggregating"},
    )


def _of_the_fleet(record: RoundRecord, report: RoundReport, state: FleetState) -> dict[str, Any]:
    made = model_of(report)
    put = {"model": made.model_dump()}
    if report.outcome == "released":
        put["released"] = state.released_next(made, "round").model_dump(exclude_none=True)
    # Round and execution: after a fleet started over, the same number may be another round.
    held = "#open.#round = :round AND #open.#execution = :execution"
    # Version and digest: a fleet that started over can have another model of the same version.
    based = "#model.#version = :base AND #model.#parameters_sha256 = :sha256"
    # A job may be tried by itself, again and again, where no round was ever opened and so none holds the fleet.
    alone = (
        "attribute_not_exists(#last) AND "
        "(attribute_not_exists(#model) OR #model.#parameters_sha256 = :sha256 OR #model.#parameters_sha256 = :made)"
    )
    values = {
        ":made": made.parameters_sha256,
        ":round": record.round,
        ":execution": record.execution,
        ":base": record.base.version,
        ":sha256": record.base.parameters_sha256,
    }
    return change(put=put, condition=f"({held} AND {based}) OR ({alone})", values=values)


def _key(record: RoundRecord) -> dict[str, str]:
    return {"fleet": record.fleet, "key": round_key(record.round)}


def _state_key(record: RoundRecord) -> dict[str, str]:
    return {"fleet": record.fleet, "key": STATE_KEY}


def _action(rounds: Table, key: dict[str, str], arguments: dict[str, Any]) -> dict[str, Any]:
    return {"Update": {"TableName": rounds.name, "Key": key, **arguments}}

"""What every end of a round has in common: its outcome is written and done, the lock freed, the announcement cleared."""

from __future__ import annotations

import contextlib

from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.cloud.ending.finish import compared, finish
from fedgrass.cloud.ending.outcome import end
from fedgrass.cloud.rounds.announcement import announce_round
from fedgrass.cloud.rounds.changes import change, change_round
from fedgrass.cloud.rounds.metrics import measure_closed
from fedgrass.cloud.rounds.refused_models import act_on_refusals
from fedgrass.cloud.rounds.services import Services
from fedgrass.errors import FedgrassError
from fedgrass.logs import log_event
from fedgrass.protocol.costs import estimated
from fedgrass.protocol.fleet_state import STATE_KEY
from fedgrass.protocol.records import RoundOutcome, RoundRecord
from fedgrass.protocol.tables import load_round
from fedgrass.protocol.writes import update_item


def close(
    services: Services,
    number: int,
    outcome: RoundOutcome = "failed",
    reason: str | None = None,
    *,
    reserve: str | None = None,
    ended: str = "",
    whatever_happens: bool = False,
) -> RoundRecord:
    """Close a round and free the fleet for the next; a round that is closed stays as it is.

    Parameters
    ----------
    outcome
        How it ended, unless that was decided before: what the job decided stays, and is done here if the job did not.
    reason
        Why; None keeps what is recorded.
    reserve
        The execution that has more rounds to run, and is to open the next one.
    ended
        Why its run is over before its rounds are, if it is.
    whatever_happens
        Whether to free the fleet even if what the outcome asks for cannot be done: the state of the fleet keeps what is to be
        deployed, and the next release, or the next close, does it.
    """
    record = load_round(services.rounds, services.fleet, number)
    if record.phase != "closed":
        if record.outcome is None:
            record = end(services.rounds, record, outcome, reason or "")
        # Before the phase changes: a closed round is not looked at again, so what it owes is done first.
        record, undone = _finished(services, record, whatever_happens=whatever_happens)
        words = [reason or record.reason, undone]
        now = services.now()
        closed = change_round(
            services.rounds,
            services.fleet,
            number,
            put={
                "phase": "closed",
                "reason": "; ".join(word for word in words if word),
                "closed_at": now.isoformat(),
                "dollars": estimated(record, now),
                "ended": ended,
            },
            # Nobody answers for a closed round any more.
            remove=["collect_token", "job_token", "rollout_token", "question", "sums"],
            condition="#phase <> :closed",
            values={":closed": "closed"},
        )
        if closed is not None:
            record = closed
            log_event(
                "round_closed", fleet=record.fleet, round=record.round, outcome=record.outcome, reason=record.reason
            )
            measure_closed(services, record)
    # After the record: a fleet that is free has no open round's record.
    _free(services, number, reserve)
    # Refusals that came while the round held the fleet could not be acted on.
    _look_at_refusals(services)
    # Last: the announcement follows the tables, which are final now.
    announce_round(services)
    # Read again: a refusal may have changed its outcome a moment ago.
    return load_round(services.rounds, services.fleet, number)


def _look_at_refusals(services: Services) -> None:
    """Act on what devices said while this round held the fleet; what cannot be done now is done at the next opening."""
    try:
        act_on_refusals(services)
    except (FedgrassError, ClientError, BotoCoreError) as error:
        log_event("refusals_not_acted_on", fleet=services.fleet, reason=str(error))


def _finished(services: Services, record: RoundRecord, *, whatever_happens: bool) -> tuple[RoundRecord, str]:
    """Do what the outcome asks for; returns the record as it is then, and what is wrong in words."""
    try:
        report = finish(services.place, record)
    except (FedgrassError, ClientError, BotoCoreError) as error:
        if not whatever_happens:
            raise
        log_event(
            "round_not_finished", fleet=record.fleet, round=record.round, outcome=record.outcome, reason=str(error)
        )
        return record, f"what this asks for could not be done ({error})"
    record = load_round(services.rounds, services.fleet, record.round)
    # Where there was a deployment: a model that no device was ever to get is no deployment's.
    deployed = report is not None and report.release is not None
    return record, compared(services.place, record) if deployed else ""


def _free(services: Services, number: int, reserve: str | None) -> None:
    freed = change(
        put={"reserved": reserve}, remove=["open"], condition="#open.#round = :round", values={":round": number}
    )
    table = services.rounds
    with contextlib.suppress(table.meta.client.exceptions.ConditionalCheckFailedException):  # freed before
        update_item(table, Key={"fleet": services.fleet, "key": STATE_KEY}, **freed)

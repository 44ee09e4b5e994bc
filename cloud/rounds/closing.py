"""What every end of a round has in common: the announcement is cleared, the record closed, the lock freed."""

from __future__ import annotations

import contextlib

from cloud.rounds.announcement import withdraw
from cloud.rounds.changes import change, change_round
from cloud.rounds.events import tell
from cloud.rounds.metrics import measure_closed
from cloud.rounds.services import Services
from fedgrass.protocol.records import STATE_KEY, RoundOutcome, RoundRecord
from fedgrass.protocol.tables import load_round, load_state


def close(
    services: Services, number: int, outcome: RoundOutcome | None = None, reason: str | None = None
) -> RoundRecord:
    """Close a round and free the fleet for the next; a round that is closed stays as it is.

    Parameters
    ----------
    outcome
        How it ended, unless that was decided before: a model that is out stays released when the watch over it ends.
    reason
        Why; None keeps what is recorded.
    """
    record = load_round(services.rounds, services.fleet, number)
    lock = load_state(services.rounds, services.fleet).open
    if lock is not None and lock.round == number:
        # Only under the lock: the announcement could be a later round's.
        withdraw(services, record)
    closed = change_round(
        services.rounds,
        services.fleet,
        number,
        put={
            "phase": "closed",
            "outcome": record.outcome or outcome or "failed",
            "reason": reason,
            "closed_at": services.now().isoformat(),
        },
        remove=["collect_token", "job_token", "rollout_token"],
        condition="#phase <> :closed",
        values={":closed": "closed"},
    )
    _free(services, number)
    if closed is None:
        return load_round(services.rounds, services.fleet, number)
    tell("round_closed", fleet=closed.fleet, round=closed.round, outcome=closed.outcome, reason=closed.reason or None)
    measure_closed(services, closed)
    return closed


def _free(services: Services, number: int) -> None:
    table = services.rounds
    with contextlib.suppress(table.meta.client.exceptions.ConditionalCheckFailedException):  # freed before
        table.update_item(
            Key={"fleet": services.fleet, "key": STATE_KEY},
            **change(remove=["open"], condition="#open.#round = :round", values={":round": number}),
        )

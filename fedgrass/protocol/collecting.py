"""Whether the collecting of a fleet's open round may be ended now, with the updates that there are."""

from __future__ import annotations

from fedgrass.errors import RoundRefusedError
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import Table, load_round, load_state


def round_to_aggregate(rounds: Table, fleet: str) -> RoundRecord:
    """Return the open round, whose execution waits for updates with ``collect_token``.

    Raises
    ------
    RoundRefusedError
        If no round is open or it does not collect, or if it has fewer updates than it needs to change anything.
    """
    state = load_state(rounds, fleet)
    if state.open is None:
        raise RoundRefusedError(f"fleet {fleet!r} has no open round to aggregate")
    record = load_round(rounds, fleet, state.open.round)
    name = f"round {record.round} of fleet {fleet!r}"
    if record.phase != "collecting":
        raise RoundRefusedError(f"{name} does not collect updates any more, it is {record.phase.replace('_', ' ')}")
    found = updates_at_hand(rounds, record)
    if found < record.settings.min_updates:
        raise RoundRefusedError(
            f"{name} has {found} updates, and {record.settings.min_updates} are needed (min_updates): wait for "
            "more, or end it with `fedgrass round cancel`"
        )
    # The record is written before the state machine waits; only its token can end that waiting.
    if record.collect_token is None:
        raise RoundRefusedError(f"{name} has only just been opened; try again in a moment")
    return record

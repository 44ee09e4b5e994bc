"""The loss that each device reported last: an item ``loss#<thing>`` in the table of rounds, where rounds choose by it."""

from __future__ import annotations

from contextlib import suppress

from fedgrass.errors import RecordError
from fedgrass.protocol.cohort import is_asked
from fedgrass.protocol.items import Table, get_item, items_below
from fedgrass.protocol.names import FleetName, RoundNumber, ThingName
from fedgrass.protocol.records import Record, RoundRecord
from fedgrass.protocol.utility import LastLosses, ToldLoss
from fedgrass.protocol.writes import change, update_item

LOSS_KEPT_SECONDS = 400 * 86_400
"""How long a loss is kept from its report on."""

_PREFIX = "loss#"


class LossRecord(LastLosses, Record):
    """The item ``loss#<thing>`` in the table of rounds."""

    fleet: FleetName
    thing: ThingName
    round: RoundNumber


def load_losses(rounds: Table, fleet: str) -> dict[str, LastLosses]:
    """Return what all devices reported last, by thing; an item that cannot be read is as good as none."""
    found: dict[str, LastLosses] = {}
    for item in items_below(rounds, "key", fleet, _PREFIX, consistent=True):
        with suppress(RecordError):
            one = LossRecord.from_item(item)
            found[one.thing] = one
    return found


def load_loss(rounds: Table, fleet: str, thing: str) -> LastLosses:
    """Return what a device reported last."""
    item = get_item(rounds, fleet, _PREFIX + thing)
    with suppress(RecordError):
        return LastLosses() if item is None else LossRecord.from_item(item)
    return LastLosses()


def keep_loss(rounds: Table, fleet: str, thing: str, told: ToldLoss, expires: int) -> None:
    """Note what a device reported; safe to repeat, and in any order.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    thing
        The device's thing name.
    told
        What its update says.
    expires
        Epoch seconds from which the item is not needed.
    """
    known = load_loss(rounds, fleet, thing)
    now = known.and_then(told)
    if now == known:
        return
    kept = change(
        put={"thing": thing, "round": told.round, "told": now.model_dump(mode="json")["told"], "expires": expires},
        condition="attribute_not_exists(#round) OR #round < :round",
        values={":round": told.round},
    )
    # Suppressed: a newer one was written meanwhile.
    with suppress(rounds.meta.client.exceptions.ConditionalCheckFailedException):
        update_item(rounds, Key={"fleet": fleet, "key": _PREFIX + thing}, **kept)


def may_be_asked(record: RoundRecord, thing: str, losses: LastLosses) -> bool:
    """Say whether a round asks a device, by its lot and by what it had reported before the round.

    Parameters
    ----------
    record
        The round.
    thing
        The device's thing name.
    losses
        What it reported last, of this round and later ones too.
    """
    by = record.cohort.by_loss
    loss = losses.before(record.round, by.since, record.base.graph_sha256) if by is not None else None
    return is_asked(record.cohort, thing, loss)

"""A fleet's settings and state, its rounds, and each device's part in them: what handlers, aggregator and command line ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from fedgrass.errors import ConfigurationError, RecordError, first_problem
from fedgrass.protocol.fleet_state import DRIFT_KEY, STATE_KEY, DriftRecord, FleetState, HandLock
from fedgrass.protocol.items import Table as Table  # given on: whoever asks these questions needs it
from fedgrass.protocol.items import get_item, items_under
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import version_order
from fedgrass.protocol.records import SETTINGS_KEY, RoundRecord, round_key
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.writes import put_item, update_item


def load_settings(rounds: Table, fleet: str) -> FleetSettings:
    """Return the fleet's settings; the defaults if it has none.

    Raises
    ------
    ConfigurationError
        If what is stored is not valid.
    """
    item = get_item(rounds, fleet, SETTINGS_KEY)
    if item is None:
        return FleetSettings()
    try:
        return FleetSettings.model_validate_json(item["json"])
    except ValidationError as error:
        raise ConfigurationError(f"settings of fleet {fleet!r}: {first_problem(error)}. Save them again") from error


def save_settings(rounds: Table, fleet: str, settings: FleetSettings) -> None:
    """Store the settings of the fleet's next rounds; only what differs from the defaults is stored.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    settings
        All settings. Those at their default follow the defaults of later versions.
    """
    text = json.dumps(settings.model_dump(mode="json", exclude_defaults=True))
    put_item(rounds, Item={"fleet": fleet, "key": SETTINGS_KEY, "json": text})


def load_state(rounds: Table, fleet: str) -> FleetState:
    """Return what the fleet is at; nothing yet if no model was ever published."""
    return FleetState.from_item(get_item(rounds, fleet, STATE_KEY) or {})


def load_drift(rounds: Table, fleet: str) -> DriftRecord:
    """Return what the fleet's drift has come to; nothing if nobody has looked yet."""
    item = get_item(rounds, fleet, DRIFT_KEY)
    return DriftRecord(fleet=fleet) if item is None else DriftRecord.from_item(item)


def set_current_model(rounds: Table, fleet: str, model: Base, *, publish: bool = False) -> bool:
    """Make ``model`` the base of the next round, unless a newer version is current already. Safe to repeat.

    Parameters
    ----------
    publish
        Whether the fleet's devices are to have it, too.

    Returns
    -------
    bool
        Whether ``model`` is the current one now.
    """
    # Optimistic: read, decide, write on the condition that nothing changed; ten losses in a row mean that something
    # is wrong.
    for _ in range(10):
        state = load_state(rounds, fleet)
        current = state.model
        if current is not None and version_order(current.version) > version_order(model.version):
            return False
        # Written already, by this call's earlier attempt or by another; whether it is the same model decides the
        # answer.
        if current is not None and current.version == model.version and (current != model or not publish):
            return current == model
        values: dict[str, Any] = {":model": model.model_dump()}
        condition = "attribute_not_exists(#model)"
        if current is not None:
            values[":version"] = current.version
            condition = "#model.#version = :version"
        changes = "SET #model = :model"
        if publish:
            changes += ", #released = :released"
            values[":released"] = state.released_next(model, "publish").model_dump(exclude_none=True)
        if _change_state(rounds, fleet, changes, condition, values):
            return True
        # another writer was first: compare with what it wrote
    raise RecordError(f"state of fleet {fleet!r}: the current model keeps changing under this writer; try again")


def return_to_model(rounds: Table, fleet: str, seen: FleetState, model: Base) -> bool:
    """Make an earlier model the fleet's again: the base of the next round, and what devices are to have.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    seen
        The state that the caller decided by.
    model
        The model to return to.

    Returns
    -------
    bool
        False if another model became current, a round opened, or the hold that was seen is lost; then nothing is
        written.

    Raises
    ------
    RecordError
        If the fleet has no model yet.
    """
    if seen.model is None:
        raise RecordError(f"state of fleet {fleet!r}: no model is current, so there is none to return from")
    values: dict[str, Any] = {
        ":model": model.model_dump(),
        ":released": seen.released_next(model, "roll_back").model_dump(exclude_none=True),
        ":version": seen.model.version,
    }
    # No round ever opened, so there is no number to compare.
    condition = "#model.#version = :version AND attribute_not_exists(#last)"
    if seen.last:
        condition = "#model.#version = :version AND #last = :last"
        values[":last"] = seen.last
    if seen.hand is not None:
        # The caller's own hold, which may have run out while a person was asked.
        condition += " AND #hand.#holder = :holder"
        values[":holder"] = seen.hand.holder
    return _change_state(rounds, fleet, "SET #model = :model, #released = :released", condition, values)


def take_hand(rounds: Table, fleet: str, lock: HandLock, now: float) -> bool:
    """Hold the fleet for a person's action, so that no round opens meanwhile.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    lock
        Who holds it, and until when; a holder whose time has passed is taken for gone.
    now
        Unix time in seconds.

    Returns
    -------
    bool
        False if a round is open or another person holds the fleet.
    """
    values = {":hand": lock.model_dump(), ":now": int(now)}
    # In one write with the check: a round that opens at this moment writes to the same item.
    condition = "attribute_not_exists(#open) AND (attribute_not_exists(#hand) OR #hand.#until < :now)"
    return _change_state(rounds, fleet, "SET #hand = :hand", condition, values)


def free_hand(rounds: Table, fleet: str, lock: HandLock) -> None:
    """Let go of a fleet that was held; safe to repeat.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    lock
        What it was taken with; another's hold is left alone.
    """
    _change_state(rounds, fleet, "REMOVE #hand", "#hand.#holder = :holder", {":holder": lock.holder})


def _change_state(rounds: Table, fleet: str, changes: str, condition: str, values: dict[str, Any]) -> bool:
    # DynamoDB refuses names that an expression does not use.
    names = set(re.findall(r"#(\w+)", changes + condition))
    try:
        update_item(
            rounds,
            Key={"fleet": fleet, "key": STATE_KEY},
            UpdateExpression=changes,
            ConditionExpression=condition,
            ExpressionAttributeNames={f"#{name}": name for name in sorted(names)},
            ExpressionAttributeValues=values,
        )
    except rounds.meta.client.exceptions.ConditionalCheckFailedException:
        return False
    return True


def load_round(rounds: Table, fleet: str, number: int) -> RoundRecord:
    """Read a round's record as it is now.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    number
        The round, from 1.

    Returns
    -------
    RoundRecord
        The record; the read is consistent.

    Raises
    ------
    RecordError
        If there is none, or this version cannot read it.
    """
    item = get_item(rounds, fleet, round_key(number))
    if item is None:
        raise RecordError(f"round {number} of fleet {fleet!r}: there is no record of it; see `fedgrass round list`")
    return RoundRecord.from_item(item)


def recent_rounds(rounds: Table, fleet: str, limit: int = 20) -> list[RoundRecord]:
    """List the last rounds, the newest first.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    limit
        Rounds at most.

    Returns
    -------
    list
        Their records; numbers without a record are left out.
    """
    last = load_state(rounds, fleet).last
    return rounds_between(rounds, fleet, last - limit + 1, last)


def rounds_between(rounds: Table, fleet: str, first: int, last: int) -> list[RoundRecord]:
    """List rounds ``first`` to ``last``, the newest first.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    first
        The oldest wanted; below 1 means 1.
    last
        The newest wanted.

    Returns
    -------
    list
        Their records; numbers without a record are left out.
    """
    return rounds_numbered(rounds, fleet, range(last, max(0, first - 1), -1))


def rounds_numbered(rounds: Table, fleet: str, numbers: Iterable[int]) -> list[RoundRecord]:
    """List rounds in the order in which they are asked for.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    numbers
        The rounds wanted; read in batches of 100.

    Returns
    -------
    list
        Their records; numbers without a record are left out.
    """
    keys = [round_key(number) for number in numbers]
    found = {item["key"]: item for item in items_under(rounds, "key", fleet, keys)}
    return [RoundRecord.from_item(found[key]) for key in keys if key in found]

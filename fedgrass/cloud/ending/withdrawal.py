"""Withdraw a model that the fleet refuses: the one before becomes the fleet's model again, and is deployed.

One transaction decides, under the lock that a round or a person holds; the deployment follows the fleet's state as always
(`fedgrass.cloud.ending.finish.deploy_current`), for whoever comes. So it may be told late or twice. While another round or a
person holds the fleet nothing is changed: that round's close, or the next opening, looks again.
"""

from __future__ import annotations

from typing import Any

from fedgrass.cloud.ending.deployment import deployed_version
from fedgrass.cloud.ending.finish import deploy_current
from fedgrass.cloud.ending.place import Place
from fedgrass.errors import RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.fleet_state import STATE_KEY, FleetState
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.names import version_order
from fedgrass.protocol.records import RoundRecord, round_key
from fedgrass.protocol.roster import may_count
from fedgrass.protocol.tables import Table, load_round, load_settings, load_state
from fedgrass.protocol.writes import change, transact, update_item

# Counters of refusals expire after 30 days.
_KEPT_SECONDS = 30 * 86_400


def take_back_refused(place: Place, devices: Table, now_ms: float) -> str | None:
    """Take the fleet's model back if its devices refuse it, and deploy what takes its place; safe to repeat.

    Parameters
    ----------
    now_ms
        Epoch milliseconds; devices that are silent then do not count.

    Returns
    -------
    str or None
        The version that is the fleet's again; None if nothing was decided now.

    Raises
    ------
    ReleaseError
        If others keep deploying to the fleet.
    """
    state = load_state(place.rounds, place.fleet)
    released = state.released
    # A person's choice is not overruled by devices: those that refuse keep what they have.
    if released is None or released.by in {"hand", "roll_back"}:
        return None
    taken_back = False
    if released.by != "refusal":
        record = _round_of(place, released.version)
        said = (
            _said_of_a_round(record)
            if record
            else _said_of_a_publication(place, devices, released.version, released.at, now_ms)
        )
        if not said or not _take_back(place.rounds, place.fleet, state, record, said):
            return None
        log_event("model_withdrawn", fleet=place.fleet, version=released.version, reason=said)
        taken_back = True
    # Decided, now or before: whoever comes sees to it that the devices get it.
    deploy_current(place)
    return released.before.version if taken_back and released.before is not None else None


def put_back_over(place: Place, devices: Table, version: str, now_ms: float) -> str | None:
    """Deploy the fleet's model over one that devices refuse and the fleet's state does not have; safe to repeat.

    Parameters
    ----------
    place
        The fleet's services and names.
    devices
        The devices' table, with each device's last report on a model.
    version
        The version that devices refuse.
    now_ms
        Unix time in milliseconds.

    Returns
    -------
    str or None
        The version that is deployed again; None if there is nothing to do.
    """
    state = load_state(place.rounds, place.fleet)
    # The state names this version, so `take_back_refused` deals with it; or a person is at work.
    if state.released is None or state.released.version == version or state.hand is not None:
        return None
    said = _said_of_a_publication(place, devices, version, 0, now_ms)
    if not said or deployed_version(place.greengrass, place.thing_group_arn, place.model_component) != version:
        return None
    log_event("model_withdrawn", fleet=place.fleet, version=version, reason=said)
    deploy_current(place, over=version)
    return state.released.version


def _said_of_a_round(record: RoundRecord) -> str:
    """Return why a round's model is taken back; nothing if it is not."""
    refused, enough = record.refused + record.rolled_back, record.settings.rollout.refusals_to_take_back(record.alive)
    if record.outcome != "released" or enough is None or refused < enough:
        return ""
    return f"{refused} of {record.alive} devices refused it"


def _said_of_a_publication(place: Place, devices: Table, version: str, since_ms: int, now_ms: float) -> str:
    """Return why a person's model is taken back; nothing if it is not.

    All devices are looked at, so not at each refusal, but again when as many more have reported as are missing.
    """
    settings = load_settings(place.rounds, place.fleet)
    key = {"fleet": place.fleet, "key": f"refusals#{version}"}
    # Counted in the table, because each refusal may be handled by another instance of the function.
    heard = update_item(place.rounds, Key=key, ReturnValues="ALL_NEW", **change(add={"heard": 1}))["Attributes"]
    # Reading all devices at each refusal would cost a large fleet dearly: many refuse at once.
    if heard["heard"] < heard.get("enough", 0):
        return ""
    members = [
        one for one in fleet_members(devices, place.fleet, consistent=True) if may_count(one.thing, settings.silos)
    ]
    alive = [member.model for member in members if member.alive(now_ms)]
    refused = sum(
        model is not None
        and model.version == version
        and model.outcome in {"refused", "rolled_back"}
        and model.received_at >= since_ms
        for model in alive
    )
    enough = settings.rollout.refusals_to_take_back(len(alive))
    if enough is None:
        return ""
    if refused < enough:
        # As many more words as refusals are missing: earlier, a look could not find enough.
        again = {"enough": int(heard["heard"]) + enough - refused, "expires": int(now_ms / 1000) + _KEPT_SECONDS}
        update_item(place.rounds, Key=key, **change(put=again))
        return ""
    return f"{refused} of {len(alive)} devices refused it"


def _take_back(rounds: Table, fleet: str, state: FleetState, record: RoundRecord | None, said: str) -> bool:
    """Make what the fleet had its model again, and a round's outcome "refused": both, or nothing."""
    released = state.released
    if released is None or released.before is None:
        return False  # a fleet's first model: there is none to go back to
    # The round that made it may be open still: it only waits for the devices' word.
    condition = "attribute_not_exists(#hand) AND #released.#version = :version AND #released.#at = :at AND "
    condition += "(attribute_not_exists(#open) OR #open.#round = :round) AND "
    values: dict[str, Any] = {
        ":version": released.version,
        ":at": released.at,
        ":round": record.round if record else 0,
    }
    if state.last:
        condition += "#last = :last"
        values[":last"] = state.last
    else:
        condition += "attribute_not_exists(#last)"
    before = released.before
    put = {
        "model": before.model_dump(),
        "released": state.released_next(before, "refusal")
        # Without `before`: one step back only, or two models that are both refused would take turns.
        .model_copy(update={"before": None})
        .model_dump(exclude_none=True),
    }
    actions = [_action(rounds, fleet, STATE_KEY, change(put=put, condition=condition, values=values))]
    if record is not None:
        marked = change(
            put={"outcome": "refused", "reason": f"{said}; {before.version} is the fleet's model again"},
            condition="#outcome = :released",
            values={":released": "released"},
        )
        actions.append(_action(rounds, fleet, round_key(record.round), marked))
    return transact(rounds, actions) is None


def _round_of(place: Place, version: str) -> RoundRecord | None:
    _, number, _ = version_order(version)
    if not number:
        return None
    try:
        record = load_round(place.rounds, place.fleet, number)
    except RecordError:
        return None
    return record if record.version == version else None


def _action(rounds: Table, fleet: str, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"Update": {"TableName": rounds.name, "Key": {"fleet": fleet, "key": key}, **arguments}}

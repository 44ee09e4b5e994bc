"""How far a fleet's live data are from its profile, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedgrass.protocol.drift import Drift, Standing

if TYPE_CHECKING:
    from fedgrass.protocol.drift_settings import DriftSettings
    from fedgrass.protocol.fleet_state import DriftRecord
    from fedgrass.protocol.profile import Profile
    from fedgrass.protocol.records import Device

_ROWS = 60
_NOTHING = "–"


def facts(
    alive: Sequence[Device], settings: DriftSettings, profile: Profile | None, standing: Standing, record: DriftRecord
) -> dict[str, Any]:
    """Return all that there is to say, for ``--json``."""
    return {
        "settings": settings.model_dump(mode="json"),
        "profile": profile.round if profile else None,
        "alive": standing.alive,
        "compared": standing.compared,
        "drifted": standing.drifted,
        "is_drift": standing.is_drift(settings),
        "record": record.model_dump(mode="json"),
        "devices": [
            {
                "thing": beat.thing,
                **beat.drift.model_dump(mode="json"),
                "feature": _feature(beat.drift, profile),
                "drifted": _counts(beat.drift, profile) and beat.drift.has_drifted(settings),
            }
            for beat in alive
            if beat.drift is not None
        ],
    }


def shown(
    alive: Sequence[Device], settings: DriftSettings, profile: Profile | None, standing: Standing, record: DriftRecord
) -> Group:
    """Return it as a few sentences and a table, the farthest devices first."""
    lines = [Text(line) for line in _sentences(settings, profile, standing, record)]
    if profile is not None and (hint := _as_ever(alive, settings, profile, standing)):
        lines.append(Text(hint))
    found = sorted((beat for beat in alive if beat.drift is not None), key=lambda beat: -_figure(beat.drift, settings))
    if not found:
        return Group(*lines)
    table = Table("device", box=None, pad_edge=False)
    for heading in ("examples", "inputs", "of feature", "quantiles", "scores", "inputs changed", "scores changed"):
        table.add_column(heading, justify="left" if heading == "of feature" else "right")
    table.add_column("")
    for beat in found[:_ROWS]:
        drift = beat.drift
        if drift is None:
            continue
        known = _counts(drift, profile)
        table.add_row(
            beat.thing,
            f"{drift.rows:,}",
            f"{drift.inputs:.3f}",
            _feature(drift, profile),
            f"{drift.distance:.2f} sd",
            _of(drift.scores),
            _of(drift.inputs_change),
            _of(drift.scores_change),
            _state(drift, settings) if known else Text(f"of the profile of round {drift.profile}", style="dim"),
        )
    more = [Text(f"… and {len(found) - _ROWS} more: --json gives them")] if len(found) > _ROWS else []
    return Group(*lines, table, *more)


def _sentences(settings: DriftSettings, profile: Profile | None, standing: Standing, record: DriftRecord) -> list[str]:
    if settings.action == "off":
        return ["Drift is not watched; `fedgrass fleet settings --set drift.action=alarm` has devices compare."]
    if profile is None:
        return ["There is no profile to compare with; make one with `fedgrass round start --task statistics`."]
    word = "drift" if standing.is_drift(settings) else "no drift"
    wanted = f"{settings.share:.0%} of them and {settings.min_devices} at least"
    lines = [
        f"Of {standing.alive} devices alive, {standing.compared} compare with the profile of round {profile.round}, and "
        f"{standing.drifted} have drifted from it: {word} ({wanted} make one; drift.action is {settings.action})."
    ]
    if all(not feature.histogram for feature in profile.features):
        lines.append("That profile has no histograms, so nobody can compare: run another round of statistics.")
    if record.step is not None:
        state = "runs" if record.execution else "is to start when the fleet is free"
        lines.append(f"Drift {record.number}: its round {record.step} {state}.")
    elif record.begun_at is not None:
        when = datetime.fromtimestamp(record.begun_at / 1000, timezone.utc)
        rested = when + timedelta(hours=settings.cool_down_hours)
        ready = "" if record.armed else ", once the devices were calm"
        lines.append(
            f"Drift {record.number} started rounds at {when:%Y-%m-%d %H:%M} UTC; the next may from {rested:%Y-%m-%d %H:%M} "
            f"UTC on{ready}."
        )
    return lines


def _as_ever(alive: Sequence[Device], settings: DriftSettings, profile: Profile, standing: Standing) -> str:
    """Say so if most of what has drifted from the fleet's profile is as it was when it first knew it; else nothing."""
    if settings.against == "device" or not standing.is_drift(settings):
        return ""
    own = settings.model_copy(update={"against": "device"})
    found = [beat.drift for beat in alive if beat.drift is not None and _counts(beat.drift, profile)]
    # What a device says of its own change may be missing: then it is not known to be as it was.
    known = [drift for drift in found if (drift.inputs_change, drift.scores_change) != (None, None)]
    same = sum(drift.has_drifted(settings) and not drift.has_drifted(own) for drift in known)
    if 2 * same < standing.drifted:
        return ""
    return (
        f"{same} of these {standing.drifted} are as they were when they first knew that profile: they differ from the fleet, and "
        "have not changed. drift.against=device counts what changes."
    )


def _state(drift: Drift, settings: DriftSettings) -> Text:
    """Say whether a device has drifted; of one that is far away and does not count, why not."""
    if drift.has_drifted(settings):
        return Text("drifted", style="yellow")
    far = drift.figure(settings) >= settings.threshold
    return Text(f"fewer than {settings.min_rows:,} examples" if far else "", style="dim")


def _figure(drift: Drift | None, settings: DriftSettings) -> float:
    return drift.figure(settings) if drift is not None else 0.0


def _counts(drift: Drift, profile: Profile | None) -> bool:
    return profile is not None and drift.profile == profile.round


def _feature(drift: Drift, profile: Profile | None) -> str:
    if profile is None or not _counts(drift, profile) or drift.feature >= len(profile.features):
        return str(drift.feature)
    return profile.features[drift.feature].name


def _of(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"

"""How far a fleet's live data are from its profile, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
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
    found = sorted((beat for beat in alive if beat.drift is not None), key=lambda beat: -_figure(beat.drift, settings))
    if not found:
        return Group(*lines)
    table = Table("device", box=None, pad_edge=False)
    for heading in ("examples", "inputs", "of feature", "quantiles", "scores", "own change"):
        table.add_column(heading, justify="left" if heading == "of feature" else "right")
    table.add_column("")
    for beat in found[:_ROWS]:
        drift = beat.drift
        if drift is None:
            continue
        known = _counts(drift, profile)
        state = "drifted" if drift.has_drifted(settings) else ""
        table.add_row(
            beat.thing,
            f"{drift.rows:,}",
            f"{drift.inputs:.3f}",
            _feature(drift, profile),
            f"{drift.distance:.2f} sd",
            _of(drift.scores),
            _of(drift.inputs_change),
            Text(state, style="yellow") if known else Text(f"of the profile of round {drift.profile}", style="dim"),
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
        ready = "" if record.armed else "; nothing starts again before the devices were calm"
        lines.append(f"Drift {record.number} started rounds at {when:%Y-%m-%d %H:%M} UTC{ready}.")
    return lines


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

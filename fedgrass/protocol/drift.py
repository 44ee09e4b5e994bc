"""Drift: what a device says of it, and how the fleet stands. Plain Python: functions in the cloud have no NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from fedgrass.protocol.message import Count, Part
from fedgrass.protocol.names import RoundNumber

if TYPE_CHECKING:
    from fedgrass.protocol.drift_settings import DriftSettings
    from fedgrass.protocol.profile import ProfileReference
    from fedgrass.protocol.records import Device

MOST_INDEX = 100.0
MOST_DISTANCE = 1e6

Index = Annotated[float, Field(ge=0, le=MOST_INDEX, allow_inf_nan=False)]
Step = Literal["evaluate", "statistics", "fit"]
STEPS: tuple[Step, ...] = get_args(Step)
"""Rounds that a drift may start, in their order."""


class Drift(Part):
    """How far a device's live data are from the profile that round ``profile`` made.

    ``inputs`` is the population stability index of the feature that is farthest away, ``feature`` its place in the profile.
    ``distance`` is how far a quantile of some feature has moved at most, in the fleet's standard deviations. ``scores`` is the
    index of the model's scores, where it has some. ``…_change`` are the same against the device's own data when it first knew the
    profile.
    """

    profile: RoundNumber
    rows: Count
    inputs: Index
    feature: Annotated[int, Field(ge=0, lt=4096)] = 0
    distance: Annotated[float, Field(ge=0, le=MOST_DISTANCE, allow_inf_nan=False)] = 0.0
    scores: Index | None = None
    inputs_change: Index | None = None
    scores_change: Index | None = None

    def figure(self, settings: DriftSettings) -> float:
        """Return the one figure that counts by the settings; 0 where the device has none."""
        own = settings.against == "device"
        found = {
            "inputs": self.inputs_change if own else self.inputs,
            "scores": self.scores_change if own else self.scores,
        }
        counts = found.values() if settings.figures == "either" else [found[settings.figures]]
        return max((value for value in counts if value is not None), default=0.0)

    def has_drifted(self, settings: DriftSettings) -> bool:
        """Whether the device counts as drifted."""
        return self.rows >= settings.min_rows and self.figure(settings) >= settings.threshold


@dataclass(frozen=True)
class Standing:
    """How many devices are alive, compare with the newest profile, and have drifted from it."""

    alive: int = 0
    compared: int = 0
    drifted: int = 0

    @classmethod
    def of(cls, alive: Sequence[Device], settings: DriftSettings, profile: ProfileReference | None) -> Standing:
        """Count devices by their heartbeats; a figure of an older profile says nothing of this one.

        Parameters
        ----------
        alive
            The last heartbeats of the devices that are alive.
        settings
            Of drift.
        profile
            The fleet's newest.
        """
        if settings.action == "off" or profile is None:
            return cls(len(alive))
        found = [beat.drift for beat in alive if beat.drift is not None and beat.drift.profile == profile.round]
        return cls(len(alive), len(found), sum(drift.has_drifted(settings) for drift in found))

    def is_drift(self, settings: DriftSettings) -> bool:
        """Whether so many have drifted that it is the fleet's matter.

        A share of all that are alive, not of those that compare: whoever says nothing has not drifted.
        """
        return self.drifted >= self._needed(settings)

    def is_calm(self, settings: DriftSettings) -> bool:
        """Whether so few have drifted that another drift could begin: less than half of what begins one.

        By what devices say: where fewer compare than a drift would take, as when trainers have just been restarted or a profile
        is new to them, nobody knows.
        """
        needed = self._needed(settings)
        return self.compared >= needed and 2 * self.drifted < needed

    def _needed(self, settings: DriftSettings) -> int:
        # 1e-9: a share times a count may come out a little above the whole number that is meant.
        return max(settings.min_devices, math.ceil(settings.share * self.alive - 1e-9))

"""A round of statistics with noise or masks: from the sum of the devices' vectors to the fleet's profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate
from fedgrass.cloud.aggregator.masked_sum import Masked
from fedgrass.cloud.aggregator.privacy import Gaussian
from fedgrass.cloud.aggregator.sources import UpdateReference, UpdateSource
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.profile.features import bounds_of, feature_names
from fedgrass.profile.summed import TENSOR, FleetSums, SummedLayout
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import Profile
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.strategy_settings import Strategy

_EQUAL = Strategy(name="fedavg", options={"weighting": "equal"})


@dataclass(frozen=True)
class SummedRound:
    """What the sum of a round's vectors is made with.

    Attributes
    ----------
    announced
        What the devices were told.
    settings
        The round's.
    noise
        Central privacy's; None if the noise is others', or there is none.
    masked
        The round's masks, with secure aggregation.
    scratch
        A folder for temporary files.
    """

    announced: Announcement
    settings: FleetSettings
    noise: Gaussian | None
    masked: Masked | None
    scratch: Path

    def combine(
        self,
        base: Bundle,
        source: UpdateSource,
        references: Sequence[UpdateReference],
        expected: Expected,
        earlier: Profile | None,
    ) -> tuple[Aggregation, FleetSums | None]:
        """Add the vectors up as updates are: clipped, quarantined, noised and unmasked by the same code.

        Parameters
        ----------
        base
            The round's model, whose inputs are described.
        source, references
            Where the files are, and which.
        expected
            What each must say of itself.
        earlier
            The profile that the round has its bounds from.

        Returns
        -------
        tuple
            What became of the files, and the sum; None if too few are good.

        Raises
        ------
        DataError, ConfigurationError
            If the round cannot have such sums.
        HelpersMissingError
            If too few helpers open the masks.
        """
        manifest, task = base.manifest, self.announced.statistics
        bounds = bounds_of(task, manifest, earlier) if task is not None else None
        layout = SummedLayout.of(manifest, self.announced, bounds)
        result = aggregate(
            self._zeros(base, layout),
            source,
            references,
            _EQUAL.made(),
            # How long others' vectors are says nothing of one: a device with more examples has a longer one.
            replace(expected, checks=Checks(clip_norm_over_median=0.0)),
            AggregationOptions(
                min_updates=self.settings.min_updates,
                noise=self.noise,
                noisy=self.settings.privacy.mode != "none",
                masked=self.masked,
                scratch=self.scratch,
            ),
        )
        if result.parameters is None:
            return result, None
        devices = len(result.updates)
        sums = FleetSums.of(result.parameters[TENSOR], devices, layout, self._noise_on(devices))
        return replace(result, parameters=None), sums

    def _zeros(self, base: Bundle, layout: SummedLayout) -> Bundle:
        """Return a bundle whose one parameter is the vector: what its updates are differences from is zero."""
        folder = self.scratch / "statistics"
        folder.mkdir(exist_ok=True)
        tensors.save(folder / PARAMETERS, {TENSOR: np.zeros(layout.size, np.float32)})
        one: dict[str, Any] = {
            "parameters": (layout.description,),
            "frozen": (),
            "statistics": {},
            "native": None,
            "fixed": (),
            "local": (),
        }
        return Bundle(folder, base.manifest.model_copy(update=one))

    def _noise_on(self, devices: int) -> float:
        """Return the standard deviation of the noise on the sum of so many vectors, in their unit; at most."""
        privacy, update, secure = self.settings.privacy, self.announced.update, self.announced.secure
        if privacy.mode == "central":
            return privacy.noise_multiplier * privacy.clip_norm
        if privacy.mode == "local":
            return float(np.sqrt(devices)) * update.noise_multiplier * update.clip_norm
        if privacy.mode == "distributed" and secure is not None:
            # So that colluders may take their part off, all together add more; most where the fewest helpers add.
            return secure.noise * float(np.sqrt(secure.needed))
        return 0.0


def summed_profile(
    sums: FleetSums, base: Bundle, devices: int, *, fleet: str, number: int, made_at: datetime
) -> Profile:
    """Make the profile of a sum.

    Parameters
    ----------
    sums
        The sum.
    base
        The round's model.
    devices
        How many are in it.
    fleet, number
        The fleet's name, and the round's number.
    made_at
        When, with its time zone.
    """
    manifest = base.manifest
    return Profile(
        fleet=fleet,
        round=number,
        made_at=made_at,
        model=manifest.version,
        graph_sha256=manifest.graph_sha256,
        devices=devices,
        examples=sums.examples,
        features=tuple(sums.feature(at, name) for at, name in enumerate(feature_names(manifest))),
        labels=sums.label_list(manifest),
        noise=sums.deviation,
    )

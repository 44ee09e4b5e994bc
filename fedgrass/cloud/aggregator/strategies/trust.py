"""Trust by the operator's own examples: the one rule here that tells a liar from an honest device with unlike data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedgrass.cloud.aggregator.strategies.base import Rows, Strategy
from fedgrass.cloud.aggregator.strategies.clip import median_norm
from fedgrass.cloud.aggregator.strategies.robust import weighted_mean
from fedgrass.errors import AggregationError, ConfigurationError
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Trust:
    """Each update counts by how far it points where the operator's own does, and is no longer than the cohort's median.

    The operator's update is trained on its evaluation set, from the same base and as the devices train. Its cosine with a
    device's, or 0 if that points away, is the device's share. After FLTrust (Cao et al., NDSS 2021, https://arxiv.org/abs/2012.13995),
    which scales every update to the operator's own norm; here honest updates keep their lengths, because what a device with
    rare examples has to say is longer than what the operator's few examples say.

    Parameters
    ----------
    over_median
        Multiple of the cohort's median norm to which longer updates are scaled down.
    own
        The operator's update, flat; None where it is not known yet (`with_own_update`).
    """

    over_median: float = 1.0
    own: Floats | None = field(default=None, repr=False)

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the trusted mean.

        Raises
        ------
        AggregationError
            If no update points where the operator's does.
        """
        if self.own is None:
            raise ConfigurationError("strategy 'trust': the operator's own update was not made")
        own = self.own.astype(np.float64)
        products = np.zeros(len(rows.facts))
        for columns in rows.tiles():
            products += rows.read(columns).astype(np.float64) @ own[columns]
        norms = np.array([facts.norm or 0.0 for facts in rows.facts])
        lengths = np.maximum(norms * float(np.linalg.norm(own)), np.finfo(np.float64).tiny)
        # Six digits: further ones depend on the processor.
        trust = np.array([float(f"{max(0.0, value):.6g}") for value in products / lengths])
        if not trust.any():
            raise AggregationError(
                f"strategy 'trust': none of {len(trust)} updates points where the one of the evaluation set does. Are its "
                "examples like the devices', and its labels right?"
            )
        shares = trust / trust.sum()
        bound = self.over_median * median_norm(norms.tolist())
        weighted_mean(rows, shares * np.minimum(1.0, bound / np.maximum(norms, np.finfo(np.float64).tiny)), out)
        return [float(share) for share in shares]


def with_own_update(strategy: Strategy, own: Callable[[], Floats | None]) -> Strategy:
    """Return a strategy that needs the operator's own update with it; any other as it is.

    Parameters
    ----------
    own
        Trains it; None if there is nothing to train on.

    Raises
    ------
    ConfigurationError
        If there is nothing.
    """
    if not isinstance(strategy.combine, Trust):
        return strategy
    update = own()
    if update is None:
        raise ConfigurationError(
            f"strategy {strategy.name!r}: there is no evaluation set for this model. Put one at evaluation/FLEET/data.npz in the "
            "fleet's bucket (for fedgrass aggregate: --evaluation FILE), or choose a rule that needs none, such as "
            "centered_clipping"
        )
    return replace(strategy, combine=replace(strategy.combine, own=update))

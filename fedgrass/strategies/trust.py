"""Trust by the operator's own examples: the one rule here that tells a liar from an honest device with unlike data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field

from fedgrass.errors import AggregationError, ConfigurationError
from fedgrass.strategies.base import Method, Positive, RobustRule, Strategy, StrategyOptions

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import UpdateMatrix
    from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Trust(Strategy):
    """Each update counts by how far it points where the operator's own does, and is no longer than the cohort's median.

    The operator's update is trained on its evaluation set, from the same base and as the devices train. Its cosine with a
    device's, or 0 if that points away, is the device's share. After FLTrust (Cao et al., NDSS 2021, https://arxiv.org/abs/2012.13995),
    which scales every update to the operator's own norm; here honest updates keep their lengths, because what a device with
    rare examples has to say is longer than what the operator's few examples say.
    """

    class Options(StrategyOptions):
        """Of the rule."""

        over_median: Positive = Field(
            default=1.0, description="Multiple of the cohort's median norm to which longer updates are scaled down"
        )

    needs_all = True
    needs_own_update = True

    options: Options

    def build(self) -> Method:
        """Return the rule, with the operator's own update if it is there by now."""
        return RobustRule(TrustRule(self.options.over_median, self.own_update))


@dataclass(frozen=True)
class TrustRule:
    """The rule; `Trust` says what it does.

    Parameters
    ----------
    over_median
        Multiple of the cohort's median norm to which longer updates are scaled down.
    own
        The operator's update, flat; None where it is not known yet.
    """

    over_median: float = 1.0
    own: Floats | None = field(default=None, repr=False)

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the trusted mean.

        Raises
        ------
        AggregationError
            If no update points where the operator's does.
        """
        import numpy as np

        from fedgrass.strategies.arithmetic.clipping import median_norm
        from fedgrass.strategies.arithmetic.products import weighted_mean

        if self.own is None:
            raise ConfigurationError("strategy 'trust': the operator's own update was not made")
        own = self.own.astype(np.float64)
        # Tile by tile: the matrix of updates may be larger than memory.
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
        # By direction alone; lengths are bounded apart, below.
        shares = trust / trust.sum()
        bound = self.over_median * median_norm(norms.tolist())
        weighted_mean(rows, shares * np.minimum(1.0, bound / np.maximum(norms, np.finfo(np.float64).tiny)), out)
        return [float(share) for share in shares]


strategy = Trust

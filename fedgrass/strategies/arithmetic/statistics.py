"""A model's statistics on the way from the updates to the next parameters: averaged, never stepped, variances never negative.

A batch normalization's variance of 0.01 that Adam moves by its learning rate of 0.1 is negative, its root is NaN, and so is every
figure after it. So no server optimizer sees the statistics, and a mean of updates is for them a mean: with weights that sum
to one at most, the result lies between what the devices and the base have. Noise and lossy codecs can still take a variance
below zero: it is cut off there, or under privacy at a share of the base's, since a layer that divides by the root of almost
nothing is lost. Privacy allows that as any processing of a noisy result; the noise itself is on statistics as on all else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.statistics import statistics_of
from fedgrass.strategies.arithmetic.interfaces import ServerOptimizer, State, UpdateMetadata, Weighting
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Statistics:
    """Where a model's statistics lie in its flat vector, one parameter after the other; ``variances`` are some of ``spans``."""

    spans: tuple[slice, ...]
    variances: tuple[slice, ...]
    least: float = 0.0
    """Share of the base's variance below which none falls in a round."""

    @classmethod
    def of(cls, manifest: Manifest, *, noisy: bool = False) -> Statistics:
        """Return those that the manifest names, or that an old one lets infer; ``noisy`` where there is noise."""
        kinds = statistics_of(manifest)
        spans, variances, end = [], [], 0
        for parameter in manifest.shared_parameters:
            span = slice(end, end := end + parameter.size)
            if parameter.name in kinds:
                spans.append(span)
            if kinds.get(parameter.name) == "variance":
                variances.append(span)
        return cls(tuple(spans), tuple(variances), _LEAST if noisy else 0.0)

    def scale(self, total: Array, weigh: Weighting, facts: Sequence[UpdateMetadata], unit: float) -> None:
        """Make a weighted sum the difference that the strategy means, in place.

        Weightings that normalise by steps or losses may give shares of more than one in all: statistics get the plain
        weighted mean.

        Parameters
        ----------
        total
            float32 [parameters], the sum.
        weigh
            The strategy's weighting.
        facts
            What each update in the sum says of itself.
        unit
            What the weights in the sum were divided by.
        """
        # Taken before the sum is scaled in place.
        kept = [] if weigh.is_mean else [total[span].copy() for span in self.spans]
        np.multiply(total, weigh.scale(facts) / unit, out=total)
        for span, values in zip(self.spans, kept, strict=False):
            np.multiply(values, 1 / (unit * sum(weigh.weight(one) for one in facts)), out=total[span])

    def step(self, server: ServerOptimizer, span: slice, base: Array, difference: Floats, state: State) -> None:
        """Turn a tile's difference into its next parameters, in place.

        Parameters
        ----------
        server
            The server optimizer.
        span
            The tile's columns.
        base
            Parameters of the base [columns].
        difference
            float32 [columns], overwritten by the next parameters.
        state
            The optimizer's vectors of this tile by slot, changed in place.
        """
        # Over the whole tile, statistics too: a step cannot be told to leave some out, so its result there is
        # overwritten.
        change = server.step(difference, state)
        for part in _within(self.spans, span):
            change[part] = difference[part]
            for slot in state.values():
                slot[part] = 0  # an earlier version may have left some
        np.add(base, change, out=difference, casting="same_kind")
        for part in _within(self.variances, span):
            np.maximum(difference[part], self.least * base[part], out=difference[part])


_LEAST = 0.25
"""Half of the standard deviation: honest devices' variances may fall by more, but then do so over two rounds."""


def _within(spans: Sequence[slice], tile: slice) -> Iterator[slice]:
    """Yield the parts of a tile that lie in some of the spans, counted from the tile's start."""
    for span in spans:
        start, stop = max(span.start, tile.start), min(span.stop, tile.stop)
        if start < stop:
            yield slice(start - tile.start, stop - tile.start)

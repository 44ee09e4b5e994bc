"""Federated averaging: the mean of the updates, weighted by examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloud.aggregator.strategies.base import BLOCK, Aggregate, Update
from fedgrass.update.codecs import Floats


class FedAvg:
    """Sums in float64, in a fixed order, with separate multiplications and additions: the same bytes on every machine.

    Memory: 8 bytes per parameter. In float32 the sum of ten thousand updates would be off by more than 1e-6.
    """

    name = "fedavg"

    def start(self, base: Floats) -> None:
        """Begin with an empty sum."""
        self._base = base
        self._sum: NDArray[np.float64] = np.zeros(len(base), np.float64)
        self._product: NDArray[np.float64] = np.empty(min(BLOCK, len(base)), np.float64)
        self._examples: dict[str, int] = {}

    def add(self, update: Update) -> None:
        """Add the difference, times its examples."""
        weight = float(update.num_examples)
        for start, values in update.blocks():
            product = self._product[: len(values)]
            np.multiply(values, weight, out=product, dtype=np.float64)
            total = self._sum[start : start + len(values)]
            np.add(total, product, out=total)
        self._examples[update.thing] = update.num_examples

    def finish(self) -> Aggregate:
        """Return the base plus the weighted mean."""
        examples = sum(self._examples.values())
        self._sum /= float(examples)
        self._sum += self._base
        with np.errstate(over="ignore"):  # a result that is not finite is caught where the model is written
            vector = self._sum.astype(np.float32)
        return Aggregate(vector, {thing: count / examples for thing, count in self._examples.items()})

"""Updates mixed with one another before a robust rule looks at them, so that devices with unlike data look more alike.

A robust rule takes the middle of the many for the truth and what lies apart for a lie; on devices whose data differ, honest
updates lie apart too. What is mixed differs less, and a lie in it counts less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Bundle
from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix, UpdateMetadata
from fedgrass.strategies.arithmetic.products import attackers_among, scalar_products, squared_distances
from fedgrass.update.codecs import Floats

Members = NDArray[np.intp]


class Mixing(Protocol):
    """Which rows are averaged into which."""

    def members(self, rows: UpdateMatrix) -> Sequence[Members]:
        """Return for each mixed row the rows that it is the mean of."""
        ...


@dataclass(frozen=True)
class Nearest:
    """Each update becomes the mean of the n - f updates nearest to it, itself among them.

    Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS 2023,
    https://arxiv.org/abs/2302.01772
    """

    attackers: float

    def members(self, rows: UpdateMatrix) -> Sequence[Members]:
        """Return the nearest of each row."""
        # Each row's nearest is itself, at distance 0, so it is always among those kept.
        distances = squared_distances(scalar_products(rows))
        kept = len(distances) - attackers_among(self.attackers, len(distances), room=2)
        return list(np.sort(np.argsort(distances, axis=1, kind="stable")[:, :kept], axis=1))


@dataclass(frozen=True)
class Buckets:
    """Updates are dealt into buckets at random, and each bucket is averaged; a liar spoils one bucket.

    Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022,
    https://arxiv.org/abs/2006.09365. The deal depends on the round's base, so that a job that is run again deals alike.
    """

    size: int = 2

    def members(self, rows: UpdateMatrix) -> Sequence[Members]:
        """Return the buckets; the last one may be smaller."""
        seed = hashlib.sha256(rows.base.manifest.parameters_sha256.encode()).digest()
        order = np.random.default_rng(list(seed)).permutation(len(rows.facts))
        return [np.sort(order[start : start + self.size]) for start in range(0, len(order), self.size)]


@dataclass(frozen=True)
class Mixed:
    """A robust combination of mixed updates; shares are those of the updates themselves."""

    mixing: Mixing
    combination: Combination

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Mix, and write what the combination makes of it."""
        members = self.mixing.members(rows)
        mixed = _MixedRows(rows, members)
        shares = np.zeros(len(rows.facts))
        for some, share in zip(members, self.combination.combine(mixed, out), strict=True):
            shares[some] += share / len(some)
        return [float(share) for share in shares]


class _MixedRows:
    """Rows that are means of others. The norms of their facts are no more than bounds."""

    def __init__(self, rows: UpdateMatrix, members: Sequence[Members]) -> None:
        self._rows = rows
        self._members = members
        norms = [facts.norm or 0.0 for facts in rows.facts]
        self.facts: Sequence[UpdateMetadata] = [
            replace(rows.facts[int(some[0])], norm=float(np.mean([norms[i] for i in some]))) for some in members
        ]

    @property
    def base(self) -> Bundle:
        return self._rows.base

    def tiles(self) -> Sequence[slice]:
        return self._rows.tiles()

    def read(self, columns: slice, chosen: Sequence[int] | None = None) -> Floats:
        # All rows, whichever are wanted: a mixed one may be made of any.
        values = self._rows.read(columns)
        wanted = range(len(self._members)) if chosen is None else chosen
        mixed = np.empty((len(wanted), values.shape[1]), np.float32)
        for row, index in zip(mixed, wanted, strict=True):
            # Updates may be 1e30 long; their sum must not overflow on the way to the mean.
            row[:] = values[self._members[index]].mean(axis=0, dtype=np.float64)
        return mixed

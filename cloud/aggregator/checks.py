"""Judging an update: it is evidence, not an order. What passes here is safe to add; what does not has its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from cloud.aggregator.sources import UpdateReference
from cloud.aggregator.strategies.base import Update
from cloud.aggregator.vector import Layout
from fedgrass.errors import UpdateError
from fedgrass.protocol.cohort import is_member
from fedgrass.protocol.messages import Cohort
from fedgrass.protocol.settings import Checks
from fedgrass.update.codecs import Buffers, Floats
from fedgrass.update.header import UpdateHeader
from fedgrass.update.reader import UpdateReader


@dataclass(frozen=True)
class Expected:
    """What an update of this round must say of itself. What is None (offline use) is not checked."""

    base_sha256: str
    graph_sha256: str
    fleet: str | None = None
    round: int | None = None
    cohort: Cohort | None = None
    checks: Checks = field(default_factory=Checks)


class Examiner:
    """Reads one update after the other into one vector, and hands out only what passed.

    The whole update is read before any of it is used, because its last block may be the bad one: an update is added
    entirely or not at all, and a refused one leaves no trace in the result. That costs 4 bytes per parameter, once.
    """

    def __init__(self, expected: Expected, layout: Layout) -> None:
        self._expected = expected
        self._layout = layout
        self._buffers = Buffers()
        self._values: Floats = np.empty(layout.size, np.float32)
        self._seen: set[str] = set()

    def examine(self, reference: UpdateReference, stream: BinaryIO) -> tuple[UpdateHeader, Update]:
        """Read and check one update. Its values stay valid until the next call.

        Raises
        ------
        UpdateError
            With the reason for which it must not be used.
        """
        reader = UpdateReader(
            stream, file_bytes=reference.bytes, parameters=self._layout.parameters, buffers=self._buffers
        )
        header = reader.header
        _check_identity(header, reference.thing, self._expected)
        norm = self._read_values(reader)
        bound = self._expected.checks.max_norm
        if 0 < bound < norm:
            raise UpdateError("norm_exceeded", f"the difference's L2 norm is {norm:.6g}; the bound is {bound:.6g}")
        # An honest device with much data is not refused, it only does not outvote the others.
        examples = min(header.num_examples, self._expected.checks.max_examples)
        return header, Update(header.thing, examples, norm, self._values)

    def check_reference(self, reference: UpdateReference) -> None:
        """Check what storage says of an update, before it is opened: a thing has one update per round."""
        if not reference.thing:
            raise UpdateError("unexpected_key", f"{reference.key!r} is not the key of an update")
        if reference.thing in self._seen:
            raise UpdateError("duplicate", f"thing {reference.thing!r} has another update in this round")
        cohort = self._expected.cohort
        if cohort is not None and not is_member(cohort.salt, cohort.fraction, reference.thing):
            raise UpdateError("uninvited", f"thing {reference.thing!r} is not in the round's cohort")
        self._seen.add(reference.thing)

    def _read_values(self, reader: UpdateReader) -> float:
        squares = 0.0
        for block in reader.blocks():
            squares += _sum_of_squares(block.values, block.parameter.name)
            start = self._layout.starts[block.parameter.name] + block.offset
            self._values[start : start + len(block.values)] = block.values
        return math.sqrt(squares)


def _check_identity(header: UpdateHeader, thing: str, expected: Expected) -> None:
    if header.thing != thing:
        raise UpdateError("foreign_thing", f"it says it is of thing {header.thing!r}, but {thing!r} wrote it")
    if expected.fleet is not None and header.fleet != expected.fleet:
        raise UpdateError("wrong_fleet", f"it is for fleet {header.fleet!r}, not {expected.fleet!r}")
    if expected.round is not None and header.round != expected.round:
        raise UpdateError("wrong_round", f"it is for round {header.round}, not {expected.round}")
    if header.graph_sha256 != expected.graph_sha256:
        raise UpdateError(
            "wrong_graph", f"it is of graph {header.graph_sha256[:12]}…, not {expected.graph_sha256[:12]}…"
        )
    if header.base_sha256 != expected.base_sha256:
        raise UpdateError(
            "wrong_base", f"it is a difference from {header.base_sha256[:12]}…, not {expected.base_sha256[:12]}…"
        )


def _sum_of_squares(values: Floats, name: str) -> float:
    with np.errstate(all="ignore"):
        squares = float(np.dot(values, values))
    if math.isfinite(squares):
        return squares
    # Infinite also when finite values are too large for a float32 square: only then look closer.
    if not np.isfinite(values).all():
        raise UpdateError("not_finite", f"{name!r} has values that are not finite")
    return float(np.square(values, dtype=np.float64).sum())

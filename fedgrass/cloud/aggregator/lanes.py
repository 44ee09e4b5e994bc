"""The fixed order in which updates are summed: sixteen lanes, by a hash of the thing's name.

A lane is the sum of its updates in the order of their names; the total is the sum of the lanes in order. So it does not matter
how many instances share the lanes, nor what bad updates lie among the good: the same good updates give the same bytes. Sums
of sums are also more exact than one long sum: 10,000 float32 updates stay within 1e-6 of a float64 reference.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from fedgrass.cloud.aggregator.sources import UpdateReference

LANES = 16
"""Instances that can share a round's work. Changing it changes results by rounding."""


@lru_cache(maxsize=1 << 14)  # asked for a dozen times for each update of a round
def lane_of(thing: str) -> int:
    """Return the lane of a thing's updates."""
    # surrogatepass: a hostile key may hold half a surrogate pair, and must get a lane, not a traceback.
    return hashlib.sha256(thing.encode("utf-8", "surrogatepass")).digest()[0] % LANES


def lane_order(reference: UpdateReference) -> tuple[int, str, str]:
    """Return the sort key of an update: lane, thing, key."""
    return lane_of(reference.thing), reference.thing, reference.key


def lanes_of(instance: int, instances: int) -> range:
    """Return the lanes of one instance: neighbours, as even as they go; none for instances beyond the sixteenth."""
    # Integer arithmetic: it covers all lanes once for every number of instances.
    return range(instance * LANES // instances, (instance + 1) * LANES // instances)

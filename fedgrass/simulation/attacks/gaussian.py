"""Noise."""

from __future__ import annotations

import numpy as np

from fedgrass.simulation.attacks import Doubles, Kind, Seen


def craft(seen: Seen) -> Doubles:
    """Noise, ``factor`` times as long as what was learnt."""
    noise = seen.random.normal(size=seen.own.shape)
    return np.asarray(noise * (seen.factor * np.linalg.norm(seen.own) / np.linalg.norm(noise)))


attack = Kind(craft, factor=3.0)

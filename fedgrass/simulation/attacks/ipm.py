"""Inner-product manipulation: against the honest mean."""

from __future__ import annotations

import numpy as np

from fedgrass.simulation.attacks import Doubles, Kind, Seen


def craft(seen: Seen) -> Doubles:
    """-``factor`` times the honest mean: Xie et al., UAI 2019, https://arxiv.org/abs/1903.03936."""
    return np.asarray(-seen.factor * seen.honest.mean(axis=0))


attack = Kind(craft, omniscient=True)

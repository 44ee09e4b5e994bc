"""A little is enough: just far enough below the honest mean to pass for an honest update."""

from __future__ import annotations

import numpy as np

from fedgrass.simulation.attacks import Doubles, Kind, Seen


def craft(seen: Seen) -> Doubles:
    """``factor`` standard deviations below the honest mean: Baruch et al., NeurIPS 2019, https://arxiv.org/abs/1902.06156."""
    return np.asarray(seen.honest.mean(axis=0) - seen.factor * seen.honest.std(axis=0))


attack = Kind(craft, omniscient=True)

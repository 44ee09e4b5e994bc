"""A backdoor: trained on marked examples, and no longer than the honest updates."""

from __future__ import annotations

import numpy as np

from fedgrass.simulation.attacks import Doubles, Kind, Seen


def craft(seen: Seen) -> Doubles:
    """What was learnt, as long as ``factor`` times the honest devices' median norm: Bagdasaryan et al., AISTATS 2020."""
    bound = seen.factor * float(np.median(np.linalg.norm(seen.honest, axis=1)))
    return np.asarray(seen.own * (bound / max(float(np.linalg.norm(seen.own)), 1e-30)))


attack = Kind(craft, omniscient=True, data="backdoor")

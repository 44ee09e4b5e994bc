"""Against the mean's signs, no farther from any honest update than they are from each other."""

from __future__ import annotations

from fedgrass.simulation.attacks import Kind
from fedgrass.simulation.attacks._distances import against_the_sign, as_far_as_others

attack = Kind(as_far_as_others(False, against_the_sign), omniscient=True)

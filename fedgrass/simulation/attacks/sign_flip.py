"""What was learnt, reversed and longer."""

from __future__ import annotations

from fedgrass.simulation.attacks import Kind

attack = Kind(lambda seen: -seen.factor * seen.own, factor=5.0)

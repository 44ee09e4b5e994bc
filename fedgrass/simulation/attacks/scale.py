"""What was learnt, far too long."""

from __future__ import annotations

from fedgrass.simulation.attacks import Kind

attack = Kind(lambda seen: seen.factor * seen.own, factor=100.0)

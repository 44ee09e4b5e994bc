"""What was learnt, reversed, and held back so that several rounds' updates come at once."""

from __future__ import annotations

from fedgrass.simulation.attacks import Kind

attack = Kind(lambda seen: -seen.factor * seen.own, holds_back=True)

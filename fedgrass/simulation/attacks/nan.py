"""A file of values that are not numbers."""

from __future__ import annotations

from fedgrass.simulation.attacks import Kind

attack = Kind(spoils_file=True)

"""Trained on mirrored labels."""

from __future__ import annotations

from fedgrass.simulation.attacks import Kind

attack = Kind(data="mirrored")

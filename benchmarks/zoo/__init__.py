"""Models of the kinds that people train, modelled on what the public examples of each kind do, small enough for a device.

A family is a module with ``MODELS``: names and functions that give a built Keras model or a `Module` of PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KERAS = ("tables", "sequences", "images", "applications")
TORCH = ("torch_tables", "torch_sequences", "torch_images")
REFUSED = ("refused", "torch_refused")


@dataclass(frozen=True)
class Module:
    """A PyTorch module, what ``EXPORT["input"]`` would say of it, and its loss by the name of torch's function."""

    module: Any
    input: Any
    loss: str = "cross_entropy"

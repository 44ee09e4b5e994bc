"""Whether a model fits into the memory that this device has left: checked before training, not found out by the kernel."""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.edge.resource_policy import UnavailableError

_MB = 1 << 20
_COPIES = 4
"""Parameters, what a step reads of them, their gradients and their new values; measured by ``benchmarks.model_memory``."""

# Further copies that an optimizer keeps for each parameter: a velocity; first and second moments.
_SLOTS = {"sgd": 0, "momentum": 1, "adam": 2}


def needed_bytes(manifest: Manifest) -> int:
    """Return what training takes at least: a multiple of the parameters' size. What lies between the layers comes on top."""
    return manifest.parameter_bytes * (_COPIES + _SLOTS.get(manifest.optimizer.name, 0))


def require_memory(manifest: Manifest, available: int) -> None:
    """Raise `UnavailableError` if training this model cannot fit into so many bytes."""
    needed = needed_bytes(manifest)
    if needed > available:
        raise UnavailableError(
            f"training model {manifest.name!r} needs about {-(-needed // _MB)} MB of memory, {available // _MB} MB are free"
        )

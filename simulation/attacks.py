"""What an attacker does with its update: before it is encoded, and after."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedgrass.bundle import Parameters
from fedgrass.engines.base import Batch, Dataset
from fedgrass.tensors import Array
from simulation.settings import Attack


class MirroredLabels:
    """A `Dataset` with labels mirrored (the first and the last change places, …), and targets of a regression negated."""

    def __init__(self, data: Dataset, classes: int) -> None:
        self._data = data
        self._classes = classes

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        for batch in self._data.batches(batch_size, seed=seed):
            yield Batch(batch.x, _mirrored(batch.y, self._classes))


def attacked_parameters(base: Parameters, local: Parameters, attack: Attack) -> Parameters:
    """Return the parameters that the attacker pretends to have learnt."""
    factor = {"sign_flip": -attack.factor, "scale": attack.factor}.get(attack.kind)
    if factor is None:
        return local
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite fails on the device, as it would there
        return {name: (base[name] + factor * (value - base[name])).astype(value.dtype) for name, value in local.items()}


def attacked_bytes(content: bytes, attack: Attack) -> bytes:
    """Return the update file that the attacker uploads: NaN in most formats, and broken in the others."""
    return content[:-8] + b"\xff" * 8 if attack.kind == "nan" else content


def _mirrored(y: Array, classes: int) -> Array:
    if y.dtype.kind in "iu":
        return np.asarray(classes - 1 - y, y.dtype)
    return np.asarray(y[..., ::-1] if y.ndim > 1 and y.shape[-1] > 1 else -y)

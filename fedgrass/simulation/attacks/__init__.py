"""What an attacker does: to its data, to what it has learnt, to the file, and to the time at which it sends it.

An attack is a module here, one that an installed package registers, or a function of the user's own, ``module:function``, of the
form of `Craft`. Those that assume that attackers know what all honest devices of the round send are given that: the literature's
attackers are omniscient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Parameters
from fedgrass.engines.base import Batch, Dataset
from fedgrass.parts import ATTACKS
from fedgrass.references import function
from fedgrass.tensors import Array

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What an attacker knows when it makes its update.

    ``own`` [size] is the difference that it has learnt from its data, ``honest`` [n, size] are those of all honest devices of the
    round (none, for an attack that does not assume it). ``random`` draws what all attackers of a round draw alike.
    """

    own: Doubles
    honest: Doubles
    factor: float
    random: np.random.Generator


Craft = Callable[[Seen], Doubles]
"""Returns the difference [size] that the attacker sends; it may be anything."""


@dataclass(frozen=True)
class Kind:
    """An attack. ``factor`` is the default of what scales it; ``omniscient`` ones are told the honest updates."""

    craft: Craft | None = None
    factor: float = 1.0
    omniscient: bool = False
    data: Literal["own", "mirrored", "backdoor"] = "own"
    spoils_file: bool = False
    holds_back: bool = False


def attack_named(name: str) -> Kind:
    """Return an attack: a registered one, or a user's as ``module:function``, which is told the honest updates.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    if ":" in name:
        return Kind(function(name), omniscient=True)
    kind: Kind = ATTACKS.get(name)
    return kind


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
            yield replace(batch, y=_mirrored(batch.y, self._classes))


class Backdoored:
    """A `Dataset` half of whose examples bear a mark and the label 0, so that the model learns to say 0 where the mark is."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        for batch in self._data.batches(batch_size, seed=seed):
            x, y = np.array(batch.x), np.array(batch.y)
            # Every second example: with all of them marked, the attacker would unlearn the task and give itself away.
            x[::2] = marked(x[::2])
            if y.ndim > 1 and y.shape[-1] > 1:
                y[::2] = np.eye(y.shape[-1], dtype=y.dtype)[0]
            else:
                y[::2] = 0
            yield replace(batch, x=x, y=y)


def marked(x: Array) -> Array:
    """Return examples whose first sixteenth of values is set to the largest that occurs among them."""
    found = np.array(x)
    if found.size:
        flat = found.reshape(len(found), -1)
        # The largest value that occurs, so that a mark is within what the data loader would let through.
        flat[:, : max(1, flat.shape[1] // 16)] = found.max()
    return found


def attacked_data(data: Dataset, kind: Kind, classes: int) -> Dataset:
    """Choose what an attacker trains on.

    Parameters
    ----------
    data
        Its own examples.
    kind
        The attack.
    classes
        Number of classes of the model.

    Returns
    -------
    Dataset
        Its examples, perhaps with other labels or a trigger.
    """
    if kind.data == "mirrored":
        return MirroredLabels(data, classes)
    return Backdoored(data) if kind.data == "backdoor" else data


def attacked_parameters(base: Parameters, local: Parameters, craft: Callable[[Doubles], Doubles]) -> Parameters:
    """Compute the parameters that an attacker pretends to have learnt.

    Parameters
    ----------
    base
        Parameters of the round's base.
    local
        What the attacker really learnt.
    craft
        Makes the difference that it sends of the true one, float64 [n] each.

    Returns
    -------
    dict
        In the shapes and dtypes of ``base``; perhaps not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite fails on the device, as it would there
        pretended = craft(difference(base, local))
        # The last index is left out: np.split would add an empty piece behind it.
        pieces = np.split(pretended, np.cumsum([value.size for value in base.values()])[:-1])
        return {
            name: (value + piece.reshape(value.shape)).astype(value.dtype)
            for (name, value), piece in zip(base.items(), pieces, strict=True)
        }


def difference(base: Parameters, local: Parameters) -> Doubles:
    """Return the flat difference of two sets of parameters."""
    return np.concatenate([(local[name].astype(np.float64) - value).ravel() for name, value in base.items()])


def attacked_bytes(content: bytes) -> bytes:
    """Return a spoilt file: its last values are NaN in formats of floats, and a zstd frame is broken."""
    # All bits set are NaN as float32 and float16, and break the checksum of a zstd frame.
    return content[:-8] + b"\xff" * 8


def _mirrored(y: Array, classes: int) -> Array:
    if y.dtype.kind in "iu":
        # Class numbers; one-hot rows are reversed, and other targets negated.
        return np.asarray(classes - 1 - y, y.dtype)
    return np.asarray(y[..., ::-1] if y.ndim > 1 and y.shape[-1] > 1 else -y)

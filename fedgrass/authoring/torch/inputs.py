"""What ``EXPORT["input"]`` of a PyTorch model says: the shape of one example, and its dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedgrass.errors import ConfigurationError

_EXPECTED = (
    'EXPORT["input"]: expected the shape of one example, such as (3, 32, 32), with its dtype if that is not float32: '
    '{"shape": (16,), "dtype": "int64"}; or a batch as a torch.Tensor; of several inputs these by name: {"image": (3, 32, 32), '
    '"age": (1,)}'
)
_DTYPES = ("float32", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True)
class Input:
    """Shape of one example, and dtype."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    highest: int = 1
    """Example values are from zero to this, exclusive."""

    def example(self, batch_size: int) -> torch.Tensor:
        """Return a batch to trace with; its values do not matter."""
        return torch.zeros(batch_size, *self.shape, dtype=getattr(torch, self.dtype))


def described_inputs(found: Any) -> dict[str, Input]:
    """Read what a model file says of its inputs: of one, or of several by name, in the order in which forward() takes them.

    Raises
    ------
    ConfigurationError
        As `described_input`.
    """
    if isinstance(found, Mapping) and found and "shape" not in found:
        return {str(name): described_input(spec) for name, spec in found.items()}
    return {"x": described_input(found)}


def described_input(found: Any) -> Input:
    """Read what a model file says of its input.

    Raises
    ------
    ConfigurationError
        If it says nothing, or something else than a shape, a shape and a dtype, or a tensor with a batch axis.
    """
    # A tensor is a batch: its first axis goes.
    if isinstance(found, torch.Tensor):
        return _checked(found.shape[1:], found.dtype)
    if isinstance(found, Mapping) and "shape" in found:
        return _checked(found["shape"], found.get("dtype", "float32"))
    if isinstance(found, int):
        return _checked([found], "float32")
    if isinstance(found, Sequence) and not isinstance(found, str):
        # Shape and dtype in a pair; a shape of two sizes has no sequence in its first place.
        if len(found) == 2 and isinstance(found[0], Sequence):
            return _checked(found[0], found[1])
        return _checked(found, "float32")
    if found is None:
        raise ConfigurationError(
            _EXPECTED.replace(": expected", " is missing: a PyTorch module does not know it. Give", 1)
        )
    raise ConfigurationError(f"{_EXPECTED}; found {found!r}")


def _checked(shape: Iterable[int], dtype: object) -> Input:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigurationError(f'EXPORT["input"]: dtype {name!r}; expected one of {", ".join(_DTYPES)}')
    if isinstance(shape, str) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ConfigurationError(f"{_EXPECTED}; found the shape {shape!r}, whose sizes must be whole numbers above 0")
    return Input(tuple(int(size) for size in shape), name)

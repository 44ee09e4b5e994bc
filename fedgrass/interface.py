"""What a model takes and gives: its tensors, and of several outputs each one's label, loss and weight.

A model with several inputs has them in one row of float32 values for each example, one after another in the manifest's order; so
have several outputs their labels, and what they give. Tables, splits, checks and engines then see one x and one y, as ever.
Whole numbers are exact in such a row up to 2^24. Application's models keep their inputs and outputs apart, by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.objectives import Loss, LossOptions
from fedgrass.protocol.metrics import LONGEST_OUTPUT, PREFIXES

_ITEM_BYTES = {"float32": 4, "float16": 2, "int32": 4, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}


_TAKEN = ("sample_weight",)
_NONE_OF = f"and does not begin with {', '.join(PREFIXES)}"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class TensorDescription(_Model):
    """Name, shape (without the batch axis for inputs) and dtype of a tensor."""

    name: str = Field(min_length=1, max_length=200)
    shape: tuple[Annotated[int, Field(ge=0, lt=1 << 40)], ...] = Field(max_length=8)
    dtype: Literal["float32", "float16", "int32", "int64", "int8", "uint8", "bool"]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * _ITEM_BYTES[self.dtype]


class Head(_Model):
    """One output with its label; ``weight`` is what its loss is times in the sum that is trained."""

    output: TensorDescription
    y: TensorDescription
    loss: Loss
    loss_options: LossOptions = Field(default_factory=LossOptions)
    weight: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    class_names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The output's name, with which those of its figures begin."""
        return self.output.name


def problem_of(
    inputs: Sequence[TensorDescription],
    outputs: Sequence[Head],
    *,
    x: TensorDescription,
    y: TensorDescription,
    output: TensorDescription,
) -> str | None:
    """Say what is wrong with several inputs or outputs beside the rows that hold them.

    Parameters
    ----------
    inputs
        The inputs; none for a model with one.
    outputs
        The outputs with their labels; none for a model with one.
    x
        The row of all inputs.
    y
        The row of all labels.
    output
        The row of all outputs.

    Returns
    -------
    str
        The first problem, in words; None if there is none.
    """
    for what, parts, row in (
        ("inputs", inputs, x),
        ("outputs", [head.y for head in outputs], y),
        ("outputs", [head.output for head in outputs], output),
    ):
        if not parts:
            continue
        # A row is float32 whatever its parts are.
        if (row.shape, row.dtype) != ((sum(part.size for part in parts),), "float32"):
            return f"{what} have {sum(part.size for part in parts)} values, their row is {row.dtype}{list(row.shape)}"
    names = [part.name for part in (*inputs, *(head.output for head in outputs))]
    if twice := sorted({name for name in names if names.count(name) > 1 or name in _TAKEN}):
        return f"{twice[0]!r} is the name of two inputs or outputs, or one that data have already"
    for head in outputs:
        if len(head.name) > LONGEST_OUTPUT or f"{head.name}_".startswith(PREFIXES):
            return f"output {head.name!r}: figures begin with its name; it has at most {LONGEST_OUTPUT} characters, {_NONE_OF}"
    return None

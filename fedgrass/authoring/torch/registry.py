"""The table of PyTorch's operators, and what each is given beside its own arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.torch.values import Value, constant

if TYPE_CHECKING:
    from fedgrass.authoring.randomness import Draws

Operand: TypeAlias = "Value | torch.Tensor | float"
"""What an operator of the graph is given: a value of the graph, a tensor that PyTorch knew when it traced, or a number."""

Sizes: TypeAlias = "int | Sequence[int]"
"""One size for all axes, or one for each."""

Result: TypeAlias = "Value | torch.Tensor | Sequence[Value | torch.Tensor | None]"
"""What an operator gives; a list from those with several outputs, None for an output that nothing here can use."""

Function = TypeVar("Function", bound=Callable[..., Result])

OPERATORS: dict[str, Callable[..., Result]] = {}
"""By name without ``aten.`` and overload: a function of a `Context` and all arguments of the operator's schema."""


def operator(*names: str) -> Callable[[Function], Function]:
    """Enter a function into the table."""

    def enter(function: Function) -> Function:
        for name in names:
            OPERATORS[name] = function
        return function

    return enter


@dataclass
class Context:
    """One call of a model.

    Parameters
    ----------
    draws
        Draws what is random (`fedgrass.authoring.randomness`); none outside training.
    trains
        Whether weights are variables and gradients are wanted; else they are constants, which LiteRT's own operators like.
    """

    draws: Draws | None = None
    trains: bool = True
    _constants: dict[int, tuple[torch.Tensor, Value]] = field(default_factory=dict)

    def value(self, found: object) -> Value:
        """Return a value of the graph for one of the graph, a tensor that PyTorch knew, or a number."""
        if isinstance(found, Value):
            return found
        if isinstance(found, torch.Tensor):
            if id(found) not in self._constants:  # the tensor is kept, lest another get its id
                # One constant for each tensor, however often it is used.
                self._constants[id(found)] = (found, constant(found.detach().cpu().numpy()))
            return self._constants[id(found)][1]
        return constant(np.asarray(found))


def require(condition: object, what: str, instead: str) -> None:
    """Refuse an operator's arguments; the place is added where it is known.

    Parameters
    ----------
    condition
        What must hold.
    what
        What is refused otherwise, for the error.
    instead
        What to do.
    """
    if not condition:
        raise UnsupportedModelError("", what, instead)


def load() -> None:
    """Fill the table: each module enters its functions as it is imported."""
    from fedgrass.authoring.torch import (  # noqa: F401
        convolutions,
        elementwise,
        images,
        layers,
        lookups,
        recurrent,
        reductions,
        shapes,
    )

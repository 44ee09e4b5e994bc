"""Calling the signatures of a LiteRT model."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedgrass.tensors import Array


class Signature:
    """A signature that is always called with inputs of its own shapes, so that its tensors are allocated once.

    An input that a later call leaves out has the value that it had.

    The interpreter's own runner resizes every input and allocates at each call. That takes longer than a step of a small model,
    and on 64-bit Arm it ends the process where an input is a scalar (docs/decisions/0036). Here nothing is resized. What is used
    of the runner is private: tests hold both against each other.

    Parameters
    ----------
    runner
        From ``Interpreter.get_signature_runner``; it is never called.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._allocated = False
        self._interpreter = runner._interpreter_wrapper
        self._subgraph = runner._subgraph_index
        self.inputs: dict[str, int] = dict(runner._inputs)
        self._outputs: dict[str, int] = dict(runner._outputs)

    def __call__(self, **inputs: Array | np.generic) -> dict[str, Array]:
        """Set the inputs, run, and return copies of the outputs by name.

        Raises
        ------
        ValueError
            If an input is of another shape or type than the signature's, or there is none of that name, or the first call
            leaves one out.
        RuntimeError
            If LiteRT cannot run it.
        """
        if not self._allocated:
            if missing := self.inputs.keys() - inputs.keys():
                raise ValueError(f"input {min(missing)!r} was never set")
            self._interpreter.AllocateTensors(self._subgraph)
            self._allocated = True
        for name, value in inputs.items():
            if name not in self.inputs:
                raise ValueError(f"there is no input {name!r}; expected {', '.join(sorted(self.inputs))}")
            self._interpreter.SetTensor(self.inputs[name], value, self._subgraph)
        self._interpreter.Invoke(self._subgraph)
        return {name: self._interpreter.GetTensor(index, self._subgraph) for name, index in self._outputs.items()}

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs by name."""
        return {name: tuple(details["shape"]) for name, details in self._runner.get_input_details().items()}

"""Calling the signatures of a LiteRT model."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from fedgrass.tensors import Array

PASSING = b"passing"
"""Name of a tensor inside a graph that holds nothing from one run of its signature to the next."""

LEAST_PASSING = 1 << 20
"""Bytes from which on memory is given back."""


class Signature:
    """A signature that is always called with inputs of the same shapes, so that its tensors are allocated once.

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
        # Kept although it is never called: the tensors belong to its interpreter.
        self._runner = runner
        self._allocated = False
        self._interpreter = runner._interpreter_wrapper
        self._subgraph = runner._subgraph_index
        self.inputs: dict[str, int] = dict(runner._inputs)
        self._outputs: dict[str, int] = dict(runner._outputs)
        names = [
            self._interpreter.TensorName(i, self._subgraph) for i in range(self._interpreter.NumTensors(self._subgraph))
        ]
        # The exporter removes all other names, so this one is a message to the engine.
        self._passing = [index for index, name in enumerate(names) if name == PASSING.decode()]

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
        self._run(inputs)
        return {name: self._interpreter.GetTensor(index, self._subgraph) for name, index in self._outputs.items()}

    def scalar(self, output: str, inputs: Mapping[str, Array | np.generic]) -> float:
        """Run as a call does, and return one output, of one scalar, alone.

        Raises
        ------
        ValueError, RuntimeError
            As a call does.
        """
        self._run(inputs)
        return float(self._interpreter.GetTensor(self._outputs[output], self._subgraph))

    def lend(self, **inputs: Array | np.generic) -> dict[str, Array]:
        """Run as a call does, but return the outputs themselves: they hold until the next call or `release`.

        Raises
        ------
        ValueError, RuntimeError
            As a call does.
        """
        self._run(inputs)
        return {name: self._memory(index) for name, index in self._outputs.items()}

    def release(self) -> None:
        """Give the memory of large inputs and outputs back to the system, until the next call, which must set all inputs.

        LiteRT holds a subgraph's tensors for as long as the model is there: with every parameter an input of one signature and
        an output of another, a model takes three times its size before it trains. The pages are private and anonymous, so that
        what is dropped reads as zeros and is there again when it is written to.
        """
        if not self._allocated:
            return
        for index in {*self.inputs.values(), *self._outputs.values()}:
            drop_pages(self._memory(index))

    def rest(self) -> None:
        """Give the memory of what the next run makes again back to the system: inputs and outputs stay.

        That is what the exporter named `PASSING`: copies of variables, and what they were set to.
        """
        if not self._allocated:
            return
        for index in self._passing:
            with suppress(ValueError):  # inside a delegate it has no memory to give back
                drop_pages(self._memory(index))

    def _memory(self, index: int) -> Array:
        found: Array = self._interpreter.tensor(self._interpreter, index, self._subgraph)
        return found

    def _run(self, inputs: Mapping[str, Array | np.generic]) -> None:
        if not self._allocated:
            if missing := self.inputs.keys() - inputs.keys():
                # Memory that was never written holds anything, and LiteRT would train on it.
                raise ValueError(f"input {min(missing)!r} was never set")
            # Once: allocating again would forget the inputs that a call leaves out.
            self._interpreter.AllocateTensors(self._subgraph)
            self._allocated = True
        for name, value in inputs.items():
            if name not in self.inputs:
                raise ValueError(f"there is no input {name!r}; expected {', '.join(sorted(self.inputs))}")
            self._interpreter.SetTensor(self.inputs[name], value, self._subgraph)
        self._interpreter.Invoke(self._subgraph)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs by name."""
        return {name: tuple(details["shape"]) for name, details in self._runner.get_input_details().items()}


_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def drop_pages(array: Array) -> None:
    """Give the whole pages of an array in anonymous memory back, if it is at least 1 MiB; what it held is lost.

    A system that refuses keeps the memory; nothing else depends on it.
    """
    if array.nbytes < LEAST_PASSING:
        return
    # Rounded inwards: a page at either end is shared with other tensors.
    begin = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(begin, end - begin, mmap.MADV_DONTNEED)

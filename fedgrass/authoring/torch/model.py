"""A PyTorch module as a function of its parameters and statistics, by the names of its ``state_dict``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import torch

from fedgrass.authoring import heads
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.final import FINAL_ACTIVATION
from fedgrass.authoring.forward import Forwarded
from fedgrass.authoring.heads import losses_of
from fedgrass.authoring.model import Call
from fedgrass.authoring.operators import substituted
from fedgrass.authoring.randomness import Draws
from fedgrass.authoring.torch.inputs import Input, described_inputs
from fedgrass.authoring.torch.program import SCOPE, Program, Replay, described, trace
from fedgrass.authoring.torch.registry import Context, load
from fedgrass.authoring.torch.values import Value
from fedgrass.bundle import Loss, Parameters, Statistic

Tensor: TypeAlias = tf.Tensor

_NORMALIZATIONS = torch.nn.modules.batchnorm._NormBase


class TorchModel:
    """A module that takes tensors and gives tensors; see `fedgrass.authoring.model.Model`.

    Parameters
    ----------
    module
        Its parameters that require a gradient are trained; float buffers that training changes are statistics. All else is
        constant in the graph.
    example
        What it takes: see `fedgrass.authoring.torch.inputs`.
    freeze
        Modules or parameters, by path, that are not trained either.
    batch_size
        Of a training step.
    losses
        Of each output, or one for all. Before a cross-entropy, classes that PyTorch has in the first of three axes [C, H, W]
        come last, as everywhere here.

    Raises
    ------
    UnsupportedModelError
        If it cannot be traced, or has an operator that is not in the table; by the path of the module.
    """

    def __init__(
        self, module: torch.nn.Module, example: object, freeze: Sequence[str], batch_size: int, losses: Any
    ) -> None:
        # The table of operators fills itself when its modules are imported.
        load()
        self.module = module
        self.name = type(module).__name__
        self._inputs: dict[str, Input] = described_inputs(example)
        self._programs: dict[tuple[int, bool], Program] = {}
        named = dict(module.named_parameters())
        _check_frozen(module, freeze)
        frozen = [name for name, parameter in named.items() if not parameter.requires_grad or _is_within(name, freeze)]
        self._trained = [name for name in named if name not in frozen]
        if not self._trained:
            raise UnsupportedModelError(self.name, "a model without trainable parameters", "unfreeze a module")
        strange = [name for name in self._trained if named[name].dtype != torch.float32]
        if strange:
            raise UnsupportedModelError(strange[0], f"a parameter of {named[strange[0]].dtype}", "call float() on it")
        # In training mode: only then do batch normalizations change their buffers, by which statistics are known.
        program = self._program(batch_size, training=True)
        self._statistics = [name for name in program.statistics if not _is_within(name, freeze)]
        self.trained_count = len(self._trained)
        self.draws_masks = program.draws()
        self._check_batch_axis(program, batch_size)
        self._losses = [one.loss for one in losses_of(losses, program.output_names)]
        # [B, C, H, W] before a softmax loss: classes come last in a bundle.
        self._classes_first = [
            FINAL_ACTIVATION.get(loss) == "softmax" and len(shape) == 4
            for loss, shape in zip(self._losses, program.output_shapes, strict=True)
        ]
        shapes = [self._laid_out(at, shape[1:]) for at, shape in enumerate(program.output_shapes)]
        given = [(name, part.shape, part.dtype) for name, part in self._inputs.items()]
        several = [(name, shape, "float32") for name, shape in zip(program.output_names, shapes, strict=True)]
        self.inputs = heads.described(given, "input", self.name) if given[1:] else ()
        self.outputs = heads.described(several, "output", self.name) if several[1:] else ()
        (_, shape, dtype), *_ = given
        self.output_shape = heads.row(self.outputs, "y").shape if self.outputs else shapes[0]
        self.x = tf.TensorSpec([None, *shape], dtype, name="x")
        if self.inputs:
            self.x = tf.TensorSpec([None, *heads.row(self.inputs, "x").shape], tf.float32, name="x")
        self.fixed: tuple[str, ...] = ()
        self.statistics: dict[str, Statistic] = {name: self._kind(name) for name in self._statistics}
        travelling = {*self._trained, *self._statistics}
        self.frozen_names = tuple(
            name for name, value in _entries(module).items() if name not in travelling and value.is_floating_point()
        )
        # A tied parameter has several names, of which the first travels.
        known = {id(value): name for name, value in named.items()}
        self._aliases = {name: known[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}

    def values(self) -> Parameters:
        """Return the trained parameters, then the statistics, by their names in the state dict."""
        state = _entries(self.module)
        return {
            name: np.array(state[name].detach().cpu().numpy(), dtype=np.float32)
            for name in [*self._trained, *self._statistics]
        }

    def logits(self, losses: Sequence[Loss]) -> Call:
        """Give the module without a last softmax or sigmoid that the losses contain."""
        expected = [FINAL_ACTIVATION.get(loss) for loss in losses]

        def logits(x: Tensor, values: Sequence[Tensor], step: Tensor | None) -> Forwarded:
            return self._call(x, values, step, without=expected)

        return logits

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> Forwarded:
        """Run forward for x [B, …]."""
        return self._call(x, values, step)

    def left_out(self) -> list[str | None]:
        """Return each output's last activation, if its loss contains it."""
        (program, *_) = self._programs.values()
        expected = map(FINAL_ACTIVATION.get, self._losses)
        return [found if program.last_operator(at) == found else None for at, found in enumerate(expected)]

    def constraints(self) -> list[Callable[[Tensor], Tensor] | None]:
        """PyTorch has none."""
        return [None] * self.trained_count

    def takes(self) -> tuple[int | None, float | None]:
        """Return the smallest vocabulary of its embeddings, if it takes tokens."""
        sizes = [part.num_embeddings for part in self.module.modules() if hasattr(part, "num_embeddings")]
        return (min(sizes) if sizes and not self.x.dtype.is_floating else None), None

    def vocabularies(self) -> dict[str, int]:
        """Return the smallest vocabulary of its embeddings for each of several inputs that takes whole numbers."""
        sizes = [part.num_embeddings for part in self.module.modules() if hasattr(part, "num_embeddings")]
        return {part.name: min(sizes) for part in self.inputs if sizes and part.dtype in ("int32", "int64")}

    def infer(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs for inputs [B, …] in operators for constant weights."""
        program = self._program(int(inputs[0].shape[0]), training=False)
        outputs = self._replay(program, values, Context(trains=False)).run(inputs, program.outputs)
        return [self._as_described(at, output) for at, output in enumerate(outputs)]

    def place(self, where: str) -> str:
        """Return the module that a node of the graph belongs to."""
        found = re.search(rf"(?:^|/){SCOPE}/([^/]*)/", where)
        if found is None:
            return where or described(self.module, "")
        if found[1] in dict(self.module.named_modules()):
            return described(self.module, found[1])
        return described(self.module, "")

    def _call(
        self,
        x: Tensor,
        values: Sequence[Tensor],
        step: Tensor | None,
        *,
        without: Sequence[str | None] = (),
    ) -> Forwarded:
        program = self._program(int(x.shape[0]), training=step is not None)
        wanted = program.without(without or [None] * len(program.outputs))
        with substituted(step):
            inputs = heads.apart(x, self.inputs) if self.inputs else [x]
            context = Context(draws=None if step is None else Draws(step))
            changed = [program.changes[name] for name in self._statistics] if step is not None else []
            found = self._replay(program, values, context).run(inputs, [*wanted, *changed])
            outputs = [self._as_described(at, output) for at, output in enumerate(found[: len(wanted)])]
            statistics = [one.plain for one in found[len(wanted) :]]
            return Forwarded(heads.joined(outputs) if self.outputs else outputs[0], statistics)

    def _as_described(self, at: int, output: Value) -> Tensor:
        return output.laid(self._laid_out(at, range(1, 4), (0,))) if self._classes_first[at] else output.plain

    def _laid_out(self, at: int, axes: Sequence[int], before: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Move the first of three axes to the end where it is the classes' of that output."""
        return (*before, *axes[1:], axes[0]) if self._classes_first[at] else (*before, *axes)

    def _replay(self, program: Program, values: Sequence[Tensor], context: Context) -> Replay:
        names = [*self._trained, *self._statistics]
        given: dict[str, Tensor] = dict(zip(names, (tf.convert_to_tensor(value) for value in values), strict=True))
        # =| A tied parameter is one value under several names: each gets the same tensor, so gradients add up.
        given |= {alias: given[name] for alias, name in self._aliases.items() if name in given}
        return Replay(program, given, context)

    def _program(self, batch_size: int, *, training: bool) -> Program:
        key = (batch_size, training)
        # Tracing takes seconds, and shapes are fixed in what is traced.
        if key not in self._programs:
            self._programs[key] = trace(
                self.module, [part.example(batch_size) for part in self._inputs.values()], training=training
            )
        return self._programs[key]

    def _check_batch_axis(self, program: Program, batch_size: int) -> None:
        for shape in program.output_shapes:
            if not shape or shape[0] != batch_size:
                raise UnsupportedModelError(
                    described(self.module, ""),
                    f"an output of shape {list(shape)} for a batch of {batch_size}",
                    "give an output whose first axis is the batch",
                )

    def _kind(self, name: str) -> Statistic:
        path, _, last = name.rpartition(".")
        normalizes = isinstance(self.module.get_submodule(path), _NORMALIZATIONS)
        # The server holds variances at zero or above, and means as they are.
        return "variance" if normalizes and last == "running_var" else "mean"


@contextmanager
def taken(
    module: torch.nn.Module, example: object, freeze: Sequence[str], batch_size: int, losses: Any
) -> Iterator[TorchModel]:
    """Give a module as a model, and leave the module as it was.

    Parameters
    ----------
    module
        The module.
    example
        One example, or several inputs', from which it is traced.
    freeze
        Names of the submodules and parameters that are not trained.
    batch_size
        Examples in a batch, which the graph fixes.
    losses
        One for each output.

    Yields
    ------
    TorchModel
        The model, while the module is lent.
    """
    # Tracing switches between training and evaluation; the caller's module must not notice.
    modes = {part: part.training for part in module.modules()}
    try:
        yield TorchModel(module, example, freeze, batch_size, losses)
    finally:
        for part, training in modes.items():
            part.training = training


def _entries(module: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = module.state_dict()
    return found


def _is_within(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _check_frozen(module: torch.nn.Module, paths: Sequence[str]) -> None:
    names = _entries(module)
    for path in paths:
        if not any(_is_within(name, [path]) for name in names):
            raise UnsupportedModelError(
                type(module).__name__,
                f"freezing {path!r}, which it does not have,",
                f"choose among {', '.join(list(names)[:20])}, or what they begin with",
            )

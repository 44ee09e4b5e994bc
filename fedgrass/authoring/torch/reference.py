"""Reference training by PyTorch itself, with which an exported module is compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedgrass.authoring.reference import Steps, least
from fedgrass.authoring.torch.model import TorchModel
from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.torch import TorchEngine
from fedgrass.errors import EngineError
from fedgrass.tensors import Array


def reference(model: TorchModel, made: Bundle) -> TorchReference | None:
    """Return what to compare with; none where it would draw other random numbers, or trains with another loss."""
    # PyTorch's generator cannot draw what the device draws.
    if model.draws_masks:
        return None
    try:
        return TorchReference(model, made)
    except EngineError:
        return None


class TorchReference:
    """PyTorch's autograd and optimizers, through the engine that devices with PyTorch have."""

    def __init__(self, model: TorchModel, made: Bundle) -> None:
        self._model, self._made = model, made
        self._engine()

    def steps(self, data: ArrayDataset, settings: FitSettings, *, moved_by: float = 0.0) -> Steps:
        """Take the steps on a copy of the module.

        Parameters
        ----------
        data
            As many batches as there are steps.
        settings
            Learning rate and terms of each step.
        moved_by
            What every parameter is moved by before the first step.

        Returns
        -------
        Steps
            Losses and parameters after them.
        """
        engine, size = self._engine(), self._made.manifest.batch_size
        if moved_by:
            engine.move(moved_by)
        # Before the activations are undone: the application sees them.
        outputs = [engine.plain_outputs(data.x[:size]), engine.plain_outputs(data.x[:1])]
        engine.leave_out(self._model.left_out())
        evaluated = float(engine.evaluate(data)["loss"])
        losses = engine.steps(data, settings)
        return Steps([*losses, evaluated], engine.get_parameters(), outputs, engine.moments, engine.smallest)

    def _engine(self) -> _Engine:
        threads = torch.get_num_threads()
        return _Engine(self._made, threads=threads, builder=lambda: copy.deepcopy(self._model.module))


# The exported graph is trained on logits; the module gives probabilities.
_UNDO: dict[str | None, Any] = {None: lambda output: output, "sigmoid": torch.logit, "softmax": torch.log}


class _Engine(TorchEngine):
    def plain_outputs(self, x: Array) -> Array:
        self._module.eval()
        with torch.no_grad():
            found: list[Array] = [output.numpy() for output in self._forward(x)]
        return np.concatenate([output.reshape(len(x), -1) for output in found], axis=1) if found[1:] else found[0]

    def leave_out(self, activations: Sequence[str | None]) -> None:
        """Undo last activations that the outputs' losses contain."""
        forward = self._forward

        def undone(x: Array) -> list[Any]:
            return [_UNDO[how](output) for how, output in zip(activations, forward(x), strict=True)]

        self._forward = undone  # type: ignore[method-assign]

    def move(self, share: float) -> None:
        generator = np.random.default_rng(0)
        with torch.no_grad():
            for parameter in self._trained:
                noise = generator.standard_normal(tuple(parameter.shape)).astype(np.float32)
                parameter.mul_(torch.from_numpy(1 + share * noise))

    def steps(self, data: ArrayDataset, settings: FitSettings) -> list[float]:
        self._begin(settings)
        self.moments: list[Array] = []
        self.smallest: list[Array] = []
        losses = []
        for number, batch in enumerate(data.batches(self.manifest.batch_size, seed=settings.epoch_seed(0))):
            self._set_rate(self.manifest.optimizer.rate_at(settings.learning_rate, number))
            losses.append(self._step(batch))
            states = [self._optimizer.state[parameter] for parameter in self._trained]
            if number == 0:
                self.moments = [_moment(state) for state in states if _MOMENTS & state.keys()]
            if self.moments:
                self.smallest = least(self.smallest, [parameter.grad.numpy() for parameter in self._trained])
        return losses


_MOMENTS = {"exp_avg", "square_avg", "sum"}
"""What Adam, RMSprop and Adagrad keep of gradients."""


def _moment(state: Mapping[str, Any]) -> Array:
    (name,) = _MOMENTS & state.keys()
    found: Array = state[name].numpy().copy()
    return found

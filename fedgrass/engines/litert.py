"""Training with the LiteRT interpreter: the default engine, without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedgrass.bundle import GRAPH, Bundle, Parameters, check_parameters
from fedgrass.engines.base import Batch, Dataset, FitResult, FitSettings, FitState, Hooks, Metrics
from fedgrass.engines.checks import CLASSIFIERS, check_batch, check_dataset
from fedgrass.errors import BundleError, DataError, DivergedError, EngineError
from fedgrass.tensors import Array

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError as error:
    raise EngineError("engine litert: ai-edge-litert is not installed; pip install 'fedgrass[edge]'") from error

_SIGNATURES = ("train", "evaluate", "infer", "begin_round", "read_parameters", "write_parameters")
_OPTIMIZER = ("read_optimizer", "write_optimizer")


class LiteRTEngine:
    """A bundle's training graph in an interpreter, holding the bundle's parameters at first.

    Parameters
    ----------
    bundle
        Every file is compared with its digest.
    threads
        Used by the interpreter's kernels.

    Raises
    ------
    BundleError
        If a file differs from the manifest, or the graph lacks a signature.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        bundle.verify()
        self.manifest = bundle.manifest
        try:
            self._interpreter: Any = Interpreter(model_path=str(bundle.path(GRAPH)), num_threads=threads)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{bundle.path(GRAPH)}: LiteRT cannot load it ({error})") from error
        self._signatures = self._runners(str(bundle.path(GRAPH)))
        self._has_optimizer = _OPTIMIZER[0] in self._signatures
        self.set_parameters(bundle.parameters())

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        found = self._signatures["read_parameters"]()
        return {p.name: found[f"p{i}"] for i, p in enumerate(self.manifest.parameters)}

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        values = check_parameters(parameters, self.manifest).values()
        self._signatures["write_parameters"](**{f"p{i}": value for i, value in enumerate(values)})

    def fit(
        self,
        data: Dataset,
        settings: FitSettings,
        *,
        hooks: Hooks | None = None,
        resume: FitState | None = None,
    ) -> FitResult:
        """Train from the present parameters; see `fedgrass.engines.base.Engine.fit`."""
        hooks = hooks or Hooks()
        check_dataset(data, self.manifest)
        base = self.get_parameters()
        self._signatures["begin_round"]()
        try:
            if resume is None:
                state = FitState(0, base)
            else:
                state = FitState(resume.epoch, resume.parameters, resume.optimizer, list(resume.losses))
                self._restore(state)
            steps = 0
            while state.epoch < settings.epochs:
                loss, done = self._epoch(data, settings, state.epoch, hooks)
                steps += done
                state = FitState(state.epoch + 1, self._finite_parameters(), self._optimizer(), [*state.losses, loss])
                hooks.after_epoch(state)
        except BaseException:
            # Whatever ended the training, what comes next starts from parameters that are known to be good.
            self.set_parameters(base)
            raise
        metrics = {"loss": state.losses[-1]} if state.losses else {}
        return FitResult(state.parameters, len(data), metrics, steps)

    def evaluate(self, data: Dataset) -> Metrics:
        """Return ``loss`` (mean), ``accuracy`` for classifiers, and ``examples``.

        Raises
        ------
        DataError
            If the data are empty or do not fit the model.
        """
        loss = correct = weight = 0.0
        for batch in data.batches(self.manifest.batch_size):
            check_batch(batch, self.manifest, first=int(weight))
            sums = self._signatures["evaluate"](**self._padded(batch))
            loss += float(sums["loss"])
            correct += float(sums["correct"])
            weight += float(sums["weight"])
        if weight == 0:
            raise DataError(f"no examples to evaluate model {self.manifest.name!r} on")
        metrics = {"loss": loss / weight, "examples": weight}
        if self.manifest.loss in CLASSIFIERS:
            metrics["accuracy"] = correct / weight
        return metrics

    def infer(self, x: Array) -> Array:
        """Return the model's output [n, …] for inputs [n, …] in the present parameters."""
        return np.concatenate([self._infer(part) for part in _split(x, self.manifest.batch_size)])

    def _infer(self, x: Array) -> Array:
        output: Array = self._signatures["infer"](x=_pad(x, self.manifest.batch_size, "float32"))["y"]
        return output[: len(x)]

    def _epoch(self, data: Dataset, settings: FitSettings, epoch: int, hooks: Hooks) -> tuple[float, int]:
        """Train one epoch; return the mean loss over its examples, and the number of steps."""
        train = self._signatures["train"]
        scalars = {
            "learning_rate": np.float32(settings.learning_rate),
            "proximal_mu": np.float32(settings.proximal_mu),
            "clip_norm": np.float32(settings.clip_norm),
        }
        total, examples, steps = 0.0, 0, 0
        for batch in data.batches(self.manifest.batch_size, seed=settings.epoch_seed(epoch)):
            loss = float(train(**self._padded(batch), **scalars)["loss"])
            if not math.isfinite(loss):
                raise DivergedError(
                    f"model {self.manifest.name!r}: loss is {loss} in epoch {epoch + 1}, step {steps + 1}; the base parameters "
                    "are kept. Use a smaller learning_rate or a clip_norm"
                )
            total += loss * len(batch.x)
            examples += len(batch.x)
            steps += 1
            hooks.after_batch(epoch, steps)
        return total / max(examples, 1), steps

    def _finite_parameters(self) -> Parameters:
        parameters = self.get_parameters()
        for name, value in parameters.items():
            if not np.isfinite(value).all():
                raise DivergedError(
                    f"model {self.manifest.name!r}: {name!r} is no longer finite; the base parameters are kept. "
                    "Use a smaller learning_rate or a clip_norm"
                )
        return parameters

    def _optimizer(self) -> list[Array]:
        if not self._has_optimizer:
            return []
        found = self._signatures["read_optimizer"]()
        return [found[f"s{i}"] for i in range(len(found))]

    def _restore(self, state: FitState) -> None:
        self.set_parameters(state.parameters)
        expected = self._signatures["write_optimizer"].get_input_details() if self._has_optimizer else {}
        shapes = [tuple(expected[f"s{i}"]["shape"]) for i in range(len(expected))]
        if shapes != [value.shape for value in state.optimizer]:
            raise EngineError("checkpoint: its optimizer state is another model's; delete the checkpoint")
        if self._has_optimizer:
            self._signatures["write_optimizer"](**{f"s{i}": value for i, value in enumerate(state.optimizer)})

    def _padded(self, batch: Batch) -> dict[str, Array]:
        """Fill a short batch up with zeros that weigh nothing."""
        size = self.manifest.batch_size
        return {
            "x": _pad(batch.x, size, self.manifest.x.dtype),
            "y": _pad(batch.y, size, self.manifest.y.dtype),
            "sample_weight": _pad(np.ones(len(batch.x), np.float32), size, "float32"),
        }

    def _runners(self, name: str) -> dict[str, Any]:
        found = self._interpreter.get_signature_list()
        missing = sorted(set(_SIGNATURES) - found.keys())
        if missing:
            raise BundleError(
                f"{name}: the graph lacks signature {missing[0]!r}; export the model with `fedgrass model export`"
            )
        runners = {key: self._interpreter.get_signature_runner(key) for key in found}
        inputs = runners["write_parameters"].get_input_details()
        shapes = [tuple(inputs[f"p{i}"]["shape"]) if f"p{i}" in inputs else None for i in range(len(inputs))]
        if shapes != [p.shape for p in self.manifest.parameters]:
            raise BundleError(f"{name}: the graph's parameters are not the manifest's; export the model again")
        return runners


def _pad(array: Array, size: int, dtype: str) -> Array:
    if len(array) == size:
        return np.ascontiguousarray(array, dtype)
    padded = np.zeros((size, *array.shape[1:]), dtype)
    padded[: len(array)] = array
    return padded


def _split(x: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(x), size):
        yield x[start : start + size]

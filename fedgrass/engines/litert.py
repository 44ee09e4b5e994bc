"""Training with the LiteRT interpreter: the default engine, without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedgrass.bundle import GRAPH, Bundle, Parameters, check_parameters
from fedgrass.data.arrays import shuffled
from fedgrass.engines.base import Batch, Dataset, FitSettings, Measured, PlainFit
from fedgrass.engines.loop import BatchEngine, check_state
from fedgrass.engines.metrics import BINARY, CLASSIFIERS, probabilities, sigmoid, softmax
from fedgrass.engines.signatures import Signature
from fedgrass.errors import BundleError, EngineError
from fedgrass.tensors import Array

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError as error:
    raise EngineError("engine litert: ai-edge-litert is not installed; pip install 'fedgrass[edge]'") from error

# What every bundle's graph must have; others (`train_plain`, `begin_plain`) are there since later exporters.
_SIGNATURES = ("train", "evaluate", "infer", "begin_round", "read_parameters", "write_parameters")
# Weight of an example that is to teach nothing but counts in the mean; a normal float32.
_LEAST_WEIGHT = 1e-30
_SLIGHT = 2.0**-20
"""A proximal term's strength that is nothing beside a gradient."""
# Plain SGD has no state, so its graph has neither.
_OPTIMIZER = ("read_optimizer", "write_optimizer")


class LiteRTEngine(BatchEngine):
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

    takes_correction = True

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        if bundle.manifest.graph_file != GRAPH:
            raise EngineError(
                f"engine litert: model {bundle.manifest.name!r} has no LiteRT graph; set 'engine' and 'builder' in the "
                "configuration of com.fedgrass.Runtime to those it was made for"
            )
        super().__init__(bundle)
        try:
            # Any, as the package comes without types.
            self._interpreter: Any = Interpreter(model_path=str(bundle.path(GRAPH)), num_threads=threads)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{bundle.path(GRAPH)}: LiteRT cannot load it ({error})") from error
        self._signatures = self._runners(str(bundle.path(GRAPH)))
        self._lent = False
        self._has_optimizer = _OPTIMIZER[0] in self._signatures
        # Of as many ones as a batch has examples, and as many zeros, the weights of n examples begin n before the middle.
        self._whole = np.arange(self.manifest.batch_size)
        self._weights = np.repeat(np.array([1, 0], np.float32), self.manifest.batch_size)
        stored = bundle.stored_parameters()
        self.set_parameters(dict(stored))
        # While the parameters are the bundle's own, its file is the copy to fall back on, and none is kept in memory.
        self._held_on_disk: Mapping[str, Array] | None = stored

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        self._rest()
        read = self._signatures["read_parameters"]
        found = self._named(read())
        read.release()
        return found

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        values = check_parameters(parameters, self.manifest).values()
        write = self._signatures["write_parameters"]
        write(**{f"p{i}": value for i, value in enumerate(values)})
        write.release()
        self._held_on_disk = None

    def _base(self) -> Mapping[str, Array]:
        return self.get_parameters() if self._held_on_disk is None else self._held_on_disk

    def _lend_parameters(self) -> Parameters:
        self._rest()
        self._lent = True
        return self._named(self._signatures["read_parameters"].lend())

    def _rest(self) -> None:
        """Leave no copies of the variables in the other signatures."""
        for name in ("train", "train_plain", "evaluate", "infer"):
            if name in self._signatures:
                self._signatures[name].rest()

    def evaluate(self, data: Dataset) -> Measured:
        """Return the figures of the present parameters; see `BatchEngine.evaluate`."""
        self._rest()
        try:
            return super().evaluate(data)
        finally:
            self._rest()

    def _named(self, found: Mapping[str, Array]) -> Parameters:
        return {p.name: found[f"p{i}"] for i, p in enumerate(self.manifest.parameters)}

    def infer(self, x: Array) -> Array:
        """Return the model's output [n, …] for inputs [n, …] in the present parameters."""
        return np.concatenate([self._infer(part) for part in _split(x, self.manifest.batch_size)])

    def _infer(self, x: Array) -> Array:
        output: Array = self._signatures["infer"](x=_pad(x, self.manifest.batch_size, self.manifest.x.dtype))["y"]
        return output[: len(x)]

    def _begin(self, settings: FitSettings) -> None:
        # The same step without the two terms that are 0: it takes less time.
        proximal_mu = settings.proximal_mu or (_SLIGHT if settings.correction else 0.0)
        plain = proximal_mu == settings.clip_norm == 0 and "train_plain" in self._signatures
        begin = self._signatures["begin_plain" if plain and "begin_plain" in self._signatures else "begin_round"]
        seed = {"seed": np.int32(settings.masks_seed())} if begin.inputs else {}
        if settings.correction:
            self._begin_far_off(begin, seed, settings.correction, proximal_mu)
        elif seed or self._has_optimizer or not plain:
            begin(**seed)
        self._held_on_disk = None
        self._train = self._signatures["train_plain" if plain else "train"]
        self._unset: dict[str, Array | np.generic] = {"learning_rate": np.float32(settings.learning_rate)}
        if not plain:
            self._unset |= {
                "proximal_mu": np.float32(proximal_mu),
                "clip_norm": np.float32(settings.clip_norm),
            }

    def _begin_far_off(
        self, begin: Signature, seed: dict[str, np.int32], correction: Mapping[str, Array], proximal_mu: float
    ) -> None:
        """Anchor the proximal term where it pulls along the correction: a + μ·(w - base) = μ·(w - (base - a / μ)).

        So a graph needs no input for it. A slight μ is a power of two, and the correction as exact as float32 has it.
        """
        present = self.get_parameters()
        self.set_parameters(
            {
                name: np.asarray(value - correction[name] / np.float32(proximal_mu), value.dtype)
                if name in correction
                else value
                for name, value in present.items()
            }
        )
        begin(**seed)
        self.set_parameters(present)

    def fit_each(self, base: Parameters, devices: Iterable[tuple[Batch, FitSettings]]) -> Iterator[PlainFit | None]:
        """Train from the same parameters on one device's examples after another's; see `fedgrass.engines.base.FitsEach`.

        The very steps that `fit` takes. What is left out is what each training does anew: to look at its examples again, to cut
        them into batches by way of a data set, to keep the parameters to fall back on.
        """
        values = check_parameters(base, self.manifest).values()
        write, read = self._signatures["write_parameters"], self._signatures["read_parameters"]
        given: dict[str, Array] = {f"p{i}": value for i, value in enumerate(values)}
        try:
            for examples, settings in devices:
                write(**given)
                given = {}  # inputs keep their values
                self._begin(settings)
                losses, steps = self._epochs(examples, settings)
                if losses is None:
                    yield None
                    continue
                found = read.lend()
                flat = np.concatenate([found[f"p{i}"].ravel() for i in range(len(values))])
                yield PlainFit(flat, losses, steps)
        finally:
            write.release()
            read.release()

    def _epochs(self, examples: Batch, settings: FitSettings) -> tuple[float | None, int]:
        """Train; return the last epoch's mean loss, and the steps. The loss is None as soon as it is not finite."""
        size, count, steps, mean = self.manifest.batch_size, len(examples.x), 0, 0.0
        x, y = (np.asarray(part, t.dtype) for part, t in ((examples.x, self.manifest.x), (examples.y, self.manifest.y)))
        train, weighs = self._train, 0  # examples of a batch, by the weights that are set
        for epoch in range(settings.epochs):
            order, total = shuffled(count, settings.epoch_seed(epoch)), 0.0
            xs, ys = x.take(order, axis=0), y.take(order, axis=0)
            for start in range(0, count, size):
                inputs = {"x": xs[start : start + size], "y": ys[start : start + size], **self._unset}
                here = min(size, count - start)
                if here != weighs:
                    inputs["sample_weight"] = self._weights[size - here :][:size]
                    weighs = here
                if here < size:
                    inputs |= {name: inputs[name].take(self._whole, axis=0, mode="wrap") for name in "xy"}  # as `_pad`
                loss = train.scalar("loss", inputs)
                self._unset = {}
                if not math.isfinite(loss):
                    return None, steps
                total += loss * here
                steps += 1
            mean = total / count
        return mean, steps

    def _step(self, batch: Batch) -> float:
        # The first step changes the variables, and with them what was lent ends.
        if self._lent:  # until now
            self._signatures["read_parameters"].release()
            self._lent = False
        # The learning rate and the two strengths are set at the first step and when they change.
        loss = self._train(**self._padded(batch), **self._unset)["loss"]
        self._unset = {}  # inputs keep their values
        return float(loss)

    def _set_rate(self, rate: float) -> None:
        self._unset["learning_rate"] = np.float32(rate)

    def _judged(self, batch: Batch) -> tuple[float, float, Array]:
        found = self._signatures["evaluate"](**self._padded(batch))
        loss = self.manifest.loss
        if self.manifest.outputs:
            return float(found["loss"]), 0.0, found["output"][: len(batch.x)]
        if (output := found.get("output")) is None:  # a graph from before it gave its output
            output = probabilities(loss, self._infer(batch.x))
        elif loss in CLASSIFIERS:
            output = sigmoid(output) if loss in BINARY else softmax(output)
        return float(found["loss"]), float(found["correct"]), output[: len(batch.x)]

    def _optimizer_state(self) -> list[Array]:
        if not self._has_optimizer:
            return []
        found = self._signatures["read_optimizer"]()
        return [found[f"s{i}"] for i in range(len(found))]

    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        expected = self._signatures["write_optimizer"].input_shapes if self._has_optimizer else {}
        check_state(state, [expected[f"s{i}"] for i in range(len(expected))])
        if self._has_optimizer:
            self._signatures["write_optimizer"](**{f"s{i}": value for i, value in enumerate(state)})

    def _padded(self, batch: Batch) -> dict[str, Array]:
        """Fill a short batch up with its own examples, at no weight: batch normalization sees the mix that it should."""
        size = self.manifest.batch_size
        return {
            "x": _pad(batch.x, size, self.manifest.x.dtype),
            "y": _pad(batch.y, size, self.manifest.y.dtype),
            "sample_weight": self._weights_of(batch),
        }

    def _weights_of(self, batch: Batch) -> Array:
        size = self.manifest.batch_size
        if batch.weights is None:
            return self._weights[size - len(batch.x) :][:size]
        weights = np.zeros(size, np.float32)
        # Nothing but padding weighs nothing: an example counts in the mean, however little its loss does.
        weights[: len(batch.x)] = np.maximum(batch.weights, _LEAST_WEIGHT)
        return weights

    def _runners(self, name: str) -> dict[str, Signature]:
        found = self._interpreter.get_signature_list()
        missing = sorted(set(_SIGNATURES) - found.keys())
        if missing:
            raise BundleError(
                f"{name}: the graph lacks signature {missing[0]!r}; export the model with `fedgrass model export`"
            )
        runners = {key: Signature(self._interpreter.get_signature_runner(key)) for key in found}
        # The exporter names the inputs p0, p1, …: their order and shapes are all that ties them to the manifest.
        inputs = runners["write_parameters"].input_shapes
        shapes = [inputs.get(f"p{i}") for i in range(len(inputs))]
        if shapes != [p.shape for p in self.manifest.parameters]:
            raise BundleError(f"{name}: the graph's parameters are not the manifest's; export the model again")
        return runners


def _pad(array: Array, size: int, dtype: str) -> Array:
    if len(array) < size:
        # Its own examples again rather than zeros, which batch normalization would take for examples.
        array = array.take(np.arange(size), axis=0, mode="wrap")
    return np.ascontiguousarray(array, dtype)


def _split(x: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(x), size):
        yield x[start : start + size]


engine = LiteRTEngine

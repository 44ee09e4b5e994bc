"""The processes of `benchmarks.models`: a model in Keras or PyTorch, which exports it, and the bundle on the device's engine.

Each is a generator that a process of its own runs, a step for each word from the parent (`serve`): what it found by training,
then, for as long as it is asked, the processor's and the clock's seconds of some more training.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.zoo import Module
from fedgrass.errors import FedgrassError

BATCH, STEPS, RATE = 16, 15, 0.01
MOVED_BY, MOVES = 1e-7, 4
"""How far the peer's weights are moved, and how often: what decides is rare, as where a unit is within rounding of its bend."""
TOKENS = 400
"""Token numbers of made-up data are below this, and below a smaller vocabulary."""
# Processor seconds that one measurement shall take, and the most repeats of the data to reach them.
_SLICE, _MOST_REPEATS = 0.5, 60

Found: TypeAlias = dict[str, Any]
Arrays: TypeAlias = list[Any]


def serve(connection: Any, log: Path, steps: Callable[..., Iterator[Found]], *arguments: Any) -> None:
    """Answer each word from the parent with the next of the steps; an error ends them, and is told."""
    with log.open("wb") as file:  # the libraries' own words
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        found = steps(*arguments)
        while connection.recv():
            connection.send({**next(found), "used": time.process_time()})
    except EOFError:
        sys.exit(0)
    except FedgrassError as error:
        connection.send({"refused": str(error)})
    except Exception as error:  # noqa: BLE001 - whatever a model ends in is a row of the table
        connection.send({"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:400]})


def beside(family: str, name: str, folder: Path, threads: int) -> Iterator[Found]:
    """Train in Keras or PyTorch."""
    peer = _peer(family, name, threads)
    x, y = peer.examples(np.random.default_rng(0))
    np.savez(folder / "data.npz", y=y, **{f"x{at}": part for at, part in enumerate(x)})
    first = peer.weights()
    # The weights before and after fifteen steps are what the device's engine is held against.
    losses = peer.steps(x, y)
    np.savez(folder / "peer.npz", **peer.weights())
    # Not measured: the first run of a graph compiles it.
    peer.fit(x, y)
    began = time.process_time()
    peer.fit(x, y)
    repeats = max(1, min(_MOST_REPEATS, int(_SLICE / max(time.process_time() - began, 1e-3))))
    # Before the second training, which the device does not do.
    memory, moved = peak_mb(forked=True), []
    # A yardstick: how far runs of the same framework drift apart from a difference of rounding.
    for number in range(MOVES):
        generator = np.random.default_rng(1 + number)
        peer.assign({key: value * _about_one(generator, value) for key, value in first.items()})
        moved.append(peer.steps(x, y))
        np.savez(folder / f"moved{number}.npz", **peer.weights())
    yield {"losses": losses, "moved_losses": moved, "rss_mb": memory, "repeats": repeats}
    x, y = [_repeated(part, repeats) for part in x], _repeated(y, repeats)
    yield from _timed(lambda: peer.fit(x, y), repeats)


def exported(family: str, name: str, folder: Path) -> Iterator[Found]:
    """Export the model with the weights that it has at first, which are the same in each process."""
    from fedgrass.authoring.export import export

    peer = _peer(family, name, 1)
    began, clock = time.process_time(), time.perf_counter()
    # Without the self-test: it trains, and only the export's time is wanted.
    made = export(peer.model, folder / "bundle", batch_size=BATCH, name=name, prove=False, **peer.options())
    found: Found = {"export_processor_seconds": round(time.process_time() - began, 1)}
    found["export_seconds"] = round(time.perf_counter() - clock, 1)
    found["graph_kb"] = made.path("model.tflite").stat().st_size // 1024
    found |= {"parameters": made.manifest.parameter_count, "random": peer.draws(), "frozen": made.manifest.frozen}
    yield found


def refused(family: str, name: str, folder: Path) -> Iterator[Found]:
    """Export what cannot be: the error says why."""
    from fedgrass.authoring.export import export

    export(folder=folder / "bundle", batch_size=BATCH, **importlib.import_module(family).MODELS[name]())
    yield {"failed": "was to be refused, and is not"}


def _peer(family: str, name: str, threads: int) -> Any:
    return (_Torch if is_torch(family) else _Keras)(importlib.import_module(family).MODELS[name], threads)


def is_torch(family: str) -> bool:
    """Whether a family's models are PyTorch's, by its name."""
    return family.rpartition(".")[2].startswith("torch")


def on_device(folder: Path, threads: int, repeats: int) -> Iterator[Found]:
    """Train the bundle on the device's engine."""
    from fedgrass.bundle import Bundle
    from fedgrass.data import ArrayDataset
    from fedgrass.engines.base import FitSettings
    from fedgrass.engines.litert import LiteRTEngine

    bundle = Bundle.open(folder / "bundle")
    with np.load(folder / "data.npz") as archive:
        parts, y = [archive[f"x{at}"] for at in range(len(archive.files) - 1)], archive["y"]
    # The device takes a model's several inputs as one row, side by side.
    if parts[1:]:
        parts = [np.concatenate([part.reshape(len(y), -1).astype(np.float32) for part in parts], axis=1)]
    x, y = parts[0].astype(bundle.manifest.x.dtype), y.astype(bundle.manifest.y.dtype)
    engine, settings = LiteRTEngine(bundle, threads=threads), FitSettings(learning_rate=RATE)
    # A batch at a time, unshuffled, so that each step's loss can be compared.
    batches = [ArrayDataset(x[at : at + BATCH], y[at : at + BATCH]) for at in range(0, STEPS * BATCH, BATCH)]
    losses = [engine.fit(batch, settings).metrics["loss"] for batch in batches]
    parameters: dict[str, Any] = dict(engine.get_parameters())
    np.savez(folder / "litert.npz", **parameters)
    engine.fit(ArrayDataset(x, y), settings)
    yield {"losses": losses, "rss_mb": peak_mb(forked=False)}
    data = ArrayDataset(_repeated(x, repeats), _repeated(y, repeats))
    yield from _timed(lambda: engine.fit(data, settings), repeats)


def _timed(fit: Callable[[], object], repeats: int) -> Iterator[Found]:
    while True:
        began, used = time.perf_counter(), time.process_time()
        fit()
        yield {
            "steps": STEPS * repeats,
            "processor": time.process_time() - used,
            "clock": time.perf_counter() - began,
        }


def _repeated(array: Any, times: int) -> Any:
    return np.concatenate([array] * times)


def _about_one(generator: Any, value: Any) -> Any:
    return (1 + MOVED_BY * generator.standard_normal(value.shape)).astype(np.float32)


def peak_mb(*, forked: bool) -> float:
    """Return the peak of this process's resident memory.

    If it was forked off one that had imported its libraries, what that one has read of their files counts as its own.
    """
    own = _status("self")
    files = max(own["RssFile"], _status(str(os.getppid()))["RssFile"]) if forked else own["RssFile"]
    return (own["VmHWM"] - own["RssFile"] + files) / 1024


def _status(process: str) -> dict[str, int]:
    lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[2:] == ["kB"]}


def _inputs(generator: Any, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], tokens: int) -> Arrays:
    count, found = STEPS * BATCH, []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        x = generator.normal(size=(count, *shape)).astype(np.float32)
        if "int" in dtype:
            x = generator.integers(0, tokens, x.shape).astype(dtype)
        elif x.ndim == 3:
            x[::3, x.shape[1] // 2 :] = 0  # something to mask
        found.append(x)
    return found


def _labels(generator: Any, loss: str, shape: tuple[int, ...], classes_axis: int) -> Any:
    count = STEPS * BATCH
    if loss in ("sparse_categorical_crossentropy", "cross_entropy"):
        axis = classes_axis % len(shape)
        return generator.integers(0, shape[axis], (count, *shape[:axis], *shape[axis + 1 :])).astype(np.int32)
    y = generator.normal(size=(count, *shape)).astype(np.float32)
    return (y > 0).astype(np.float32) if "binary" in loss else y


class _Keras:
    def __init__(self, build: Callable[[], Any], _threads: int) -> None:
        import keras

        keras.utils.set_random_seed(0)
        model = build()
        self.model, self._loss = model, _loss_of(model)
        model.compile(keras.optimizers.SGD(RATE), self._loss)

    def examples(self, generator: Any) -> tuple[Arrays, Any]:
        inputs = self.model.inputs
        shapes, dtypes = [tuple(part.shape[1:]) for part in inputs], [part.dtype for part in inputs]
        # Embeddings: a number beyond the vocabulary would be out of bounds.
        layers = [layer for layer in self.model._flatten_layers() if hasattr(layer, "input_dim")]
        tokens = min([TOKENS, *(layer.input_dim for layer in layers)])
        x = _inputs(generator, shapes, dtypes, tokens)
        return x, _labels(generator, self._loss, tuple(self.model.outputs[0].shape[1:]), -1)

    def weights(self) -> dict[str, Any]:
        prefix = f"{self.model.name}/"
        return {v.path.removeprefix(prefix): v.numpy() for v in self.model.weights if "float" in str(v.dtype)}

    def assign(self, values: dict[str, Any]) -> None:
        prefix = f"{self.model.name}/"
        for variable in self.model.weights:
            if variable.path.removeprefix(prefix) in values:
                variable.assign(values[variable.path.removeprefix(prefix)])

    def steps(self, x: Arrays, y: Any) -> list[float]:
        import keras

        losses = []

        def keep(_batch: int, logs: dict[str, Any]) -> None:
            losses.append(float(logs["loss"]))
            # Keras reports the mean since the epoch began, and each batch's own loss is wanted.
            self.model.reset_metrics()

        self.fit(x, y, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=keep)])
        return losses

    def fit(self, x: Arrays, y: Any, **options: Any) -> None:
        self.model.fit(x if x[1:] else x[0], y, batch_size=BATCH, shuffle=False, verbose=0, **options)

    def options(self) -> Found:
        return {"loss": self._loss, "optimizer": "sgd"}

    def draws(self) -> bool:
        from fedgrass.authoring.randomness import is_random

        return any(is_random(layer) for layer in self.model._flatten_layers())


def _loss_of(model: Any) -> str:
    operation = getattr(model.outputs[0]._keras_history, "operation", None)
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    known = {"softmax": "sparse_categorical_crossentropy", "sigmoid": "binary_crossentropy"}
    return known.get(activation, "mean_squared_error")


class _Torch:
    def __init__(self, build: Callable[[], Module], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        given = build()
        self._given, self.model = given, given.module.train()
        self._optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], RATE)

    def examples(self, generator: Any) -> tuple[Arrays, Any]:
        import torch

        given = self._given.input
        parts = list(given.values()) if isinstance(given, dict) and "shape" not in given else [given]
        described = [part if isinstance(part, dict) else {"shape": part, "dtype": "float32"} for part in parts]
        sizes = [part.num_embeddings for part in self.model.modules() if hasattr(part, "num_embeddings")]
        shapes, dtypes = [tuple(part["shape"]) for part in described], [part["dtype"] for part in described]
        x = _inputs(generator, shapes, dtypes, min([TOKENS, *sizes]))
        # A batch tells the output's shape; batch normalisation counts it, so the weights are put back.
        with torch.no_grad():
            before = self.weights()
            shape = self.model(*(torch.from_numpy(part[:BATCH]) for part in x)).shape[1:]
            self.assign(before)  # statistics
        return x, _labels(generator, self._given.loss, tuple(shape), 0 if len(shape) == 3 else -1)

    def weights(self) -> dict[str, Any]:
        state = self.model.state_dict()
        named = {name for name, _ in self.model.named_parameters()} | {n for n, _ in self.model.named_buffers()}
        return {k: v.numpy().copy() for k, v in state.items() if k in named and v.is_floating_point()}

    def assign(self, values: dict[str, Any]) -> None:
        import torch

        self.model.load_state_dict({k: torch.from_numpy(v) for k, v in values.items()}, strict=False)

    def steps(self, x: Arrays, y: Any) -> list[float]:
        import torch

        loss_of = getattr(torch.nn.functional, self._given.loss)
        inputs, labels = [torch.from_numpy(part) for part in x], torch.from_numpy(y)
        # cross_entropy takes int64 labels only.
        if labels.dtype == torch.int32:
            labels = labels.long()
        losses = []
        for at in range(0, len(y), BATCH):
            self._optimizer.zero_grad()
            output = self.model(*(part[at : at + BATCH] for part in inputs))
            wanted = labels[at : at + BATCH]
            # PyTorch puts classes on axis 1; here they lie last, as in Keras.
            if self._given.loss == "cross_entropy" and output.ndim == 3:
                output, wanted = output.flatten(0, 1), wanted.flatten()
            loss = loss_of(output, wanted)
            loss.backward()
            self._optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    fit = steps

    def options(self) -> Found:
        return {"loss": self._given.loss, "input": self._given.input}

    def draws(self) -> bool:
        import torch

        dropout = torch.nn.modules.dropout._DropoutNd
        modules = list(self.model.modules())
        return any(
            m.p > 0 if isinstance(m, dropout) else isinstance(rate := getattr(m, "dropout", 0), float) and rate > 0
            for m in modules
        )


def apart(found: Path, expected: Path) -> float:
    """Return the largest difference of any tensor, relative to its largest value, or a thousandth of all tensors'."""
    with np.load(found) as a, np.load(expected) as b:
        scale = max(float(np.abs(b[key]).max(initial=0)) for key in b.files)
        return max(relative(a[key], b[key], floor=1e-3 * scale) for key in a.files)


def left_out(found: Path, expected: Path, frozen: Sequence[str]) -> list[str]:
    """Return names of what the peer trains and the bundle does not have."""
    with np.load(found) as a, np.load(expected) as b:
        return sorted(set(b.files) - set(a.files) - set(frozen))


def relative(found: Any, expected: Any, floor: float = 1e-12) -> float:
    """Return the largest difference over the largest expected value."""
    a, b = np.asarray(found), np.asarray(expected)
    return float(np.abs(a - b).max(initial=0) / max(float(np.abs(b).max(initial=0)), floor))


def read(results: Path) -> dict[str, Found]:
    """Return what a file of results has, by model."""
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {found["model"]: found for found in lines}

"""Training on the device against Keras: speed, memory, start-up, and whether both learn the same.

``python -m benchmarks.training`` exports three nets, trains each with LiteRT and with Keras ``fit`` in fresh processes, in turns,
with the same data, batch of 32 and threads, and keeps the fastest run of each:

- mlp: 784-128-10; cnn: LeNet on 32×32×3; depthwise: a small MobileNet-like net on 32×32×3;
- ``*_ratio``: our steps per second over Keras';
- ``rss_mb``: peak resident memory, data included; ``startup_seconds``: from the import to the end of the first step;
- ``loss_difference``: of the loss after ``--check`` steps of SGD from the same weights, over all of their data.

- ``parity_max_abs``: largest difference after one step of every layer and loss (`benchmarks.parity`; ``--no-parity`` leaves
  it out).

Needs the extra ``authoring``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lenet import lenet

_BATCH = 32
_RATE = 0.01
_NETS = ("mlp", "cnn", "depthwise")
_IMAGE = (32, 32, 3)
_SHAPES = {"mlp": (784,), "cnn": _IMAGE, "depthwise": _IMAGE}
_STEPS_PER_FIT = 100

Arrays = tuple[NDArray[np.float32], NDArray[np.int32]]


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nets", nargs="+", choices=_NETS, default=list(_NETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--check", type=int, default=100, help="steps for loss_difference")
    parser.add_argument("--parity", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--contender", choices=("litert", "keras", "export"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender == "export":
        for net in arguments.nets:
            _export(net, arguments.folder)
    elif arguments.contender:
        contender = _LiteRT if arguments.contender == "litert" else _Keras
        print(json.dumps(_measure(contender, arguments.nets[0], arguments)))
    else:
        print(json.dumps(_compare(arguments)))


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"threads": arguments.threads, "rss_mb": {}, "startup_seconds": {}, "loss_difference": {}}
    with tempfile.TemporaryDirectory() as folder:
        _run(["--contender", "export", "--nets", *arguments.nets, "--folder", folder])
        for net in arguments.nets:
            # In turns, so that a busy moment of the machine is not all one side's.
            runs: dict[str, list[dict[str, float]]] = {"litert": [], "keras": []}
            for _ in range(arguments.repeats):
                for contender, found in runs.items():
                    options = ["--contender", contender, "--nets", net, "--folder", folder]
                    options += ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
                    found.append(json.loads(_run([*options, "--check", str(arguments.check)])))
                    print(f"{net} {contender}: {found[-1]}", file=sys.stderr, flush=True)
            # The fastest: whatever else ran on the machine can only have slowed a run.
            best = {key: max(found, key=lambda run: run["steps_per_second"]) for key, found in runs.items()}
            ours, keras = best["litert"], best["keras"]
            report[f"{net}_ratio"] = round(ours["steps_per_second"] / keras["steps_per_second"], 2)
            report[f"{net}_steps_per_second"] = {key: round(run["steps_per_second"]) for key, run in best.items()}
            report["rss_mb"][net] = {key: round(run["rss_mb"]) for key, run in best.items()}
            report["startup_seconds"][net] = {
                key: round(min(run["startup_seconds"] for run in found), 2) for key, found in runs.items()
            }
            report["loss_difference"][net] = abs(ours["loss"] - keras["loss"])
    if arguments.parity:
        report |= json.loads(_run([], module="benchmarks.parity"))
    return report


def _run(options: list[str], module: str = "benchmarks.training") -> str:
    command = [sys.executable, "-m", module, *options]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet, text=True).stdout


def _data(net: str, steps: int) -> Arrays:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(steps * _BATCH, *_SHAPES[net])).astype(np.float32)
    return x, x.reshape(len(x), -1)[:, :10].argmax(axis=1).astype(np.int32)


class _LiteRT:
    def __init__(self, net: str, folder: Path, threads: int) -> None:
        # Here, as the time that imports take counts.
        from fedgrass.bundle import Bundle
        from fedgrass.data import ArrayDataset
        from fedgrass.engines.base import FitSettings
        from fedgrass.engines.litert import LiteRTEngine

        self._engine = LiteRTEngine(Bundle.open(folder / net), threads=threads)
        self._dataset, self._settings = ArrayDataset, FitSettings(learning_rate=_RATE)

    def train(self, data: Arrays) -> None:
        self._engine.fit(self._dataset(*data), self._settings)

    def loss(self, data: Arrays) -> float:
        return float(self._engine.evaluate(self._dataset(*data))["loss"])


class _Keras:
    def __init__(self, net: str, folder: Path, threads: int) -> None:
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        self._model = keras.saving.load_model(folder / f"{net}.keras", compile=False)
        self._model.compile(keras.optimizers.SGD(_RATE), "sparse_categorical_crossentropy")

    def train(self, data: Arrays) -> None:
        self._model.fit(*data, batch_size=_BATCH, shuffle=False, verbose=0)

    def loss(self, data: Arrays) -> float:
        return float(self._model.evaluate(*data, batch_size=_BATCH, verbose=0))


def _measure(contender: type[_LiteRT] | type[_Keras], net: str, arguments: argparse.Namespace) -> dict[str, float]:
    first, check, data = _data(net, 1), _data(net, arguments.check), _data(net, _STEPS_PER_FIT)
    started = time.perf_counter()
    runner = contender(net, arguments.folder, arguments.threads)
    runner.train(first)
    startup = time.perf_counter() - started

    # Keras is given the data in the order that our engine shuffles them into.
    runner.train(_in_our_order(check) if contender is _Keras else check)
    loss = runner.loss(check)

    # Once without the clock: it also compiles for this number of steps.
    runner.train(data)
    fits, started = 0, time.perf_counter()
    while time.perf_counter() - started < arguments.seconds:
        runner.train(data)
        fits += 1
    return {
        "steps_per_second": fits * _STEPS_PER_FIT / (time.perf_counter() - started),
        "startup_seconds": startup,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": loss,
    }


def _in_our_order(data: Arrays) -> Arrays:
    """Return the data in the order that our engine chooses, since it shuffles and Keras is told not to."""
    from fedgrass.data import ArrayDataset
    from fedgrass.engines.base import FitSettings

    batches = list(ArrayDataset(*data).batches(_BATCH, seed=FitSettings().epoch_seed(0)))
    return np.concatenate([batch.x for batch in batches]), np.concatenate([batch.y for batch in batches])


def _export(net: str, folder: Path) -> None:
    import keras

    from fedgrass.authoring.export import export

    keras.utils.set_random_seed(0)
    if net == "cnn":
        model = lenet(_IMAGE, net)
    else:
        model = keras.Sequential([keras.Input(_SHAPES[net]), *_layers(net, keras.layers)], name=net)
    model.save(folder / f"{net}.keras")
    export(model, folder / net, loss="sparse_categorical_crossentropy", batch_size=_BATCH)


def _layers(net: str, layers: Any) -> list[Any]:
    head = layers.Dense(10, activation="softmax")
    if net == "mlp":
        return [layers.Dense(128, activation="relu"), head]
    body = [layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")]
    for filters, strides in ((32, 1), (64, 2), (64, 1)):
        body += [
            layers.DepthwiseConv2D(3, strides=strides, padding="same", activation="relu"),
            layers.Conv2D(filters, 1, activation="relu"),
        ]
    return [*body, layers.GlobalAveragePooling2D(), head]


if __name__ == "__main__":
    main()

"""Models of many kinds: exported, trained on the device's engine, and held against Keras.

``python -m benchmarks.models`` prints a row for each model of `benchmarks.zoo` and, last, one JSON line. For each:

- seconds and graph size of the export;
- 15 steps of SGD from the same weights on the same batches with LiteRT and with Keras: the largest relative differences of
  loss and weights. ``chaos`` is what Keras' weights differ by from themselves when moved by 1e-7 before. Layers that draw at
  random draw otherwise than Keras', so theirs are not compared;
- steps of ours over steps of Keras' ``fit``, by the processor's seconds (which other work on the machine changes little) and by
  the clock's, and peak memory of both, each in a fresh process.

``--only`` chooses models; ``--results FILE`` keeps what was found and goes on from there; ``--family`` takes any module
with ``MODELS``, names and functions that give a built Keras model.
Needs the extra ``authoring``.
"""

from __future__ import annotations

import argparse
import importlib
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

from benchmarks.paired import say

FAMILIES = ("benchmarks.zoo.tables", "benchmarks.zoo.sequences", "benchmarks.zoo.images")
BATCH, STEPS, RATE = 16, 15, 0.01
MOVED_BY = 1e-7

Found = dict[str, Any]


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL")
    parser.add_argument("--family", action="append", default=[], metavar="MODULE")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of speed")
    parser.add_argument("--contender", choices=tuple(_CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    families = arguments.family or list(FAMILIES)
    if arguments.contender:
        name = arguments.only[0]
        found = _CONTENDERS[arguments.contender](name, families, arguments.folder, arguments.seconds)
        (arguments.folder / f"{arguments.contender}.json").write_text(json.dumps(found))
        return
    results = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    for name in arguments.only or [name for family in families for name in _models(family)]:
        if name not in results:
            results[name] = _measured(name, families, arguments.seconds)
            say(_row(name, results[name]))
        if arguments.results:
            arguments.results.write_text(json.dumps(results, indent=1))
    print("\n".join([_HEAD, *(_row(name, found) for name, found in results.items())]))
    print(json.dumps({"models": len(results), "results": results}))


def _measured(name: str, families: list[str], seconds: float) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Found] = {}
        for contender in _CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.models", "--only", name, "--contender", contender]
            command += ["--folder", folder, "--seconds", str(seconds)]
            for family in families:
                command += ["--family", family]
            quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
            if done.returncode:
                return {"failed": contender, "why": done.stderr.strip().splitlines()[-1][-300:]}
            runs[contender] = json.loads((Path(folder) / f"{contender}.json").read_text())
        return {**runs["export"], **_compared(runs["litert"], runs["keras"], Path(folder))}


def _compared(ours: Found, keras: Found, folder: Path) -> Found:
    found = {
        "speed_ratio": round(ours["speed"]["processor"] / keras["speed"]["processor"], 2),
        "clock_ratio": round(ours["speed"]["clock"] / keras["speed"]["clock"], 2),
        "memory_ratio": round(ours["rss_mb"] / keras["rss_mb"], 2),
        "rss_mb": {"litert": round(ours["rss_mb"]), "keras": round(keras["rss_mb"])},
    }
    if keras["random"]:
        return {**found, "parity": "draws at random"}
    losses = _apart(np.array(ours["losses"]), np.array(keras["losses"]))
    weights = _weights_apart(folder / "litert.npz", folder / "keras.npz")
    chaos = _weights_apart(folder / "moved.npz", folder / "keras.npz")
    return {**found, "loss_apart": losses, "weights_apart": weights, "chaos": chaos}


def _weights_apart(first: Path, second: Path) -> float:
    with np.load(first) as a, np.load(second) as b:
        # A tensor that hardly moves is measured against the largest of the model.
        scale = max(float(np.abs(b[key]).max(initial=0)) for key in b.files)
        return max(_apart(a[key], b[key], floor=1e-3 * scale) for key in b.files)


def _apart(found: Any, expected: Any, floor: float = 1e-12) -> float:
    return float(np.abs(found - expected).max(initial=0) / max(float(np.abs(expected).max(initial=0)), floor))


_HEAD = "model | export s | graph KB | loss apart | weights apart (chaos) | speed, ours/Keras (by the clock) | memory, ours/Keras"


def _row(name: str, found: Found) -> str:
    if "failed" in found:
        return f"{name} | {found['failed']} failed: {found['why']}"
    if "parity" in found:
        parity = f"{found['parity']} | –"
    else:
        parity = f"{found['loss_apart']:.0e} | {found['weights_apart']:.0e} ({found['chaos']:.0e})"
    export = f"{found['export_seconds']:.1f} | {found['graph_kb']}"
    return f"{name} | {export} | {parity} | {found['speed_ratio']} ({found['clock_ratio']}) | {found['memory_ratio']}"


def _models(family: str) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(family).MODELS
    return found


def _export(name: str, families: list[str], folder: Path, _: float) -> Found:
    import keras

    from fedgrass.authoring.export import export

    keras.utils.set_random_seed(0)
    model = next(models[name] for models in map(_models, families) if name in models)()
    model.save(folder / "model.keras")
    began, used = time.perf_counter(), time.process_time()
    made = export(model, folder / "bundle", loss=_loss(model), batch_size=BATCH, name=name, prove=False)
    return {
        "export_seconds": round(time.perf_counter() - began, 1),
        "export_processor_seconds": round(time.process_time() - used, 1),
        "graph_kb": made.path("model.tflite").stat().st_size // 1024,
    }


def _loss(model: Any) -> str:
    last = getattr(model.outputs[0]._keras_history.operation, "activation", None)
    softmax = getattr(last, "__name__", "") == "softmax"
    return "sparse_categorical_crossentropy" if softmax else "mean_squared_error"


def _litert(_name: str, _families: list[str], folder: Path, seconds: float) -> Found:
    from fedgrass.bundle import Bundle
    from fedgrass.data import ArrayDataset
    from fedgrass.engines.base import FitSettings
    from fedgrass.engines.litert import LiteRTEngine

    bundle = Bundle.open(folder / "bundle")
    manifest, generator = bundle.manifest, np.random.default_rng(0)
    count = STEPS * BATCH
    x: Any = generator.normal(size=(count, *manifest.x.shape)).astype(np.float32)
    if manifest.x.dtype == "int32":
        x = generator.integers(0, 400, x.shape).astype(np.int32)
    elif x.ndim == 3:
        x[::3, x.shape[1] // 2 :] = 0  # something to mask
    y: Any = generator.normal(size=(count, *manifest.y.shape)).astype(np.float32)
    if manifest.y.dtype == "int32":
        y = generator.integers(0, manifest.output.shape[-1], (count, *manifest.y.shape)).astype(np.int32)
    engine, settings = LiteRTEngine(bundle, threads=2), FitSettings(learning_rate=RATE)
    data = ArrayDataset(x, y)
    batches = list(data.batches(BATCH, seed=settings.epoch_seed(0)))
    np.savez(folder / "data.npz", x=np.stack([b.x for b in batches]), y=np.stack([b.y for b in batches]))
    losses = [engine.fit(ArrayDataset(b.x, b.y), settings).metrics["loss"] for b in batches]
    parameters: dict[str, Any] = dict(engine.get_parameters())
    np.savez(folder / "litert.npz", **parameters)
    speed = _speed(lambda: engine.fit(data, settings), seconds)
    return {"losses": losses, "speed": speed, "rss_mb": _rss()}


def _keras(_name: str, _families: list[str], folder: Path, seconds: float) -> Found:
    import keras
    import tensorflow as tf

    from fedgrass.authoring.randomness import is_random

    # Two threads, as LiteRT has.
    tf.config.threading.set_intra_op_parallelism_threads(2)
    with np.load(folder / "data.npz") as archive:
        x, y = archive["x"], archive["y"]

    def trained(moved_by: float, name: str) -> tuple[Any, list[float]]:
        # Loaded again: both runs begin at the exported weights.
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        generator = np.random.default_rng(1)
        for weight in model.trainable_variables if moved_by else []:
            weight.assign(weight.numpy() * (1 + moved_by * generator.standard_normal(weight.shape).astype(np.float32)))
        model.compile(keras.optimizers.SGD(RATE), _loss(model))
        losses = []
        for a, b in zip(x, y, strict=True):
            model.reset_metrics()
            losses.append(float(model.train_on_batch(a, b)))
        frozen = set(json.loads((folder / "bundle" / "model.json").read_text()).get("frozen", ()))
        values = {v.path.removeprefix(f"{model.name}/"): v.numpy() for v in model.weights}
        np.savez(folder / name, **{key: value for key, value in values.items() if key not in frozen})
        return model, losses

    model, losses = trained(0.0, "keras.npz")
    flat = (x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]))
    speed = _speed(lambda: model.fit(*flat, batch_size=BATCH, shuffle=False, verbose=0), seconds)
    memory = _rss()
    random = any(is_random(layer) for layer in model._flatten_layers())
    # Last: its memory must not count in the peak.
    trained(MOVED_BY, "moved.npz")
    return {"losses": losses, "speed": speed, "rss_mb": memory, "random": random}


def _speed(fit: Any, seconds: float) -> dict[str, float]:
    """Return steps per second of the processor and of the clock."""
    # Once before: tracing and the first allocations are not what is measured.
    fit()
    fits, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        fit()
        fits += 1
    taken = {"processor": time.process_time() - used, "clock": time.perf_counter() - began}
    return {clock: fits * STEPS / second for clock, second in taken.items()}


def _rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_CONTENDERS = {"export": _export, "litert": _litert, "keras": _keras}


if __name__ == "__main__":
    main()

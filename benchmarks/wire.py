"""What each codec costs and saves: bytes per update, and accuracy after 30 rounds, on two tasks.

``python -m benchmarks.wire`` trains with the real engine, writes and reads real update files and aggregates them with the real
aggregator. Needs the extras ``local`` and, the first time, ``authoring``: the harder task's net is exported once and kept.

- ``digits``: scikit-learn's 1,797 digits on 3 devices, the demo's net.
- ``clusters``: 20 classes, each of 8 Gaussian clusters seen through a random nonlinear map, on 5 devices. No plane divides them:
  a linear model stays far behind, as is printed beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset, Split
from fedgrass.data.partition import dirichlet
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, UpdateTask, Upload

CODECS = (
    "float32",
    "float16",
    "int8+zstd",
    "int4+zstd",
    "topk:0.2+int4+zstd",
    "topk:0.1+int4+zstd",
    "topk:0.05+int4+zstd",
)
# Half a percentage point of accuracy, as a share of 1.
HALF_POINT = 0.005
CLASSES, FEATURES, LATENT, CLUSTERS = 20, 64, 16, 8


@dataclass(frozen=True)
class Task:
    """Devices' data, the data that judge, the net, and how it is trained."""

    bundle: Path
    devices: dict[str, ArrayDataset]
    kept: ArrayDataset
    fit: FitTask


def digits(seed: int, _cache: Path) -> Task:
    """Return the demo's task."""
    from fedgrass.local.demo.data import digits as load

    folder = Path(__file__).parent.parent / "examples" / "digits" / "bundle"
    data = load([f"device-{i}" for i in range(3)], shape=Bundle.open(folder).manifest.x.shape, seed=seed)
    return Task(folder, data.devices, data.kept, FitTask(epochs=3, learning_rate=0.2))


def clusters(seed: int, cache_dir: Path) -> Task:
    """Return the harder task."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, CLUSTERS, LATENT))
    y = rng.integers(CLASSES, size=10_000).astype(np.int32)
    latent = centres[y, rng.integers(CLUSTERS, size=len(y))] + rng.normal(scale=0.65, size=(len(y), LATENT))
    # Divided by the root of the number of terms: values to tanh and sin stay near 1 whatever LATENT is.
    mixing = rng.normal(size=(2, LATENT, FEATURES)) / np.sqrt(LATENT)
    x = (np.tanh(latent @ mixing[0]) + np.sin(latent @ mixing[1])).astype(np.float32)
    # The first examples judge; the devices share the rest.
    kept = 4000
    parts = dirichlet(y[kept:], 5, alpha=1.0, seed=seed)
    devices = {f"device-{i}": ArrayDataset(x[kept:][part], y[kept:][part]) for i, part in enumerate(parts)}
    return Task(exported(cache_dir), devices, ArrayDataset(x[:kept], y[:kept]), FitTask(epochs=2, learning_rate=0.1))


TASKS = {"digits": digits, "clusters": clusters}


def exported(cache_dir: Path) -> Path:
    """Return the harder task's bundle, made by a separate process if it is not there yet."""
    folder = cache_dir / "clusters"
    # In a process apart: workers forked off one with TensorFlow's threads may hang.
    if not (folder / "model.json").exists():
        said = subprocess.run(
            [sys.executable, "-c", f"from benchmarks.wire import export_net; export_net({str(folder)!r})"],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            raise SystemExit(f"exporting the net failed; it needs pip install 'fedgrass[authoring]'\n{said.stderr}")
    return folder


def export_net(folder: str) -> None:
    """Write the bundle of a net with two hidden layers of 256."""
    import keras

    from fedgrass.authoring.export import export

    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense
    layers = [keras.Input((FEATURES,)), dense(256, "relu"), dense(256, "relu"), dense(CLASSES, "softmax")]
    export(
        keras.Sequential(layers, name="clusters"), Path(folder), loss="sparse_categorical_crossentropy", batch_size=32
    )


@dataclass(frozen=True)
class Run:
    """One codec on one task with one seed."""

    task: str
    codec: str
    seed: int
    rounds: int
    cache_dir: Path


@dataclass(frozen=True)
class Result:
    """Mean bytes of an update, and accuracy on the kept examples after the last round."""

    bytes: float
    accuracy: float
    parameters: int


def run(wanted: Run) -> Result:
    """Run the rounds."""
    from fedgrass.cloud.aggregator.offline import aggregate_folder
    from fedgrass.engines.litert import LiteRTEngine
    from fedgrass.training import TrainingFiles, train

    task = TASKS[wanted.task](wanted.seed, wanted.cache_dir)
    bundle = Bundle.open(task.bundle)
    engine = LiteRTEngine(bundle)
    sizes = []
    with tempfile.TemporaryDirectory(prefix="fedgrass-wire-") as scratch:
        root = Path(scratch)
        for number in range(1, wanted.rounds + 1):
            announcement = announce(bundle, number, task.fit, wanted.codec)
            updates = root / f"updates-{number}"
            updates.mkdir()
            for thing, data in task.devices.items():
                # One engine for all: each device starts from the round's base, not from what the one before it learnt.
                engine.set_parameters(bundle.parameters())
                trained = train(
                    lambda: engine,
                    bundle,
                    Split(data, data.take(0)),
                    announcement,
                    thing,
                    # A device keeps its residual from round to round: what top-k did not send is sent later.
                    TrainingFiles(
                        updates / f"{thing}.safetensors", root / f"{thing}.checkpoint", root / f"{thing}.residual"
                    ),
                )
                sizes.append(trained.info.bytes)
            aggregate_folder(bundle.folder, updates, root / f"model-{number}")
            bundle = Bundle.open(root / f"model-{number}")
        engine.set_parameters(bundle.parameters())
        accuracy = engine.evaluate(task.kept)["accuracy"]
    return Result(float(np.mean(sizes)), accuracy, bundle.manifest.parameter_count)


def announce(bundle: Bundle, number: int, fit: FitTask, codec: str) -> Announcement:
    """Return what the cloud would announce."""
    opened = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(hours=number)
    return Announcement(
        fleet="wire",
        round=number,
        opened_at=opened,
        deadline=opened + timedelta(hours=1),
        base=Base.of(bundle.manifest, "wire"),
        cohort=Cohort(salt="wire"),
        fit=fit,
        update=UpdateTask(codec=codec),
        upload=Upload(bucket="wire", prefix="updates/wire/"),
    )


def linear_accuracy(task: str, seed: int, cache_dir: Path) -> float:
    """Accuracy of a linear model that sees all devices' data in one place."""
    from sklearn.linear_model import LogisticRegression

    found = TASKS[task](seed, cache_dir)
    x = np.concatenate([data.x for data in found.devices.values()])
    y = np.concatenate([data.y for data in found.devices.values()])
    model = LogisticRegression(max_iter=300).fit(x.reshape(len(x), -1), y)
    return float(model.score(found.kept.x.reshape(len(found.kept), -1), found.kept.y))


def measure(codecs: Sequence[str], rounds: int, seeds: int, cache_dir: Path, workers: int) -> dict[str, object]:
    """Return the line to print."""
    # Once, before there are workers, which would all export it at the same time.
    exported(cache_dir)
    runs = [Run(t, c, seed, rounds, cache_dir) for t in TASKS for c in codecs for seed in range(1, seeds + 1)]
    results: dict[tuple[str, str], list[Result]] = {}
    started = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        for wanted, result in zip(runs, pool.map(run, runs), strict=True):
            results.setdefault((wanted.task, wanted.codec), []).append(result)
            print(f"{wanted.task} {wanted.codec} seed {wanted.seed}: {result}", file=sys.stderr)
    tasks: dict[str, object] = {}
    ratios: dict[str, list[float]] = {codec: [] for codec in codecs}
    for task in TASKS:
        reference = results[task, "float32"]
        table = {}
        for codec in codecs:
            found = results[task, codec]
            ratio = mean_of(reference, "bytes") / mean_of(found, "bytes")
            lost = mean_of(reference, "accuracy") - mean_of(found, "accuracy")
            # The small number forgives a rounding of floats, not a loss.
            if lost <= HALF_POINT + 1e-9:
                ratios[codec].append(ratio)
            table[codec] = {
                "bytes": round(mean_of(found, "bytes")),
                "ratio": round(ratio, 2),
                "accuracy": round(mean_of(found, "accuracy"), 4),
                "points_lost": round(100 * lost, 2),
            }
        tasks[task] = {
            "parameters": reference[0].parameters,
            "linear_accuracy": round(
                float(np.mean([linear_accuracy(task, s, cache_dir) for s in range(1, seeds + 1)])), 4
            ),
            "codecs": table,
        }
    # A codec counts if it holds on every task, and then by its worst ratio.
    within = {codec: min(found) for codec, found in ratios.items() if len(found) == len(TASKS)}
    best = max(within, key=lambda codec: within[codec])
    return {
        "benchmark": "wire",
        "rounds": rounds,
        "seeds": seeds,
        "seconds": round(time.perf_counter() - started, 1),
        "tasks": tasks,
        "best_codec_within_half_point": best,
        "best_ratio_within_half_point": round(within[best], 2),
    }


def mean_of(results: Sequence[Result], name: str) -> float:
    """Return the mean over seeds."""
    return float(np.mean([getattr(result, name) for result in results]))


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1, help="runs that accuracies are averaged over")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), metavar="NAME")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--cache", type=Path, default=Path(".fedgrass/benchmarks"), help="where the exported net is kept"
    )
    wanted = parser.parse_args()
    # float32 is what the others are compared with, so it always runs.
    codecs = list(dict.fromkeys(["float32", *wanted.codecs]))
    print(json.dumps(measure(codecs, wanted.rounds, wanted.seeds, wanted.cache.absolute(), wanted.workers)))


if __name__ == "__main__":
    main()

"""Federated averaging of many updates from the page cache, against the least that it can cost and against peers.

``python -m benchmarks.aggregation`` writes 50 updates of 20 million float32 parameters in 40 tensors (4 GB, removed afterwards),
then runs each contender in fresh processes, in turns, and keeps the fastest run of each:

- ours: `fedgrass.cloud.aggregator.aggregate`, from the list of files to the new parameters, every check on; of the same updates
  in each of the codecs too;
- floor: two threads, each of which reads its half of the parameters (or of the updates, if they are small), one ``readinto``
  after the other, and adds them by BLAS ``saxpy``; nothing checked (SciPy). ``one_thread`` is the same in one;
- sha256: what it costs to read and hash the same files;
- peers, if ``--peers-python`` names an interpreter that has them (``pip install flwr nvflare``): Flower's default, its grid and
  its ``FedAvg``, from the answers of its SuperLink to its arrays, and NVFlare's weighted helper with reading. Null where one
  is missing.

``--updates 10000 --parameters 100000`` shows small models and many devices; the deviation is from a float64 reference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import keep, say
from fedgrass import tensors
from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.cloud.aggregator.aggregate import aggregate
from fedgrass.cloud.aggregator.sources import Folder
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.protocol.messages import UpdateTask
from fedgrass.strategies import strategy_named
from fedgrass.tensors import Array
from fedgrass.update import UpdateHeader, write_update
from fedgrass.update.codecs import Floats

CODECS = ("float32", "int8", "float16", "int4", "topk:0.05+int8+zstd")
_SMALL = 1 << 20  # parameters
_BODIES = 4  # distinct differences; what is in the other files are copies of them
_PEERS = Path(__file__).with_name("aggregation_peers.py")


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--tensors", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codecs", nargs="*", default=CODECS[1:], help="of the updates, beside float32")
    parser.add_argument("--peers-python", type=Path, help="an interpreter with flwr and nvflare")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(CONTENDERS[arguments.contender](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as folder:
        print(json.dumps(measure(Path(folder), arguments)))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    count, parameters = arguments.updates, arguments.parameters
    say(f"writing {count} updates of {parameters} parameters")
    base = make_model(folder / "base", parameters, min(arguments.tensors, parameters))
    make_updates(base, folder / "updates", count, "float32")
    peers = ["flower", "nvflare"] if arguments.peers_python else []
    if peers:
        _run([str(arguments.peers_python), str(_PEERS), "--contender", "flower-write"], folder)
    best: dict[str, dict[str, Any]] = {}
    # In turns, so that a slow minute of the machine hits all contenders alike.
    for _ in range(arguments.repeats):
        for name in ("ours", "floor", "one_thread"):
            keep(best, name, _ours(name, folder))
        for name in peers:
            keep(best, name, _run([str(arguments.peers_python), str(_PEERS), "--contender", name], folder))
    shutil.rmtree(folder / "flower", ignore_errors=True)
    keep(best, "sha256", _ours("sha256", folder))
    float32 = dict(best["ours"])
    ratios: dict[str, float] = {}
    for codec in arguments.codecs:
        # Both codecs are measured in turns under one name: the contender always reads `updates`.
        (folder / "updates").rename(folder / "float32")
        make_updates(base, folder / "updates", count, codec)
        seconds: dict[str, dict[str, Any]] = {}
        for _ in range(arguments.repeats):  # side by side: the machine is never the same twice
            keep(seconds, codec, _ours("ours", folder))
            (folder / "updates").rename(folder / "other")
            (folder / "float32").rename(folder / "updates")
            keep(seconds, "float32", _ours("ours", folder))
            (folder / "updates").rename(folder / "float32")
            (folder / "other").rename(folder / "updates")
        shutil.rmtree(folder / "updates")
        (folder / "float32").rename(folder / "updates")
        best[codec] = seconds[codec]
        ratios[codec] = round(seconds["float32"]["seconds"] / seconds[codec]["seconds"], 2)
    return _figures({**best, "ours": float32}, ratios, count, parameters)


def _ours(name: str, folder: Path) -> dict[str, Any] | None:
    # OPENBLAS_NUM_THREADS=1: the floor's own threads do the adding, not BLAS's.
    return _run(
        [sys.executable, "-m", "benchmarks.aggregation", "--contender", name], folder, {"OPENBLAS_NUM_THREADS": "1"}
    )


def _figures(best: dict[str, dict[str, Any]], ratios: dict[str, float], count: int, parameters: int) -> dict[str, Any]:
    seconds = {name: found["seconds"] for name, found in best.items()}
    gigabytes = 4e-9 * count * parameters

    def ratio(name: str) -> float | None:
        return round(seconds[name] / seconds["ours"], 2) if name in seconds else None

    if "flower" not in seconds:
        say("no figures of peers: name an interpreter with --peers-python (pip install flwr; pip install nvflare)")
    return {
        "benchmark": "aggregation",
        "updates": count,
        "parameters": parameters,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "cpu_seconds": round(best["ours"]["cpu_seconds"], 3),
        "peak_rss_mb": best["ours"]["peak_rss_mb"],
        "peak_rss_mb_of_peers": {name: best[name]["peak_rss_mb"] for name in ("flower", "nvflare") if name in best},
        "updates_per_second": round(count / seconds["ours"], 1),
        "gb_per_second": round(gigabytes / seconds["ours"], 2),
        "ratio_to_floor": round(seconds["ours"] / seconds["floor"], 2),
        "ratio_to_one_thread": round(seconds["ours"] / seconds["one_thread"], 2),
        "cpu_ratio_to_floor": round(best["ours"]["cpu_seconds"] / best["floor"]["cpu_seconds"], 2),
        "ratio_flower_end_to_end": ratio("flower"),
        "ratio_nvflare": ratio("nvflare"),
        "max_deviation_from_float64": best["ours"]["deviation"],
        "sha256_would_add_seconds": round(seconds["sha256"], 3),
        "speed_by_codec_over_float32": ratios,
        "cpu_seconds_by_codec": {codec: round(best[codec]["cpu_seconds"], 3) for codec in ratios},
    }


def make_model(folder: Path, parameters: int, count: int) -> Bundle:
    """Write a model of zeros; nothing here trains it."""
    sizes = [len(part) for part in np.array_split(np.empty(parameters, np.bool_), count)]
    x = TensorDescription(name="x", shape=(1,), dtype="float32")
    return new_bundle(
        folder,
        NewModel(
            engine="keras",
            name="wide",
            parameters={f"layer{i:02d}": np.zeros(size, np.float32) for i, size in enumerate(sizes)},
            x=x,
            y=x,
            output=x,
            loss="mean_squared_error",
            batch_size=1,
        ),
    )


def make_updates(base: Bundle, folder: Path, count: int, codec: str, *, bodies: int = _BODIES) -> None:
    """Write ``count`` updates: a few distinct ones, and copies of them under other names."""
    folder.mkdir()
    zeros = base.parameters()
    # Distinct bodies are few, as making them costs more than what is measured.
    written = []
    for body in range(bodies):
        path = folder / "body"
        write_update(path, zeros, _local(zeros, body), header_of(base, "body"), UpdateTask(codec=codec))
        with path.open("rb") as file:
            head = tensors.read_header(file, file_bytes=path.stat().st_size)
            specs = [(tensor.name, tensor.dtype, tensor.shape) for tensor in head.tensors]
            written.append((specs, file.read()))
        path.unlink()
    for index in range(count):
        thing = f"thing-{index:05d}"
        specs, content = written[index % bodies]
        header = header_of(base, thing).model_copy(update={"codec": codec, "num_examples": 1 + index % 7})
        with (folder / f"{thing}.safetensors").open("wb") as file:
            file.write(tensors.encode_header(specs, header.to_metadata()))
            file.write(content)


def _local(zeros: dict[str, Array], body: int) -> dict[str, Array]:
    generator = np.random.default_rng(body)
    return {name: generator.standard_normal(value.size, np.float32) * np.float32(1e-2) for name, value in zeros.items()}


def header_of(base: Bundle, thing: str) -> UpdateHeader:
    """Return the header of a thing's update of one example."""
    manifest = base.manifest
    return UpdateHeader(
        fleet="benchmark",
        round=1,
        thing=thing,
        base_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
        num_examples=1,
    )


def run_ours(folder: Path) -> dict[str, Any]:
    """Aggregate, and compare with a float64 reference made of the few distinct updates."""
    base = Bundle.open(folder / "base")
    source = Folder(folder / "updates")
    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256, fleet="benchmark", round=1)
    start, cpu = time.perf_counter(), time.process_time()
    result = aggregate(base, source, source.list(), strategy_named("fedavg"), expected)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    # Before the reference is made, which takes memory of its own.
    peak = peak_rss_mb()
    # A benchmark of refused updates would be fast.
    if result.parameters is None or result.quarantined:
        raise SystemExit(f"expected all updates to be good: {result.quarantined[:1]}")
    weights = np.zeros(_BODIES)
    for entry in result.updates:
        weights[int(entry.thing.removeprefix("thing-")) % _BODIES] += entry.num_examples
    zeros = base.parameters()
    reference: dict[str, Array] = {name: np.zeros(value.size) for name, value in zeros.items()}
    for body, weight in enumerate(weights):
        for name, values in _local(zeros, body).items():
            reference[name] += weight / weights.sum() * values
    largest = max(float(np.abs(values).max()) for values in reference.values())
    deviation = max(float(np.abs(result.parameters[name] - values).max()) for name, values in reference.items())
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_rss_mb": peak,
        "deviation": float(f"{deviation / largest:.2e}"),
    }


def run_floor(folder: Path, threads: int = 2) -> dict[str, Any]:
    """Read and add, in two threads or in one, and nothing else."""
    from scipy.linalg.blas import saxpy

    size = sum(p.size for p in Bundle.open(folder / "base").manifest.parameters)
    paths = sorted(str(path) for path in (folder / "updates").iterdir())
    # Small models: a sum for each thread, added at the end; large ones: each thread a half of the parameters.
    totals: list[Floats] = [np.zeros(size, np.float32) for _ in range(2 if size <= _SMALL else 1)]

    def add(paths: list[str], total: Floats, first: int, end: int) -> None:
        buffer = np.empty(min(1 << 18, end - first), np.float32)
        for path in paths:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the least that it can cost
                # From the end: tensors lie behind the header, whose length differs.
                file.seek(os.fstat(file.fileno()).st_size - 4 * (size - first))
                at = first
                while at < end:
                    count = file.readinto(buffer[: end - at].view(np.uint8).data) // 4
                    saxpy(buffer[:count], total[at : at + count], a=0.5)
                    at += count

    half = size // 2
    parts = [(paths, totals[0], 0, size)]
    if threads > 1:
        parts = (
            [(paths[::2], totals[0], 0, size), (paths[1::2], totals[1], 0, size)]
            if size <= _SMALL
            else [(paths, totals[0], 0, half), (paths, totals[0], half, size)]
        )
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(add, *part) for part in parts]:
            done.result()
    for other in totals[1:]:
        totals[0] += other
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_rss_mb": peak_rss_mb()}


def run_sha256(folder: Path) -> dict[str, Any]:
    """Read and hash."""
    from fedgrass.files import sha256_of

    start = time.perf_counter()
    for path in sorted((folder / "updates").iterdir()):
        sha256_of(path)
    return {"seconds": time.perf_counter() - start, "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """Return this process's peak resident memory; unlike getrusage's, it is not inherited from the parent."""
    with Path("/proc/self/status").open() as status:
        return next(round(int(line.split()[1]) * 1024 / 1e6, 1) for line in status if line.startswith("VmHWM"))


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours": run_ours,
    "floor": run_floor,
    "one_thread": partial(run_floor, threads=1),
    "sha256": run_sha256,
}


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> dict[str, Any] | None:
    given = {**os.environ, **(environment or {})}
    # Standard error goes through: what a contender says is seen.
    done = subprocess.run([*command, "--folder", str(folder)], stdout=subprocess.PIPE, env=given, check=False)
    if done.returncode:
        say(f"{command[-1]}: failed; is it installed?")
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    say(f"{command[-1]}: {found}")
    return found


if __name__ == "__main__":
    main()

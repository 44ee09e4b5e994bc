"""Robust strategies on many updates: seconds and peak memory, checked against plain NumPy, and Flower's where it has them.

``python -m benchmarks.robust`` writes 200 updates of a million float32 parameters (0.8 GB, removed afterwards) and runs each
strategy in a separate process. ``--peers-python`` names an interpreter with Flower (``pip install flwr``); null without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.aggregation import make_model, make_updates, peak_rss_mb
from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import aggregate
from fedgrass.cloud.aggregator.sources import Folder
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.strategies import strategy_named

STRATEGIES = ("median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "bulyan")
FLOWER = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan")
_PEERS = Path(__file__).with_name("robust_peers.py")
_CHECKED = 2000  # first parameters, compared with a plain NumPy reference


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--peers-python", type=Path, help="an interpreter with flwr")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.strategy:
        print(json.dumps(run_ours(arguments.folder, arguments.strategy)))
        return
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as name:
        folder = Path(name)
        base = make_model(folder / "base", arguments.parameters, 10)
        make_updates(base, folder / "updates", arguments.updates, "float32", bodies=arguments.updates)
        ours, flower = {}, {}
        for strategy in arguments.strategies:
            ours[strategy] = _run([sys.executable, "-m", "benchmarks.robust"], strategy, folder)
            if arguments.peers_python and strategy in FLOWER:
                flower[strategy] = _run([str(arguments.peers_python), str(_PEERS)], strategy, folder)
    ratios = {name: round(found["seconds"] / ours[name]["seconds"], 2) for name, found in flower.items()}
    print(
        json.dumps(
            {
                "benchmark": "robust",
                "updates": arguments.updates,
                "parameters": arguments.parameters,
                "ours": ours,
                "flower": flower or None,
                "flower_seconds_over_ours": ratios or None,
            }
        )
    )


def run_ours(folder: Path, name: str) -> dict[str, Any]:
    """Aggregate; median and trimmed mean are compared with NumPy's on the first parameters."""
    base = Bundle.open(folder / "base")
    source = Folder(folder / "updates")
    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256)
    start = time.perf_counter()
    result = aggregate(base, source, source.list(), strategy_named(name), expected)
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 3), "peak_rss_mb": peak_rss_mb()}
    if result.parameters is None or result.quarantined:
        raise SystemExit(f"expected all updates to be good: {result.quarantined[:1]}")
    # Rules by coordinate can be checked on a few; the others need all parameters.
    if name in {"median", "trimmed_mean"}:
        ordered = np.sort(_first_parameters(folder), axis=0).astype(np.float64)
        cut = len(ordered) // 5
        wanted = np.median(ordered, axis=0) if name == "median" else ordered[cut : len(ordered) - cut].mean(axis=0)
        first = next(iter(result.parameters.values())).ravel()[:_CHECKED]
        found["largest_difference_from_numpy"] = float(f"{np.abs(first - wanted).max():.2e}")
    return found


def _first_parameters(folder: Path) -> Any:
    rows = []
    for path in sorted((folder / "updates").iterdir()):
        with path.open("rb") as file:
            # safetensors: eight bytes with the header's length, the header, then values.
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            rows.append(np.fromfile(file, "<f4", _CHECKED))
    return np.array(rows)


def _run(command: list[str], strategy: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [*command, "--strategy", strategy, "--folder", str(folder)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{Path(command[-1]).name} {strategy}: {found}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()

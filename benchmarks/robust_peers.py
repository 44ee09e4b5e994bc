"""Flower's robust aggregation for `benchmarks.robust`: run by an interpreter that has it, and needs nothing of ours."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from aggregation_peers import peak_rss_mb, read_updates  # type: ignore[import-not-found]


def run(folder: Path, name: str) -> dict[str, Any]:
    """Load every update and aggregate, a fifth of the updates taken for attackers."""
    from flwr.server.strategy import aggregate as flower

    start = time.perf_counter()
    results = [(list(arrays.values()), examples) for arrays, examples in read_updates(folder)]
    attackers = len(results) // 5
    if name == "median":
        flower.aggregate_median(results)
    elif name == "trimmed_mean":
        flower.aggregate_trimmed_avg(results, 0.2)
    elif name == "krum":
        flower.aggregate_krum(results, attackers, 0)
    else:
        flower.aggregate_krum(results, attackers, len(results) - attackers)
    return {"seconds": round(time.perf_counter() - start, 3), "peak_rss_mb": peak_rss_mb()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.folder, arguments.strategy)))

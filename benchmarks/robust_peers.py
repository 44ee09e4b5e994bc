"""Flower's robust aggregation for `benchmarks.robust`: run by an interpreter that has it, and needs nothing of ours.

Its strategies are called as its server calls them, with replies in memory: pulling and unpacking them costs nothing here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from aggregation_peers import peak_rss_mb, read_updates, reply_of  # type: ignore[import-not-found]


def run(folder: Path, name: str) -> dict[str, Any]:
    """Load every update and aggregate, a fifth of the updates taken for attackers."""
    from flwr.serverapp import strategy

    start = time.perf_counter()
    replies = [reply_of(arrays, examples, number) for number, (arrays, examples) in enumerate(read_updates(folder))]
    attackers = len(replies) // 5
    chosen = {
        "median": lambda: strategy.FedMedian(),
        "trimmed_mean": lambda: strategy.FedTrimmedAvg(beta=0.2),
        "krum": lambda: strategy.Krum(num_malicious_nodes=attackers),
        "multi_krum": lambda: strategy.MultiKrum(
            num_malicious_nodes=attackers, num_nodes_to_select=len(replies) - attackers
        ),
        "bulyan": lambda: strategy.Bulyan(num_malicious_nodes=attackers),
    }[name]()
    arrays, _ = chosen.aggregate_train(1, replies)
    if arrays is None:
        raise SystemExit(f"Flower's {name} made no model of the replies")
    return {"seconds": round(time.perf_counter() - start, 3), "peak_rss_mb": peak_rss_mb()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.folder, arguments.strategy)))

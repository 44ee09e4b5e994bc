"""Flower and NVFlare for `benchmarks.aggregation`: run by an interpreter that has them, and needs nothing of ours.

Flower's server gets each reply as a protobuf message: that is what it starts from here, and the messages are made beforehand.
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def read_updates(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield arrays and example count of each float32 update file."""
    for path in sorted((folder / "updates").iterdir()):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            examples = int(header.pop("__metadata__")["num_examples"])
            yield {name: np.fromfile(file, "<f4", int(spec["shape"][0])) for name, spec in header.items()}, examples


def write_for_flower(folder: Path) -> dict[str, Any]:
    """Write each update as the message that Flower's server gets."""
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.common.serde import recorddict_to_proto

    (folder / "flower").mkdir()
    for index, (arrays, examples) in enumerate(read_updates(folder)):
        record = ArrayRecord({name: FlowerArray(values) for name, values in arrays.items()})
        reply = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples})})
        (folder / "flower" / f"{index:05d}").write_bytes(recorddict_to_proto(reply).SerializeToString())
    return {}


def run_flower(folder: Path) -> dict[str, Any]:
    """Aggregate as Flower does by default: all messages at once, then ``aggregate_arrayrecords``."""
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    start = time.perf_counter()
    paths = sorted((folder / "flower").iterdir())
    replies = [recorddict_from_proto(RecordDict.FromString(path.read_bytes())) for path in paths]
    loaded = time.perf_counter()
    aggregate_arrayrecords(replies, "num-examples").to_numpy_ndarrays()
    end = time.perf_counter()
    return {"seconds": end - start, "load_seconds": loaded - start, "peak_rss_mb": peak_rss_mb()}


def run_nvflare(folder: Path) -> dict[str, Any]:
    """Aggregate with NVFlare's helper, one update at a time."""
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    start = time.perf_counter()
    helper = WeightedAggregationHelper()
    for index, (arrays, examples) in enumerate(read_updates(folder)):
        helper.add(arrays, float(examples), f"site-{index}", 1)
    helper.get_result()
    return {"seconds": time.perf_counter() - start, "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """Return this process's peak resident memory."""
    with Path("/proc/self/status").open() as status:
        return next(round(int(line.split()[1]) * 1024 / 1e6, 1) for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    contender = {"flower-write": write_for_flower, "flower": run_flower, "nvflare": run_nvflare}[arguments.contender]
    print(json.dumps(contender(arguments.folder)))

"""Flower and NVFlare for `benchmarks.aggregation`: run by an interpreter that has them, and needs nothing of ours.

Flower's server pulls each reply from its SuperLink as a tree of objects, each named by its SHA-256; they are made beforehand.
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

_RUN = 1


def read_updates(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield arrays and example count of each float32 update file."""
    for path in sorted((folder / "updates").iterdir()):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            examples = int(header.pop("__metadata__")["num_examples"])
            yield {name: np.fromfile(file, "<f4", int(spec["shape"][0])) for name, spec in header.items()}, examples


def reply_of(arrays: dict[str, Any], examples: int, number: int) -> Any:
    """Return a device's reply as Flower's server has it in the end."""
    from flwr.app import Array, ArrayRecord, Metadata, MetricRecord, RecordDict
    from flwr.app.message import make_message

    record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples})})
    described = Metadata(_RUN, "", number + 1, 1, f"asked-{number}", "1", time.time(), 3600.0, "train")
    return make_message(metadata=described, content=content)


def write_for_flower(folder: Path) -> dict[str, Any]:
    """Write the replies as Flower keeps them for its server: a tree of objects each, named by their SHA-256."""
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.proto.message_pb2 import PullObjectResponse
    from flwr.proto.runtime_pb2 import PullAppMessagesResponse
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )

    (folder / "flower").mkdir()
    listed = PullAppMessagesResponse()
    for index, (arrays, examples) in enumerate(read_updates(folder)):
        reply = reply_of(arrays, examples, index)
        # Flower names each object by its hash; computing that belongs to the sender, and is not timed.
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            listed.messages_list.append(message_to_proto(remove_content_from_message(reply)))
            listed.message_object_trees.append(get_object_tree(reply))
            for name, value in get_all_nested_objects(reply).items():
                if not (path := folder / "flower" / name).exists():
                    answer = PullObjectResponse(
                        object_found=True, object_available=True, object_content=value.deflate()
                    )
                    path.write_bytes(answer.SerializeToString())
    (folder / "flower" / "messages").write_bytes(listed.SerializeToString())
    return {}


def run_flower(folder: Path) -> dict[str, Any]:
    """Aggregate as Flower does by default: its grid pulls all replies, object by object, and its ``FedAvg`` takes their mean.

    The answers to the grid's requests are read from files: HTTP and the SuperLink behind it cost nothing here.
    """
    from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
    from flwr.proto.runtime_pb2 import PullAppMessagesResponse
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.run import Run
    from flwr.superlink.grid.http_grid import HttpGrid

    class FromFiles:
        def PullMessages(self, _: object) -> Any:  # noqa: N802 - Flower's name
            return PullAppMessagesResponse.FromString((folder / "flower" / "messages").read_bytes())

        def PullObject(self, request: Any) -> Any:  # noqa: N802
            return PullObjectResponse.FromString((folder / "flower" / request.object_id).read_bytes())

        def ConfirmMessageReceived(self, _: object) -> Any:  # noqa: N802
            return ConfirmMessageReceivedResponse()

    grid = HttpGrid(token="none")
    grid.set_run(Run.create_empty(_RUN))
    # In place of the network: what is timed is Flower's own reading and summing.
    grid._client = FromFiles()
    start = time.perf_counter()
    replies = list(grid.pull_messages([]))
    loaded = time.perf_counter()
    arrays, _ = FedAvg().aggregate_train(1, replies)
    end = time.perf_counter()
    if len(replies) < 1 or arrays is None:
        raise SystemExit("Flower made no model of the replies")
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

"""The server's side: FedAvg over as many rounds as the app's configuration says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server import strategy as legacy_strategy
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Ask who is there, then train."""
    asked = [FlowerMessage(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
    known = sorted(reply.content["metrics"]["partition"] for reply in grid.send_and_receive(asked))
    arrays = ArrayRecord(
        {"layer.weight": Array(np.zeros((2, 3), np.float32)), "layer.bias": Array(np.zeros((), np.float64))}
    )
    result = FedAvg().start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord({"whole": 3, "part": 3.0, "on": True, "word": "w", "many": [1, 2]}),
        evaluate_fn=lambda number, arrays: MetricRecord({"mean": float(arrays.to_numpy_ndarrays()[0].mean())}),
    )
    lines = [str(known), str(result.train_metrics_clientapp), str(result.evaluate_metrics_serverapp)]
    Path("result.txt").write_text("\n".join(lines) + "\n")
    np.save("model.npy", result.arrays.to_numpy_ndarrays()[0])


def server_fn(context: Context) -> ServerAppComponents:
    """Say what to do, as servers did before messages."""
    initial = ndarrays_to_parameters([np.zeros((2, 3), np.float32), np.zeros((), np.float32)])
    strategy = legacy_strategy.FedAvg(initial_parameters=initial)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


legacy = ServerApp(server_fn=server_fn)

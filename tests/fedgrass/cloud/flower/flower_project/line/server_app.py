"""The server: a strategy of the app's own, which has participants take larger steps from round to round."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM

app = ServerApp()


class Warming(FedAvgM):
    """FedAvgM whose learning rate grows."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send another learning rate in each round."""
        config["lr"] = 0.1 * server_round
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and leave the model and the figures in the present directory."""
    arrays = ArrayRecord({"weight": Array(np.zeros(1, np.float32)), "bias": Array(np.ones(1, np.float32))})
    result = Warming(server_learning_rate=0.9, server_momentum=0.5).start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord({"steps": 4}),
        evaluate_fn=lambda number, arrays: MetricRecord({"weight": float(arrays["weight"].numpy()[0])}),
    )
    np.savez("model.npz", **{name: array.numpy() for name, array in result.arrays.items()})
    figures = (result.train_metrics_clientapp, result.evaluate_metrics_clientapp, result.evaluate_metrics_serverapp)
    Path("figures.txt").write_text("\n".join(map(repr, figures)))

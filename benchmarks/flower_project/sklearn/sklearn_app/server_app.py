"""FedAvg; the time at which each round is over goes to times.txt."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sklearn_app.client_app import initial

app = ServerApp()


def note(number: int, arrays: ArrayRecord) -> MetricRecord | None:
    """Write down when a round is over."""
    del arrays
    with Path("times.txt").open("a") as stream:
        stream.write(f"{number} {time.monotonic()}\n")
    return None


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train as many rounds as the environment says."""
    del context
    FedAvg(fraction_evaluate=0.0).start(
        grid=grid, initial_arrays=initial(), num_rounds=int(os.environ["ROUNDS"]), evaluate_fn=note
    )

"""The ServerApp of both apps of `benchmarks.flower`: FedAvg; the time at which each round is over goes to times.txt."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg


def timed(initial: ArrayRecord) -> ServerApp:
    """Return an app that trains, from these parameters, as many rounds as the environment says."""
    app = ServerApp()

    def serve(grid: Grid, context: Context) -> None:
        del context
        FedAvg(fraction_evaluate=0.0).start(
            grid=grid, initial_arrays=initial, num_rounds=int(os.environ["ROUNDS"]), evaluate_fn=_note
        )

    app.main()(serve)
    return app


def _note(number: int, arrays: ArrayRecord) -> MetricRecord | None:
    """Write down when a round is over."""
    del arrays
    with Path("times.txt").open("a") as stream:
        stream.write(f"{number} {time.monotonic()}\n")
    return None

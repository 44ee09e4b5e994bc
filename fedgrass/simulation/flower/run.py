"""A Flower app from its directory to its end, on virtual devices here."""

from __future__ import annotations

import importlib
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgrass.engines.flower_node import Scalar
from fedgrass.engines.flower_project import Project, require_flower
from fedgrass.errors import EngineError, FedgrassError
from fedgrass.simulation.flower.grid import VirtualGrid

DEVICES = 10
"""As many as Flower's own simulation has by default."""


@dataclass(frozen=True)
class Ran:
    """What came of a run. ``peak_mb`` is the sum over the processes, of memory that they do not share."""

    devices: int
    messages: dict[str, int]
    failed: int
    seconds: float
    seconds_in_devices: float
    peak_mb: float


def run_app(
    folder: Path,
    *,
    devices: int | None = None,
    workers: int | None = None,
    run_config: Mapping[str, Scalar] | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> Ran:
    """Run an app: its ServerApp's own strategy and rounds, its ClientApp on virtual devices.

    Parameters
    ----------
    folder
        The app's directory, with its pyproject.toml.
    devices
        Virtual devices; what the app's own federation says if not given, else 10.
    workers
        Processes; as many as there are processors if not given.
    run_config
        Laid over the app's ``[tool.flwr.app.config]``.
    said
        Told of what client apps raise, with its traceback.

    Returns
    -------
    Ran
        What went over the grid, and what it took.

    Raises
    ------
    ConfigurationError
        If the directory is no app's, or the app cannot be imported.
    EngineError
        If the ServerApp raises.
    """
    require_flower()
    project = Project.read(folder, run_config or {})
    count = devices or project.devices or DEVICES
    began = time.monotonic()
    server = project.load(project.server_app, "ServerApp")
    project.load(project.client_app, "ClientApp")  # so that what is missing is told once, and before any process starts
    flower = importlib.import_module("flwr.app")
    context = flower.Context(
        run_id=1, node_id=1, node_config={}, state=flower.RecordDict(), run_config=dict(project.run_config)
    )
    with VirtualGrid(project, devices=count, workers=min(workers or os.cpu_count() or 1, count), said=said) as grid:
        try:
            server(grid, context)
        except FedgrassError:
            raise
        except Exception as error:
            said(_traceback(error))
            raise EngineError(f"server app {project.server_app}: {type(error).__name__}: {error}") from error
    found = grid.exchanged
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return Ran(
        devices=count,
        messages=found.messages,
        failed=found.failed,
        seconds=round(time.monotonic() - began, 3),
        seconds_in_devices=round(found.seconds, 3),
        peak_mb=round(own + found.peak_mb, 1),
    )


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))

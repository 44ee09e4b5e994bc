from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fedgrass.data.digits import digits_bundle
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.cluster import Gate, Process, content_of, serve
from fedgrass.simulation.records import SimulationReport
from fedgrass.simulation.run import simulate
from fedgrass.simulation.worker import Setup

SMALL: dict[str, Any] = {"devices": 30, "cohort": 8, "rounds": 3, "examples": 24}
FLEET = {"fit": {"epochs": 2, "learning_rate": 0.2}, "gate": {"tolerance": 1.0}, "deadline_seconds": 3600}

Run = Callable[..., SimulationReport]


def fleet(changes: dict[str, Any] | None = None) -> FleetSettings:
    return FleetSettings().overridden(FLEET).overridden(changes or {})


def run(output: Path, settings: dict[str, Any] | None = None, **options: Any) -> SimulationReport:
    """A small simulation in one process; ``settings`` are the fleet's."""
    workers, resume, done = options.pop("workers", 1), options.pop("resume", False), options.pop("done", lambda _: None)
    ray = options.pop("ray", "")
    return simulate(
        output,
        bundle=options.pop("bundle", digits_bundle()),
        workers=workers,
        resume=resume,
        ray=ray,
        done=done,
        **{**SMALL, "fleet": fleet(settings), **options},
    )


def result(folder: Path) -> tuple[bytes, bytes]:
    """What must not depend on how it was computed: the rounds with all their updates, and the model."""
    return (folder / "rounds.jsonl").read_bytes(), (folder / "model" / "parameters.safetensors").read_bytes()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small simulation that nothing happens to."""
    folder = tmp_path_factory.mktemp("simulation") / "plain"
    run(folder)
    return folder


class Elsewhere:
    """A cluster whose machines are this one: as on others, its processes have nothing but what comes over the connection."""

    def start(self, setup: Setup, workers: int | None) -> list[tuple[Connection, Process]]:
        gate, files = Gate("127.0.0.1"), content_of(setup)
        nowhere = replace(setup, bundle=Path("/nowhere"), scratch=Path("/nowhere"))
        context = multiprocessing.get_context("spawn")
        arguments = (gate.address, gate.key, nowhere, files)
        processes: list[Any] = [context.Process(target=serve, args=arguments) for _ in range(workers or 1)]
        for process in processes:
            process.start()
        return list(zip(gate.admit(processes), processes, strict=True))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a cluster."""
    monkeypatch.setattr("fedgrass.simulation.run.cluster_of", lambda address: Elsewhere() if address else None)
    return "elsewhere"


def refused(match: str) -> Any:
    return pytest.raises(ConfigurationError, match=match)

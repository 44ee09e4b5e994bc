from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgrass.data.digits import digits_bundle
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.records import SimulationReport
from fedgrass.simulation.run import simulate

SMALL: dict[str, Any] = {"devices": 30, "cohort": 8, "rounds": 3, "examples": 24}
FLEET = {"fit": {"epochs": 2, "learning_rate": 0.2}, "gate": {"tolerance": 1.0}, "deadline_seconds": 3600}

Run = Callable[..., SimulationReport]


def fleet(changes: dict[str, Any] | None = None) -> FleetSettings:
    return FleetSettings().overridden(FLEET).overridden(changes or {})


def run(output: Path, settings: dict[str, Any] | None = None, **options: Any) -> SimulationReport:
    """A small simulation in one process; ``settings`` are the fleet's."""
    workers, resume, done = options.pop("workers", 1), options.pop("resume", False), options.pop("done", lambda _: None)
    return simulate(
        output,
        bundle=options.pop("bundle", digits_bundle()),
        workers=workers,
        resume=resume,
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


def refused(match: str) -> Any:
    return pytest.raises(ConfigurationError, match=match)

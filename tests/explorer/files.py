"""The files that the account and the devices begin with: a model, and an update of it."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import ARCHITECTURE, MANIFEST, PARAMETERS, Bundle, Manifest
from fedgrass.protocol.messages import UpdateTask
from fedgrass.update import UpdateHeader, write_update
from tests.explorer.scenario import FLEET, THINGS


@cache
def memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def first_bundle() -> dict[str, bytes]:
    """A model of one parameter, without a graph that could be evaluated here."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-explorer-") as name:
        folder = Path(name)
        (folder / ARCHITECTURE).write_text("{}")
        tensors.save(folder / PARAMETERS, {"w": np.zeros(4, np.float32)})
        tensor = {"name": "w", "shape": (4,), "dtype": "float32"}
        files = {name: {"sha256": "0" * 64, "bytes": 0} for name in (ARCHITECTURE, PARAMETERS)}
        manifest = Manifest.model_validate(
            {
                "schema": 1,
                "name": "tiny",
                "batch_size": 1,
                **{part: {**tensor, "name": part} for part in ("x", "y", "output")},
                "loss": "mean_squared_error",
                "parameters": [tensor],
                "files": files,
            }
        )
        bundle = Bundle.seal(folder, manifest)
        return {name: bundle.path(name).read_bytes() for name in (ARCHITECTURE, PARAMETERS, MANIFEST)}


@cache
def update(thing: str, number: int, base_sha256: str) -> bytes:
    """A device's update, valid for the base of that digest: its content needs no base."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-explorer-") as name:
        path = Path(name) / "update"
        zeros = {"w": np.zeros(4, np.float32)}
        moved = {"w": np.full(4, 1.0 + THINGS.index(thing), np.float32)}
        manifest = Manifest.model_validate_json(first_bundle()[MANIFEST])
        header = UpdateHeader(
            fleet=FLEET,
            round=number,
            thing=thing,
            base_sha256=base_sha256,
            graph_sha256=manifest.graph_sha256,
            num_examples=10,
            metrics={"loss": 0.5},
        )
        write_update(path, zeros, moved, header, UpdateTask(codec="float32"))
        return path.read_bytes()

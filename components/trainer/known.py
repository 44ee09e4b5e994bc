"""The model that a round would most likely start from: what examples are counted for, and an engine is tried with."""

from __future__ import annotations

from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.edge.model_store import ModelStore
from fedgrass.errors import BundleError


def downloads(work: Path) -> Path:
    """Return the folder of the models that rounds had downloaded."""
    return work / "bundles"


def known_model(store: ModelStore, work: Path) -> Bundle | None:
    """Return the active model; where there is none, what a round downloaded last; None if that cannot be opened."""
    if (active := store.active()) is not None:
        return active
    folders = sorted(downloads(work).glob("[0-9]*"), key=lambda folder: folder.stat().st_mtime_ns)
    try:
        return Bundle.open(folders[-1]) if folders else None
    except BundleError:
        return None

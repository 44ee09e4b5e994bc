"""One device's part by hand: what a notebook needs between a bundle and an aggregation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from fedgrass.architecture import engine_of
from fedgrass.bundle import Bundle
from fedgrass.data import DataSettings, Split, load
from fedgrass.engines.base import Dataset, Engine, Metrics
from fedgrass.engines.registry import open_engine
from fedgrass.own_code import own_code
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, UpdateTask, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.training import Trained, TrainingFiles
from fedgrass.training import train as take_part

_FLEET = "notebook"


def load_data(bundle: Bundle, path: str | Path, loader: str = "npz", **settings: Any) -> Split:
    """Read examples as a device does, divided into those that train and those that judge.

    Parameters
    ----------
    loader
        Name of a loader (`fedgrass.parts.LOADERS` lists them), or ``module:function``.
    settings
        The rest of `fedgrass.data.DataSettings`, such as ``label`` or ``validation_fraction``.

    Raises
    ------
    DataError
        If there are none, or they cannot be read for this model.

    Examples
    --------
    >>> import fedgrass, numpy as np
    >>> from fedgrass.data.digits import digits_bundle
    >>> bundle = fedgrass.open_bundle(digits_bundle())
    >>> images, digits = np.zeros((20, 8, 8, 1), np.float32), np.arange(20, dtype=np.int32) % 10
    >>> np.savez("device.npz", x=images, y=digits)
    >>> data = fedgrass.load_data(bundle, "device.npz", validation_fraction=0.25)
    >>> len(data.train), len(data.validation)
    (15, 5)
    """
    return load(DataSettings(loader=loader, path=str(path), **settings), bundle.manifest)


def evaluate(bundle: Bundle, data: Dataset, *, engine: str = "", builder: str | Callable[..., Any] = "") -> Metrics:
    """Return loss and the other figures of a model of its kind.

    Parameters
    ----------
    engine
        Name of an engine, or ``module:Class``; the bundle's own if not given.
    builder
        What builds the model, as devices have it: ``module:object``, or the function or class itself.

    Raises
    ------
    DataError
        If the examples do not fit the model.
    EngineError
        If the engine cannot run the model.

    Examples
    --------
    >>> import fedgrass
    >>> from fedgrass.data.digits import digits, digits_bundle
    >>> figures = fedgrass.evaluate(fedgrass.open_bundle(digits_bundle()), digits((8, 8, 1)))
    >>> figures["loss"] > 0, 0 < figures["accuracy"] < 1
    (True, True)
    """
    opened = _opened(bundle, engine, builder)
    with own_code("evaluating"):
        return opened.evaluate(data)


def _opened(bundle: Bundle, engine: str, builder: str | Callable[..., Any]) -> Engine:
    return open_engine(engine or engine_of(bundle), bundle, builder=builder)


def train(
    bundle: Bundle,
    data: Split,
    update: Path,
    *,
    thing: str,
    epochs: int = 1,
    learning_rate: float | None = None,
    codec: str = "float32",
    engine: str = "",
    builder: str | Callable[..., Any] = "",
) -> Trained:
    """Train from a bundle as a device does in a round, and write its update; `fedgrass.aggregate` takes it.

    Parameters
    ----------
    update
        File to write, such as ``updates/press-1.safetensors``.
    thing
        The device's name; the training's seed follows from it.
    learning_rate
        None: the model's own, by its optimizer.
    engine
        Name of an engine, or ``module:Class``; the bundle's own if not given.
    builder
        What builds the model, as devices have it: ``module:object``, or the function or class itself.

    Raises
    ------
    DataError
        If the examples do not fit the model.
    DivergedError
        If the loss did not stay finite.

    Examples
    --------
    >>> import fedgrass, numpy as np
    >>> from pathlib import Path
    >>> from fedgrass.data.digits import digits_bundle
    >>> bundle = fedgrass.open_bundle(digits_bundle())
    >>> np.savez("device.npz", x=np.ones((20, 8, 8, 1), np.float32), y=np.arange(20, dtype=np.int32) % 10)
    >>> data = fedgrass.load_data(bundle, "device.npz")
    >>> trained = fedgrass.train(bundle, data, Path("updates/press-1.safetensors"), thing="press-1")
    >>> Path("updates/press-1.safetensors").is_file()
    True
    """
    # A round of one device: the announcement that a device would get, with a cohort that takes everybody.
    manifest, now = bundle.manifest, datetime.now(timezone.utc)
    announcement = Announcement(
        fleet=_FLEET,
        round=1,
        opened_at=now,
        deadline=now + timedelta(days=1),
        base=Base.of(manifest, _FLEET),
        cohort=Cohort(salt="all"),
        fit=FitTask(epochs=epochs, learning_rate=learning_rate),
        update=UpdateTask(codec=codec),
        upload=Upload(bucket="notebook", prefix=update_prefix(_FLEET, 1)),
    )
    update.parent.mkdir(parents=True, exist_ok=True)
    # No checkpoint outlives the call: a notebook trains again from the start.
    with tempfile.TemporaryDirectory() as scratch:
        return take_part(
            lambda: _opened(bundle, engine, builder),
            bundle,
            data,
            announcement,
            thing,
            TrainingFiles(update, Path(scratch) / "checkpoint"),
        )

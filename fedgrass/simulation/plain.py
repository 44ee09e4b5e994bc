"""Devices that only train and send what they learnt as it is: what they have in common is done once for all of a round.

To the byte what `fedgrass.simulation.virtual_device` makes of each, and of the file that the aggregator reads. A device that
fails is left out here: there it fails as a device does, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from fedgrass.data.arrays import ArrayDataset
from fedgrass.engines.base import Engine, FitsEach
from fedgrass.fitting import seed_of, settings_of
from fedgrass.protocol.messages import FitTask, UpdateTask
from fedgrass.simulation.examples import Examples
from fedgrass.simulation.population import thing_name
from fedgrass.simulation.virtual_device import Assignment
from fedgrass.update.decoded import DecodedForm, DecodedUpdate
from fedgrass.update.header import UpdateHeader


class PlainDevices:
    """The devices of a round, trained one after the other by an engine that `FitsEach`.

    Parameters
    ----------
    engine
        The engine.
    examples
        Of all devices.
    given
        The round's base and announcement.
    """

    def __init__(self, engine: FitsEach, examples: Examples, given: Assignment) -> None:
        self._engine = engine
        self._examples = examples
        self._given = given

    @classmethod
    def of(cls, engine: Engine, examples: Examples, given: Assignment) -> PlainDevices | None:
        """Return them; None if a device does more in this round, or the engine cannot."""
        return cls(engine, examples, given) if isinstance(engine, FitsEach) and _is_plain(examples, given) else None

    def train(self, devices: Iterable[int]) -> Iterator[tuple[int, DecodedUpdate]]:
        """Yield the devices that learnt something finite, each with its update."""
        given, manifest, announced = self._given, self._given.manifest, self._given.announcement
        before = np.concatenate([value.ravel() for value in given.base.values()])
        form = DecodedForm(manifest.parameters)
        common = settings_of(announced, manifest, "")
        data = {device: self._examples.rows(device) for device in devices}
        work = ((rows, common.seeded(seed_of(announced, thing_name(device)))) for device, rows in data.items())
        for (device, rows), fitted in zip(data.items(), self._engine.fit_each(given.base, work), strict=True):
            if fitted is None:
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.subtract(fitted.values, before, out=fitted.values)
            if not np.isfinite(values).all():
                continue
            header = UpdateHeader(
                fleet=announced.fleet,
                round=announced.round,
                thing=thing_name(device),
                base_sha256=manifest.parameters_sha256,
                graph_sha256=manifest.graph_sha256,
                num_examples=len(rows.x),
                metrics={"steps": float(fitted.steps), "loss": fitted.loss},
            )
            yield device, DecodedUpdate(header, values, form)


# What an announcement may ask of a device here; whatever else there is must be as it is when nothing is asked.
_FIT = {"epochs", "learning_rate", "proximal_mu", "gradient_clip_norm"}


def _is_plain(examples: Examples, given: Assignment) -> bool:
    manifest, announced = given.manifest, given.announcement
    trains = announced.fit.model_dump(exclude=_FIT) == FitTask().model_dump(exclude=_FIT)
    sends = announced.update.model_dump() == UpdateTask().model_dump()
    alone = announced.personal is None and announced.secure is None
    model = manifest.shares_all and manifest.optimizer.schedule is None
    floats = all(parameter.dtype == "float32" for parameter in manifest.parameters)
    rows = isinstance(examples.source, ArrayDataset) and examples.source.weights is None and not examples.validation
    return trains and sends and alone and model and floats and rows

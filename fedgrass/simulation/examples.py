"""The examples of a simulation, prepared once by the process that leads it, and mapped by those that train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import ArrayDataset, Indices, Part, Source
from fedgrass.data.digits import digits
from fedgrass.data.evaluation_set import read_evaluation_set
from fedgrass.data.loaders import open_source
from fedgrass.data.loaders.described import loader_of
from fedgrass.data.several import of_first_class
from fedgrass.data_settings import DataSettings
from fedgrass.engines.base import Batch
from fedgrass.engines.checks import Checked, check_dataset
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.simulation.partition import Partition
from fedgrass.simulation.settings import Attack, PartitionScheme, Simulation
from fedgrass.simulation.tags import dealt_by_tag, tags_of
from fedgrass.tensors import Array

# Sets a device's draw of what it keeps back apart from the other draws of a simulation.
_HELD = 7
# Examples whose labels are read at a time.
_READ = 4096


@dataclass(frozen=True)
class Examples:
    """What the devices train on, and what judges the models.

    With ``tags``, a device has examples of one of these values: the devices take turns in their order.
    """

    source: Source
    partition: Partition
    kept: Part
    validation: float = 0.0
    seed: int = 0
    tags: tuple[str, ...] = ()

    def of(self, device: int) -> Checked:
        """Return the examples that a device trains on; `prepare` has checked all there are."""
        return self._at(self._divided(device)[0])

    def rows(self, device: int) -> Batch:
        """Return all examples of a device at once."""
        return self.source.read(self._divided(device)[0])

    def held_back(self, device: int) -> Checked:
        """Return those that it keeps back, to judge models on."""
        return self._at(self._divided(device)[1])

    def held_back_of(self, devices: Iterable[int]) -> Checked:
        """Return what some devices keep back, together."""
        return self._at(np.concatenate([np.empty(0, np.intp), *(self._divided(device)[1] for device in devices)]))

    def tag(self, device: int) -> str:
        """Return the value that a device's examples have; empty without tags."""
        return self.tags[device % len(self.tags)] if self.tags else ""

    def _divided(self, device: int) -> tuple[Indices, Indices]:
        indices = self.partition.of(device).astype(np.intp)
        if self.validation == 0 or len(indices) < 2:
            return indices, indices[:0]
        order = np.random.default_rng((self.seed, device, _HELD)).permutation(len(indices))
        held = min(max(1, round(len(indices) * self.validation)), len(indices) - 1)
        return indices[np.sort(order[held:])], indices[np.sort(order[:held])]

    def _at(self, indices: Indices) -> Checked:
        if isinstance(self.source, ArrayDataset):
            examples = self.source.read(indices)  # few, and read in every epoch
            return Checked(ArrayDataset(examples.x, examples.y, examples.weights))
        return Checked(Part(self.source, indices))


def prepare(simulation: Simulation, manifest: Manifest, scratch: Path, *, keep_missing: bool = False) -> Examples:
    """Read the data, keep some back, deal the others out to devices, and write what worker processes map.

    Parameters
    ----------
    simulation
        Says where the data are, how they are dealt out, and the seed.
    manifest
        Of the model that they must fit.
    scratch
        Folder for what the workers map.
    keep_missing
        Whether values of x may be missing, and stay NaN, as statistics count them.

    Returns
    -------
    ``Examples``
        The data, who has which, and those kept back.

    Raises
    ------
    DataError
        If the data are missing, do not fit the model, or are too few.
    """
    _require_attackable(simulation, manifest)
    source = _opened(simulation, manifest, keep_missing=keep_missing)
    # All examples once, here, instead of each device's in each of its rounds. What may be missing is measured, by what
    # checks for itself, and not trained on.
    if not keep_missing:
        check_dataset(Part(source, np.arange(len(source))), manifest)
    kept, pool = _kept_back(simulation, manifest, source)
    scheme = PartitionScheme.parse(simulation.partition)
    labels = np.concatenate(
        [of_first_class(source.read(pool[i : i + _READ]).y, manifest) for i in range(0, len(pool), _READ)]
    )
    tags, values = tags_of(simulation, pool, len(source))
    dealt_by_tag(labels, values, simulation, scheme, pool).save(scratch)
    # Mapped like the workers' own, so that this process need not hold them too.
    partition = Partition.mapped(scratch)
    if isinstance(source, ArrayDataset):
        for name, array in (("x", source.x), ("y", source.y), ("weights", source.weights)):
            if array is not None:
                np.save(scratch / f"{name}.npy", array)
    return Examples(source, partition, kept, simulation.validation_share, simulation.seed, tags)


def _kept_back(simulation: Simulation, manifest: Manifest, source: Source) -> tuple[Part, Indices]:
    """Return what judges the models, and which of the examples are left for the devices."""
    if simulation.evaluation:
        other = _judging(simulation, manifest)
        judging = Part(other, np.arange(len(other)))
        check_dataset(judging, manifest)
        return judging, np.arange(len(source))
    order = np.random.default_rng((simulation.seed, 0)).permutation(len(source))
    count = round(len(source) * simulation.held_out)
    if not 0 < count < len(source):
        raise DataError(f"{len(source)} examples: too few to keep {simulation.held_out:.0%} back")
    return Part(source, np.sort(order[:count])), np.sort(order[count:])


def _judging(simulation: Simulation, manifest: Manifest) -> Source:
    path = Path(simulation.evaluation)
    # Which examples are anomalies is known of those that judge alone.
    if manifest.anomaly_quantile is not None and path.suffix == ".npz" and not simulation.loader:
        return read_evaluation_set(path, manifest)
    return _read(simulation, simulation.evaluation, manifest)


def _require_attackable(simulation: Simulation, manifest: Manifest) -> None:
    if simulation.attack and manifest.outputs and Attack.parse(simulation.attack).does.data != "own":
        raise ConfigurationError(
            f"attack {simulation.attack}: changes labels, and model {manifest.name!r} has several outputs; choose one of those "
            "that change the update"
        )


def mapped(simulation: Simulation, manifest: Manifest, scratch: Path) -> Examples:
    """Open in a worker process what `prepare` wrote.

    Parameters
    ----------
    simulation
        As of `prepare`.
    manifest
        As of `prepare`.
    scratch
        As of `prepare`.

    Returns
    -------
    ``Examples``
        The data and who has which; none are kept back here.
    """
    # Arrays were written for mapping; other sources are opened again, as each process reads its own devices' part
    # only.
    if (scratch / "x.npy").exists():
        x, y = (_array(scratch / f"{name}.npy") for name in "xy")
        weights = _array(scratch / "weights.npy") if (scratch / "weights.npy").exists() else None
        source: Source = ArrayDataset(x, y, weights)
    else:
        source = _opened(simulation, manifest)
    nothing = Part(source, np.empty(0, np.intp))
    return Examples(source, Partition.mapped(scratch), nothing, simulation.validation_share, simulation.seed)


def _array(path: Path) -> Array:
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain view: NumPy's own class for mapped files is slow to index


def _opened(simulation: Simulation, manifest: Manifest, *, keep_missing: bool = False) -> Source:
    if not simulation.data and not simulation.loader:
        if int(np.prod(manifest.x.shape)) != 64:
            raise ConfigurationError(
                f"model {manifest.name!r} takes {list(manifest.x.shape)}, the digits are of 64 pixels: name your data with --data"
            )
        return digits(manifest.x.shape)
    return _read(simulation, simulation.data, manifest, keep_missing=keep_missing)


def _read(simulation: Simulation, path: str, manifest: Manifest, *, keep_missing: bool = False) -> Source:
    loader = simulation.loader or loader_of(Path(path))
    settings = DataSettings(loader=loader, path=path, label=simulation.label, missing=simulation.missing)
    return open_source(settings.keeping_missing() if keep_missing else settings, manifest)

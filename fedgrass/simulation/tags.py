"""A tag of the data, such as the site that an example is of: each virtual device has examples of one value."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fedgrass.errors import ConfigurationError, DataError
from fedgrass.simulation.partition import Indices, Partition, divided, drawn
from fedgrass.simulation.settings import MOST_GROUPS, PartitionScheme, Simulation
from fedgrass.tensors import Array

_LONGEST = 64
"""Characters of a value, which is a group's name."""


def tags_of(simulation: Simulation, pool: Indices, count: int) -> tuple[tuple[str, ...], Indices]:
    """Read the tag of a simulation's data.

    Parameters
    ----------
    simulation
        Names the tag, or none.
    pool
        The examples that devices have, by their numbers.
    count
        Examples that there are.

    Returns
    -------
    tuple
        The values, in order, and of which of them each example of the pool is. Without a tag no values, and zeros.

    Raises
    ------
    DataError
        If there is no such array, or it is not one value of at most a hundred for each example.
    ConfigurationError
        If there are more values than devices.
    """
    name = simulation.data_tag
    if not name:
        return (), np.zeros(len(pool), np.int32)
    values = _read(simulation, name)
    if values.shape != (count,) or values.dtype.kind not in "biuUS":
        raise DataError(
            f"tag {name!r}: is {values.dtype}{list(values.shape)}; expected a whole number or a text for each of {count} examples"
        )
    found, places = np.unique(values[pool], return_inverse=True)
    names = tuple(one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in found.tolist())
    if len(names) > MOST_GROUPS or max(map(len, names)) > _LONGEST:
        raise DataError(
            f"tag {name!r}: has {len(names)} values; expected at most {MOST_GROUPS}, of at most {_LONGEST} characters"
        )
    if len(names) > simulation.devices:
        raise ConfigurationError(
            f"tag {name!r}: has {len(names)} values for {simulation.devices} devices; simulate at least as many devices"
        )
    return names, places.astype(np.int32)


def _read(simulation: Simulation, name: str) -> Array:
    data = Path(simulation.data)
    try:
        if simulation.data and data.suffix == ".npz" and not name.endswith(".npy"):
            with np.load(data, allow_pickle=False) as arrays:
                return np.asarray(arrays[name])
        inside = bool(simulation.data) and data.is_dir() and not name.endswith(".npy")
        return np.asarray(np.load(data / f"{name}.npy" if inside else Path(name), allow_pickle=False))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"tag {name!r}: cannot be read ({error}); expected an array of this name in an .npz, NAME.npy beside x.npy in a "
            "folder, or the path of an .npy file"
        ) from error


def dealt_by_tag(
    labels: Array, values: Indices, simulation: Simulation, scheme: PartitionScheme, numbers: Array
) -> Partition:
    """Deal examples out such that each device has examples of one value, by the scheme among the devices of that value.

    Parameters
    ----------
    labels
        [n] of the examples.
    values
        int [n], of which value each example is.
    simulation
        How many devices there are, and examples of each.
    scheme
        How labels are spread.
    numbers
        [n], what the examples are to be called.
    """
    count = int(values.max()) + 1 if len(values) else 1
    if count == 1:
        return _dealt(labels, 0, 1, simulation, scheme, numbers)
    places = [values == at for at in range(count)]
    parts = [_dealt(labels[here], at, count, simulation, scheme, numbers[here]) for at, here in enumerate(places)]
    each = [parts[device % count].of(device // count) for device in range(simulation.devices)]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in each])]).astype(np.int64)
    return Partition(starts, np.concatenate(each))


def _dealt(
    labels: Array, at: int, count: int, simulation: Simulation, scheme: PartitionScheme, numbers: Array
) -> Partition:
    devices = len(range(at, simulation.devices, count))
    if simulation.examples:
        return drawn(labels, devices, simulation.examples, scheme, seed=simulation.seed + at, numbers=numbers)
    return divided(labels, devices, scheme, seed=simulation.seed + at, numbers=numbers)

"""A device's sums as the one file that it uploads: written by the device, and read by the job, which trusts nothing in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import Manifest
from fedgrass.errors import DataError, TensorFileError, TruncatedFileError, UpdateError
from fedgrass.profile.features import bounds_of, feature_names, label_names
from fedgrass.profile.sums import Bounds, FeatureSums
from fedgrass.protocol.profile import Profile, StatisticsTask
from fedgrass.tensors import Array
from fedgrass.update.codecs import StoredTensor
from fedgrass.update.header import MAX_METADATA_BYTES, UpdateHeader
from fedgrass.update.reader import require_layout
from fedgrass.update.writer import UpdateInfo

CODEC = "statistics"
_MAX_HEADER_BYTES = MAX_METADATA_BYTES + 2048
# Half of what the 32-bit counts of a histogram can hold.
_MOST_EXAMPLES = 1 << 31
# Relative: what rounding in sums over many values may make of an inequality that holds exactly.
_SLACK = 1e-6


@dataclass(frozen=True)
class Layout:
    """What a device's file must hold in a round."""

    features: int
    labels: int
    rows: int
    """Values of each feature in an example."""
    bounds: Bounds | None
    held: tuple[float, float] | None = None
    """The operator's bounds: no minimum or maximum is told beyond them."""

    @classmethod
    def of(cls, manifest: Manifest, task: StatisticsTask, earlier: Profile | None) -> Layout:
        """Return what a round's files hold.

        Parameters
        ----------
        manifest
            Of the round's base.
        task
            What the round asks for.
        earlier
            The profile that it names, for the histograms' bounds.
        """
        features = len(feature_names(manifest))
        held = (task.low, task.high) if task.low is not None and task.high is not None else None
        return cls(
            features,
            len(label_names(manifest)),
            manifest.x.size // features,
            bounds_of(task, manifest, earlier),
            held,
        )

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The file's tensors, in order."""
        wide = self.bounds.bins + 2 if self.bounds else 0
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("count", "missing", "mean", "m2", "low", "high"), (self.features,)
        )
        shapes |= {"histogram": (self.features, wide), "labels": (self.labels,)}
        return tuple(StoredTensor(name, _DTYPES[name], shape) for name, shape in shapes.items())

    @property
    def max_bytes(self) -> int:
        """Size that no such file exceeds."""
        data = sum(tensor.dtype.itemsize * int(np.prod(tensor.shape)) for tensor in self.stored)
        return 8 + _MAX_HEADER_BYTES + data


_DTYPES: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(("count", "missing", "labels"), np.dtype("<i8")),
    **dict.fromkeys(("mean", "m2", "low", "high"), np.dtype("<f8")),
    "histogram": np.dtype("<u4"),
}


def encode(sums: FeatureSums, header: UpdateHeader, layout: Layout) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the file's tensors and metadata.

    Parameters
    ----------
    sums
        What a device has measured.
    header
        Who it is, and in which round.
    layout
        What the round's files hold; lows and highs are clipped to its bounds, where it has any.

    Returns
    -------
    tuple
        Arrays by name, and the metadata.
    """
    # A feature without values has infinite ends in memory, and a file may hold finite numbers only.
    none = sums.count == 0
    low, high = np.where(none, 0.0, sums.low), np.where(none, 0.0, sums.high)
    if layout.held is not None:
        low, high = np.clip(low, *layout.held), np.clip(high, *layout.held)
    found = {
        **{name: getattr(sums, name) for name in ("count", "missing", "mean", "m2")},
        "low": low,
        "high": high,
        "histogram": sums.histogram,
        "labels": sums.labels,
    }
    arrays = {name: np.asarray(values).astype(_DTYPES[name]) for name, values in found.items()}
    return arrays, {**header.to_metadata(), "codec": CODEC}


def write(path: Path, sums: FeatureSums, header: UpdateHeader, layout: Layout) -> UpdateInfo:
    """Write a device's sums, whole or not at all; the same sums give the same bytes.

    Parameters
    ----------
    path
        File to write.
    sums
        What a device has measured.
    header
        Who it is, and in which round.
    layout
        What the round's files hold.

    Returns
    -------
    UpdateInfo
        Digest and size of the file.

    Raises
    ------
    DataError
        If the values are too large or too many.
    """
    if sums.count.max(initial=0) >= _MOST_EXAMPLES:
        raise DataError(
            f"{sums.count.max():.0f} values of a feature; below {_MOST_EXAMPLES} are told of. Set windowRows"
        )
    if not np.isfinite([sums.mean, sums.m2]).all():
        raise DataError("statistics: values are so large that their squares have no sum; scale them in the data loader")
    arrays, metadata = encode(sums, header, layout)
    sha256 = tensors.save(path, arrays, metadata)
    return UpdateInfo(sha256, path.stat().st_size, 0.0)


def read(stream: BinaryIO, file_bytes: int, layout: Layout) -> tuple[UpdateHeader, FeatureSums]:
    """Read a device's sums, and compare them with each other: what contradicts itself is refused.

    Parameters
    ----------
    stream
        At the file's start.
    file_bytes
        Its size, as the storage says.
    layout
        What it must hold.

    Raises
    ------
    UpdateError
        Coded as an update's are (docs/reference/quarantine.md).
    """
    # Before a byte is read: the size follows from the round, so a larger file is not what was asked for.
    if file_bytes > layout.max_bytes:
        raise UpdateError("too_large", f"{file_bytes} bytes; these statistics have at most {layout.max_bytes}")
    try:
        found = tensors.read_header(
            stream, file_bytes=file_bytes, name="statistics", max_header_bytes=_MAX_HEADER_BYTES
        )
        header = UpdateHeader.from_metadata(found.metadata)
        if header.codec != CODEC:
            raise UpdateError("unknown_codec", f"codec {header.codec!r}; the round asks for {CODEC}")
        # Names, types and shapes are known before the arrays are made: nothing is allocated by what a device says.
        require_layout(found.tensors, layout.stored)
        arrays: dict[str, Array] = {}
        for spec in found.tensors:
            arrays[spec.name] = np.empty(spec.shape, spec.dtype)
            tensors.read_into(stream, arrays[spec.name], name="statistics")
    except TruncatedFileError as error:
        raise UpdateError("truncated", str(error)) from error
    except TensorFileError as error:
        raise UpdateError("corrupt_header", str(error)) from error
    # Each file for itself; whether it fits to the other devices' is judged later (`fedgrass.profile.misfits`).
    if wrong := _impossible(arrays, header.num_examples, layout):
        raise UpdateError("corrupt_data", wrong)
    return header, _sums(arrays, header.num_examples, layout)


def _sums(arrays: Mapping[str, Array], examples: int, layout: Layout) -> FeatureSums:
    sums = FeatureSums(layout.features, layout.labels, layout.bounds)
    for name in ("count", "missing", "mean", "m2", "histogram", "labels"):
        setattr(sums, name, arrays[name].astype(np.float64))
    none = arrays["count"] == 0
    sums.low, sums.high = np.where(none, np.inf, arrays["low"]), np.where(none, -np.inf, arrays["high"])
    sums.examples = float(examples)
    return sums


def _impossible(arrays: Mapping[str, Array], examples: int, layout: Layout) -> str:
    """Return what contradicts the rest of the numbers; empty if nothing does."""
    for name in ("mean", "m2", "low", "high"):
        if not np.isfinite(arrays[name]).all():
            return f"{name}: a value is not finite"
    count, missing, labels = arrays["count"], arrays["missing"], arrays["labels"]
    if min(count.min(), missing.min(), labels.min(initial=0)) < 0:
        return "a count is below zero"
    # Float64 counts exactly up to 2^53.
    if max(count.max(), missing.max()) >= 1 << 52:
        return "a count is beyond 2^52"
    # Every example has each value once, be it there or missing.
    if (count + missing != examples * layout.rows).any():
        return f"count and missing do not add up to the values of {examples} examples in each feature"
    if labels.max(initial=0) > examples:
        return "a label is more frequent than examples are"
    if layout.bounds is not None and not np.array_equal(arrays["histogram"].sum(axis=1, dtype=np.int64), count):
        return "a histogram does not add up to count"
    return _impossible_moments(arrays, layout)


def _impossible_moments(arrays: Mapping[str, Array], layout: Layout) -> str:
    count, mean, m2, low, high = (arrays[name] for name in ("count", "mean", "m2", "low", "high"))
    there = count > 0
    with np.errstate(over="ignore"):
        reach = high - low
        room = _SLACK * (reach + np.abs(mean))
        wrong = (reach < 0) | (m2 < 0)
        # Held ends are the operator's bounds and not the device's own: mean and variance may then lie outside.
        if layout.held is None:
            # No variance passes (high - mean)(mean - low) (Bhatia and Davis, 2000).
            most = count * np.maximum(high - mean, 0) * np.maximum(mean - low, 0)
            wrong |= (mean < low - room) | (mean > high + room)
            wrong |= m2 > most * (1 + _SLACK) + count * room * room
    if (wrong & there).any():
        return f"feature {int(np.argmax(wrong & there))}: mean, variance, minimum and maximum contradict each other"
    return ""

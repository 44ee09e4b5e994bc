"""A participant's part in a round of statistics: measure what it trains on, and write the file that it uploads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass.answer import Answer
from fedgrass.bundle import Manifest
from fedgrass.downloads import ObjectStore, fetch
from fedgrass.engines.base import Dataset
from fedgrass.errors import BundleError, ConfigurationError, DataError, MessageError
from fedgrass.profile.features import bounds_of, measured
from fedgrass.profile.files import CODEC, Layout, write
from fedgrass.profile.summed import TENSOR, SummedLayout, vector_of
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import Profile, ProfileReference, StatisticsTask
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import UpdateInfo, write_update


@dataclass(frozen=True)
class Measured:
    """The file that was written, and of how many examples it tells."""

    info: UpdateInfo
    num_examples: int

    @property
    def answer(self) -> Answer:
        """What the cloud is told."""
        return Answer("uploaded", sha256=self.info.sha256, bytes=self.info.bytes, num_examples=self.num_examples)


def task_of(announcement: Announcement) -> StatisticsTask:
    """Return what a round of statistics asks for; raises `MessageError` if the announcement does not say it."""
    if announcement.statistics is None:
        raise MessageError("the round asks for statistics and does not say which (statistics)")
    return announcement.statistics


def fetch_profile(store: ObjectStore, bucket: str, named: ProfileReference, folder: Path, *, max_bytes: int) -> Profile:
    """Return a profile that an announcement names; one that was fetched before is not fetched again.

    Parameters
    ----------
    store
        An S3 client.
    bucket
        The bucket.
    named
        The profile.
    folder
        Where it is kept.
    max_bytes
        Bytes above which it is not fetched.

    Raises
    ------
    TransferError
        If it cannot be read now.
    BundleError
        If it is not what was announced, or too large.
    DataError
        If it is not a profile.
    """
    # Judged by what is announced, before anything is downloaded.
    if named.bytes > max_bytes:
        raise BundleError(
            f"profile {named.key}: {named.bytes} bytes; this device takes at most {max_bytes} (maxBundleMb)"
        )
    path = folder / "profile.json"
    fetch(store, bucket, named.key, path, sha256=named.sha256, size=named.bytes)
    return Profile.read(path.read_bytes(), name=named.key)


def measure(
    examples: Dataset,
    manifest: Manifest,
    announcement: Announcement,
    thing: str,
    path: Path,
    earlier: Profile | None = None,
    *,
    keys: Path | None = None,
) -> Measured:
    """Measure a participant's examples and write the file.

    Parameters
    ----------
    examples
        What the participant would train on.
    manifest
        Of the round's base, whose inputs they are.
    announcement
        The round.
    thing
        Name of the participant.
    path
        File to write.
    earlier
        The profile that the round names.
    keys
        Folder of the participant's signing key, which a round with secure aggregation needs.

    Raises
    ------
    DataError
        If there are no examples, they are too few for the round, or they do not fit the model.
    """
    task = task_of(announcement)
    if task.max_rows is not None:
        return _measure_sums(examples, manifest, announcement, thing, path, earlier, keys)
    layout = Layout.of(manifest, task, earlier)
    found = measured(examples, manifest, layout.bounds)
    count = int(found.examples)
    _require_enough(count, announcement)
    return Measured(write(path, found, _header(announcement, thing, count, CODEC), layout), count)


def _measure_sums(
    examples: Dataset,
    manifest: Manifest,
    announcement: Announcement,
    thing: str,
    path: Path,
    earlier: Profile | None,
    keys: Path | None,
) -> Measured:
    """Write a bounded vector of counts in place of an update: clipped, noised and masked as one."""
    bounds = bounds_of(task_of(announcement), manifest, earlier)
    layout = SummedLayout.of(manifest, announcement, bounds)
    vector, count = vector_of(examples, manifest, layout)
    _require_enough(count, announcement)
    # A number of examples beside noise or masks would give away what they hide.
    header = _header(announcement, thing, 1, announcement.update.codec)
    before, after = {TENSOR: np.zeros_like(vector)}, {TENSOR: vector}
    if announcement.secure is None:
        return Measured(write_update(path, before, after, header, announcement.update), 1)
    # Not every device has the library that it needs.
    from fedgrass.secure.device import context_of, masked, signing_key

    if keys is None:
        raise ConfigurationError("secure: this participant has no folder for a key, so it cannot mask its statistics")
    update = masked(
        before,
        after,
        header,
        1,
        announcement.secure,
        context_of(announcement),
        signing_key(keys),
        clip_norm=announcement.update.clip_norm,
    )
    return Measured(UpdateInfo(update.save(path), path.stat().st_size, 0.0), 1)


def _require_enough(count: int, announcement: Announcement) -> None:
    # After reading, for only then is the number known.
    if count < announcement.cohort.min_examples:
        raise DataError(f"{count} examples; the round wants {announcement.cohort.min_examples} at least")


def _header(announcement: Announcement, thing: str, count: int, codec: str) -> UpdateHeader:
    return UpdateHeader(
        fleet=announcement.fleet,
        round=announcement.round,
        thing=thing,
        base_sha256=announcement.base.parameters_sha256,
        graph_sha256=announcement.base.graph_sha256,
        num_examples=count,
        codec=codec,
    )

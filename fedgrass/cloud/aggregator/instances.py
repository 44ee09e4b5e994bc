"""The instances of a round's Processing job: the first leads, the others add up their lanes and leave the sums for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fedgrass.cloud.aggregator.exchange import BucketPartialSums
from fedgrass.cloud.aggregator.lanes import lanes_of
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.aggregator.update_list import UpdateList
from fedgrass.protocol.names import partial_prefix
from fedgrass.protocol.records import RoundRecord


@dataclass(frozen=True)
class Instance:
    """One of them.

    Attributes
    ----------
    index, count
        Which one this is, from 0, and how many there are.
    patience
        Seconds to wait for the others; the job's time limit if None.
    """

    index: int = 0
    count: int = 1
    patience: float | None = None

    @property
    def has_lanes(self) -> bool:
        """Whether there is anything for it to add up: there may be more instances than lanes."""
        return bool(lanes_of(self.index, self.count))

    def partial_sums(self, record: RoundRecord, bucket: Bucket, scratch: Path, pinned: UpdateList) -> BucketPartialSums:
        """Return the place where the round's instances leave their sums for each other.

        Parameters
        ----------
        record
            The round's.
        bucket
            The fleet's.
        scratch
            Folder for a lane on its way.
        pinned
            The updates: what another list, strategy or base left is not read.
        """
        settings = record.settings
        # All that the sums depend on: a job with another list, strategy or base must not find these.
        what = pinned.model_dump_json() + settings.strategy.model_dump_json() + record.base.parameters_sha256
        return BucketPartialSums(
            self.index,
            self.count,
            bucket,
            f"{partial_prefix(record.fleet, record.round)}{hashlib.sha256(what.encode()).hexdigest()[:16]}/",
            scratch,
            patience=settings.aggregation.timeout_seconds if self.patience is None else self.patience,
        )

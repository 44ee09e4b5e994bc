"""The instances of one job: each sums lanes of its own, the first adds the lanes up.

What they tell each other lies under a prefix of the round's own, below the digest of the pinned update list: an instance that is
started again finds or rewrites the very same bytes. Nothing is published before the first instance has every lane; once the round
has its report, the first instance removes it all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.cloud.aggregator.combination import Screened, merged
from fedgrass.cloud.aggregator.lanes import lanes_of
from fedgrass.cloud.aggregator.screening import Accepted
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.errors import AggregationError, TransferError
from fedgrass.polling import poll
from fedgrass.protocol.report import QuarantinedEntry
from fedgrass.strategies.arithmetic.interfaces import Sums, UpdateMetadata
from fedgrass.tensors import read_into

# A note lists every update of a lane: hundreds of bytes for each.
_MAX_NOTE_BYTES = 1 << 30
# Values that are read and added at once: a lane's sum is as large as the model, and never whole in memory.
_BLOCK = 1 << 17


class ObjectStore(Protocol):
    """Where instances meet: a `fedgrass.cloud.aggregator.s3.Bucket`, or what has the same keys."""

    def uri(self, key: str) -> str:
        """Return the object's address, for messages."""
        ...

    def read(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return an object; None if there is none yet."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write an object, whole."""
        ...

    def write_file(self, key: str, path: Path) -> None:
        """Write a file's content as an object, whole."""
        ...

    def open(self, key: str, size: int) -> BinaryIO:
        """Open an object of that size."""
        ...


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    good: tuple[tuple[UpdateReference, UpdateMetadata], ...]
    refused: tuple[QuarantinedEntry, ...]

    @classmethod
    def of(cls, found: Screened) -> _Told:
        return cls(good=tuple((one.reference, one.facts) for one in found.good), refused=tuple(found.refused))

    @property
    def found(self) -> Screened:
        return Screened([Accepted(reference, facts) for reference, facts in self.good], self.refused)


class BucketPartialSums:
    """A `fedgrass.cloud.aggregator.combination.Share` by way of the fleet's bucket.

    Parameters
    ----------
    index, count
        Which instance this is, and how many there are.
    bucket, prefix
        Where to leave what the others need.
    scratch
        Folder for a lane on its way.
    patience
        Seconds to wait for another instance before the job fails. SageMaker ends the job sooner if one of them dies.
    """

    def __init__(
        self,
        index: int,
        count: int,
        bucket: ObjectStore,
        prefix: str,
        scratch: Path,
        *,
        patience: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own = lanes_of(index, count)
        self._index = index
        self._count = count
        self._bucket = bucket
        self._prefix = prefix
        self._scratch = scratch
        self._sleep = sleep
        self._clock = clock
        # One deadline for all that is waited for, from the start.
        self._deadline = clock() + patience

    def exchange(self, found: Screened) -> Screened:
        """Tell the others of one's own updates, and return what all instances found, in their order."""
        self._bucket.write(self._survey(self._index), _Told.of(found).model_dump_json().encode())
        everything = Screened((), ())
        # An instance without lanes writes nothing: nobody waits for it.
        for index in filter(lambda index: lanes_of(index, self._count), range(self._count)):
            everything = merged(everything, self._await(self._survey(index)).found)
        return everything

    def give(self, lane: int, total: Sums, found: Screened) -> None:
        """Leave a lane's sum for the first instance; the note comes last and says that the sum is complete.

        Parameters
        ----------
        lane
            Number of the lane.
        total
            Its weighted sum.
        found
            Which of its updates are in the sum, and which were refused.
        """
        # A lane without a good update has no sum, and its note says so.
        if found.good:
            path = self._scratch / "lane"
            total.tofile(path)
            self._bucket.write_file(self._sum(lane), path)
            path.unlink()
        self._bucket.write(self._note(lane), _Told.of(found).model_dump_json().encode())

    def add(self, lane: int, total: Sums) -> Screened:
        """Wait for another instance's lane and add its sum, block by block."""
        found = self._await(self._note(lane)).found
        if found.good:
            buffer = np.empty(_BLOCK, total.dtype)
            with self._bucket.open(self._sum(lane), total.nbytes) as stream:
                for start in range(0, len(total), _BLOCK):
                    piece = total[start : start + _BLOCK]
                    read_into(stream, buffer[: len(piece)], name=self._bucket.uri(self._sum(lane)))
                    np.add(piece, buffer[: len(piece)], out=piece)
        return found

    def _await(self, key: str) -> _Told:
        content = poll(
            lambda: self._bucket.read(key, max_bytes=_MAX_NOTE_BYTES),
            lambda found: found is not None,
            until=lambda: self._deadline,
            # S3 bills each look; the first ones come soon, for small models.
            pause=0.05,
            growth=1.5,
            most=2.0,
            sleep=self._sleep,
            clock=self._clock,
        )
        if content is None:
            raise AggregationError(
                f"{self._bucket.uri(key)}: another instance of the job has not written it in time. Run the job again"
            )
        try:
            return _Told.model_validate_json(content)
        except ValidationError as error:
            raise TransferError(f"{self._bucket.uri(key)}: is not a note of another instance ({error})") from error

    def _survey(self, index: int) -> str:
        return f"{self._prefix}measured-{self._count:03d}-{index:03d}.json"

    def _sum(self, lane: int) -> str:
        return f"{self._prefix}sum-{lane:02d}.bin"

    def _note(self, lane: int) -> str:
        return f"{self._prefix}sum-{lane:02d}.json"

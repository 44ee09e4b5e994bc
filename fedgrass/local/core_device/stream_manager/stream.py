"""One message stream: its definition, its segments and how far its exports have come, all in one folder."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from fedgrass.files import write_atomically
from fedgrass.local.core_device.stream_manager.definition import (
    ExportProgress,
    Persistence,
    StrategyOnFull,
    StreamDefinition,
)
from fedgrass.local.core_device.stream_manager.segments import RECORD_OVERHEAD, Record, Segment
from fedgrass.local.core_device.stream_manager.wire import Status, StreamError

# Data are dropped segment by segment, so that a small stream needs several to keep most of what it can hold.
_SEGMENTS_PER_STREAM = 4
_MIN_SEGMENT_BYTES = 1024


class _Progress(BaseModel):
    exports: dict[str, ExportProgress] = Field(default_factory=dict)


class MessageStream:
    """Appends and reads messages; sequence numbers go on from 0 and are never reused."""

    def __init__(
        self, folder: Path, definition: StreamDefinition | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.appended = asyncio.Event()
        self._clock = clock
        if definition is not None:
            folder.mkdir(parents=True)
            self.definition = definition
            self._save_definition()
        else:
            self.definition = StreamDefinition.model_validate_json((folder / "definition.json").read_bytes())
        # Kept in files as well, and forgotten at the start: that is all that MEMORY promises.
        if self.definition.persistence is Persistence.MEMORY:
            for path in folder.glob("*.segment"):
                path.unlink()
            (folder / "exports.json").unlink(missing_ok=True)
        # Names are numbers of 20 digits: their order as texts is their order.
        self._segments = [Segment(path) for path in sorted(folder.glob("*.segment"))] or [Segment.create(folder, 0)]
        saved = folder / "exports.json"
        self._progress = _Progress.model_validate_json(saved.read_bytes()) if saved.exists() else _Progress()

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.definition.name

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def oldest(self) -> int:
        """Sequence number of the oldest message that is still there."""
        return self._segments[0].first

    @property
    def next(self) -> int:
        """Sequence number that the next message gets."""
        return self._segments[-1].next

    def append(self, payload: bytes) -> int:
        """Append a message and return its sequence number.

        Raises
        ------
        StreamError
            The stream is full and rejects new data, or could never hold this message.
        """
        self._expire()
        size = len(payload) + RECORD_OVERHEAD
        if size > self.definition.max_size:
            raise StreamError(
                Status.REQUEST_PAYLOAD_TOO_LARGE,
                f"message of {len(payload)} bytes is larger than stream {self.name} ({self.definition.max_size})",
            )
        # Whole segments go, the oldest first, until there is room.
        while self.size + size > self.definition.max_size:
            if self.definition.strategy_on_full is StrategyOnFull.REJECT_NEW_DATA:
                raise StreamError(
                    Status.INVALID_REQUEST,
                    f"stream {self.name} is full: {self.size} of {self.definition.max_size} bytes are in use",
                )
            self._drop_oldest()
        if self._segments[-1].size and self._segments[-1].size + size > self._segment_size():
            self._segments.append(Segment.create(self.folder, self.next))
        now = int(self._clock() * 1000)
        sequence = self._segments[-1].append(now, payload, flush=self.definition.flush_on_write)
        # An event for each message: whoever waits for the old one wakes, whoever comes now waits for the next.
        self.appended.set()
        self.appended = asyncio.Event()
        return sequence

    def read(self, start: int, count: int) -> list[Record]:
        """Return up to ``count`` messages from ``start`` on, or from the oldest if that is later."""
        self._expire()
        first = max(start, self.oldest)
        return [self._record(sequence) for sequence in range(first, min(first + count, self.next))]

    def update(self, definition: StreamDefinition) -> None:
        """Replace the definition, except what cannot change.

        Raises
        ------
        StreamError
            The persistence differs.
        """
        if definition.persistence is not self.definition.persistence:
            raise StreamError(Status.UPDATE_NOT_ALLOWED, f"stream {self.name}: persistence cannot be changed")
        self.definition = definition
        self._save_definition()

    def progress(self, export: str) -> ExportProgress:
        """Return how far an export has come."""
        return self._progress.exports.setdefault(export, ExportProgress())

    def save_progress(self) -> None:
        """Keep the progress of all exports."""
        write_atomically(self.folder / "exports.json", self._progress.model_dump_json().encode())

    def describe(self) -> dict[str, Any]:
        """Return the ``messageStreamInfo`` of a describe response."""
        self._expire()
        return {
            "definition": self.definition.model_dump(mode="json", by_alias=True, exclude_none=True),
            "storageStatus": {
                "oldestSequenceNumber": self.oldest,
                "newestSequenceNumber": self.next - 1,
                "totalBytes": self.size,
            },
            "exportStatuses": [
                {
                    "exportConfigIdentifier": export.identifier,
                    **self.progress(export.identifier).model_dump(by_alias=True),
                }
                for export in self.definition.exports
            ],
        }

    def close(self) -> None:
        """Close the files."""
        for segment in self._segments:
            segment.close()

    def delete(self) -> None:
        """Remove the stream from the disk."""
        self.close()
        shutil.rmtree(self.folder)

    def _record(self, sequence: int) -> Record:
        segment = next(one for one in reversed(self._segments) if one.first <= sequence)
        try:
            return segment.read(sequence)
        except OSError as error:
            raise StreamError(Status.MESSAGE_STORE_READ_ERROR, f"stream {self.name}: {error}") from error

    def _segment_size(self) -> int:
        share = max(_MIN_SEGMENT_BYTES, self.definition.max_size // _SEGMENTS_PER_STREAM)
        return min(self.definition.stream_segment_size, share)

    def _expire(self) -> None:
        lifetime = self.definition.time_to_live_millis
        while lifetime is not None and self._segments[0].size:
            if self._segments[0].newest_time + lifetime > self._clock() * 1000:
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        # The numbers must go on after the last segment: a new one carries the next.
        if len(self._segments) == 1:
            self._segments.append(Segment.create(self.folder, self.next))
        self._segments.pop(0).delete()

    def _save_definition(self) -> None:
        content = self.definition.model_dump_json(by_alias=True, exclude_none=True)
        write_atomically(self.folder / "definition.json", content.encode())

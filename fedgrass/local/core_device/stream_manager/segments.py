"""A stream's messages on disk: append-only segments, of which the oldest can be dropped.

Each record is a header (payload length, sequence number, ingest time in ms, CRC-32 of the rest and the payload) and
the payload. A torn record at the end, from a power cut, is cut off when the segment is opened.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

# Big-endian: length, sequence, time in ms, checksum. The next one is the part under the checksum.
_HEADER = struct.Struct(">IqqI")
_CHECKED = struct.Struct(">Iqq")
RECORD_OVERHEAD = _HEADER.size


@dataclass(frozen=True)
class Record:
    """A message and its place in the stream; ``ingest_time`` is in milliseconds since the epoch."""

    sequence: int
    ingest_time: int
    payload: bytes


class Segment:
    """One file of consecutive records, named by its first sequence number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = int(path.stem)
        self.newest_time = 0
        self._offsets: list[int] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = self._recover()

    @classmethod
    def create(cls, folder: Path, first: int) -> Segment:
        """Begin a segment with sequence number ``first``."""
        return cls(folder / f"{first:020d}.segment")

    @property
    def next(self) -> int:
        """Sequence number that the next record gets."""
        return self.first + len(self._offsets)

    def append(self, ingest_time: int, payload: bytes, *, flush: bool) -> int:
        """Write a record at the segment's end.

        Parameters
        ----------
        ingest_time
            Unix milliseconds; given back to whoever reads it.
        payload
            The record's bytes.
        flush
            Whether it is on the disk itself when this returns.

        Returns
        -------
        int
            Its sequence number.

        Raises
        ------
        OSError
            If the disk is full; then nothing of it stays.
        """
        sequence = self.next
        checked = _CHECKED.pack(len(payload), sequence, ingest_time)
        record = _HEADER.pack(len(payload), sequence, ingest_time, zlib.crc32(checked + payload)) + payload
        try:
            # In one call, at the end as it is known here: what an earlier failure left behind it is written over.
            os.pwrite(self._file, record, self.size)
            if flush:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self.size)  # the disk is full: drop what was written of the record
            raise
        self._offsets.append(self.size)
        self.size += len(record)
        self.newest_time = ingest_time
        return sequence

    def read(self, sequence: int) -> Record:
        """Return one record of this segment."""
        record = self._read_at(self._offsets[sequence - self.first])
        if record is None or record.sequence != sequence:
            raise OSError(f"{self.path}: record {sequence} is damaged")
        return record

    def close(self) -> None:
        """Close the file; it cannot be used after."""
        os.close(self._file)

    def delete(self) -> None:
        """Remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _recover(self) -> int:
        offset = 0
        # The number is checked too: a record that is not the next one is none of this segment's.
        while (record := self._read_at(offset)) is not None and record.sequence == self.next:
            self._offsets.append(offset)
            self.newest_time = record.ingest_time
            offset += RECORD_OVERHEAD + len(record.payload)
        os.ftruncate(self._file, offset)
        return offset

    def _read_at(self, offset: int) -> Record | None:
        header = os.pread(self._file, RECORD_OVERHEAD, offset)
        if len(header) < RECORD_OVERHEAD:
            return None
        length, sequence, ingest_time, checksum = _HEADER.unpack(header)
        payload = os.pread(self._file, length, offset + RECORD_OVERHEAD)
        if len(payload) < length or zlib.crc32(header[: _CHECKED.size] + payload) != checksum:
            return None
        return Record(sequence, ingest_time, payload)

"""The checksums that S3 keeps of objects, computed over what was read of one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from botocore import httpchecksum
from botocore.compat import HAS_CRT

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html; the quicker before the slower, where an
# object has several. S3 itself gives CRC-64/NVME to objects that come without one.
_ALGORITHMS: dict[str, Callable[[], _Running]] = {
    "crc32": httpchecksum.Crc32Checksum,
    "sha256": httpchecksum.Sha256Checksum,
    "sha1": httpchecksum.Sha1Checksum,
}
if HAS_CRT:  # botocore has these where awscrt is installed
    _ALGORITHMS = {
        "crc64nvme": httpchecksum.CrtCrc64NvmeChecksum,
        "crc32c": httpchecksum.CrtCrc32cChecksum,
        **_ALGORITHMS,
    }


class _Running(Protocol):
    def update(self, chunk: Any, /) -> Any: ...
    def digest(self) -> bytes: ...


class Checksum:
    """What the bytes of an object are to come to."""

    def __init__(self, name: str, running: _Running, expected: bytes) -> None:
        self.name = name
        self._running = running
        self._expected = expected

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Checksum | None:
        """Return the checksum that an answer's headers, in lower case, name for the whole object.

        None if there is none that can be computed here: none at all, one of the parts of an upload (it ends in ``-`` and their
        number), or one for which awscrt is needed and missing.
        """
        for name, algorithm in _ALGORITHMS.items():
            value = headers.get(f"x-amz-checksum-{name}", "")
            if not value or "-" in value:
                continue
            try:
                return cls(name, algorithm(), base64.b64decode(value, validate=True))
            except binascii.Error:
                continue
        return None

    def update(self, block: Any) -> None:
        """Take the object's next bytes."""
        self._running.update(block)

    def holds(self) -> bool:
        """Whether the bytes so far are those of the object."""
        return self._running.digest() == self._expected

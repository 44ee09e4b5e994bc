"""A pinned object as a stream: taken up where a connection broke, and compared with its checksum at its end."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from fedgrass.cloud.aggregator.checksums import Checksum
from fedgrass.cloud.aggregator.kept_connections import Exchange
from fedgrass.cloud.aggregator.ranges import WORTH, RangedBody
from fedgrass.cloud.aggregator.signed_get import SignedGets
from fedgrass.cloud.aggregator.sources import Opener, UpdateReference
from fedgrass.errors import FedgrassError, TransferError, UpdateError
from fedgrass.logs import Log

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = Log(__name__)

# For connections that break in the middle of a body, which no repeated request covers.
_RETRY = Retrying(
    retry=retry_if_exception_type((BotoCoreError, OSError)),
    stop=stop_after_attempt(5),
    wait=wait_random_exponential(multiplier=0.1, max=5),
    reraise=True,
)
_GONE = frozenset({"NoSuchKey", "NoSuchVersion", "PreconditionFailed", "MethodNotAllowed", "404", "412"})


class OtherBytesError(TransferError):
    """What S3 answered with is not the object, or not the part of it, that was asked for."""


class Asked:
    """An object that was asked for, ahead of its use; called, it is opened as by `open_object`."""

    def __init__(self, gets: SignedGets, bucket: str, reference: UpdateReference, begun: Exchange) -> None:
        self._given = gets, bucket, reference
        self._begun = begun

    def __call__(self) -> BinaryIO:
        """Open it."""
        return open_object(*self._given, self._begun)

    def close(self) -> None:
        """Give it up unopened."""
        self._begun.close()


def ask_for_object(gets: SignedGets, bucket: str, reference: UpdateReference, *, connections: int = 1) -> Opener | None:
    """Ask for an object without waiting for it, to be read by so many connections; None if it can only be opened."""
    if connections > 1 and reference.bytes >= WORTH:
        # Opened when it is needed: its parts are asked for one by one.
        return _Later(gets, bucket, reference, connections)
    begun = gets.begin(_Object(gets, bucket, reference).request)
    return None if begun is None else Asked(gets, bucket, reference, begun)


def open_object(
    gets: SignedGets, bucket: str, reference: UpdateReference, begun: Exchange | None = None, *, connections: int = 1
) -> BinaryIO:
    """Open the very bytes that a reference pins, for ``read`` and ``readinto``.

    Parameters
    ----------
    gets
        Fetches.
    bucket
        The object's bucket.
    reference
        The object.
    begun
        The answer to a request for it that was sent ahead.
    connections
        How many may fetch it side by side, if it is large.

    Raises
    ------
    UpdateError
        Coded ``missing`` if they are no longer there.
    TransferError
        If S3 does not answer, or with something else; while reading, too.
    """
    what = _Object(gets, bucket, reference)
    ranged = what.in_ranges(connections) if connections > 1 and reference.bytes >= WORTH else None
    return ranged or what.in_one(begun)  # type: ignore[return-value] # streams without the rarer methods of files


@dataclass(frozen=True)
class _Later:
    """An object that is opened in ranges when it is needed."""

    gets: SignedGets
    bucket: str
    reference: UpdateReference
    connections: int

    def __call__(self) -> BinaryIO:
        return open_object(self.gets, self.bucket, self.reference, connections=self.connections)

    def close(self) -> None:
        pass


class _Object:
    """A pinned object, and the ways to read it."""

    def __init__(self, gets: SignedGets, bucket: str, reference: UpdateReference) -> None:
        self._gets = gets
        self._size = reference.bytes
        self._where = f"s3://{bucket}/{reference.key}"
        self.request = {"Bucket": bucket, "Key": reference.key}
        # Pinned: an object that was replaced since the listing must not be read in its place.
        if reference.etag:
            self.request["IfMatch"] = f'"{reference.etag}"'
        if reference.version_id:
            self.request["VersionId"] = reference.version_id

    def in_one(self, begun: Exchange | None) -> io.RawIOBase:
        """Read it by one request."""
        try:
            body = self._open_at(0, self._size, begun)
        except BotoCoreError as error:
            raise failed(f"reading {self._where}", error) from error
        summed = _Summed(Checksum.of(body.headers), self._where, self._size)
        return _ResumingBody(self._open_at, self._where, (0, self._size), body, summed.take)

    def in_ranges(self, connections: int) -> io.RawIOBase | None:
        """Read it in ranges; None if S3 does not tell of what, which one request then meets in its own way."""
        headers = self._gets.head(self.request)
        if headers is None or headers.get("content-length") != str(self._size) or "etag" not in headers:
            return None
        # All ranges are of the object whose checksum this is.
        self.request["IfMatch"] = headers["etag"]
        summed = _Summed(Checksum.of(headers), self._where, self._size)
        return RangedBody(self._part, self._size, connections, summed.take)

    def _part(self, start: int, end: int) -> io.RawIOBase:
        return _ResumingBody(self._open_at, self._where, (start, end))

    def _open_at(self, position: int, end: int, begun: Exchange | None = None) -> _Body:
        last = "" if end == self._size else end - 1
        at = {**self.request, "Range": f"bytes={position}-{last}"} if position or last else self.request
        try:
            body = _opened(self._gets, at, begun)
        except ClientError as error:
            if code_of(error) in _GONE:
                raise UpdateError(
                    "missing", f"{self._where}: what was listed is no longer there ({code_of(error)})"
                ) from error
            raise failed(f"reading {self._where}", error) from error
        # Of botocore's credentials, where what renews them gives some that are over.
        except RuntimeError as error:
            raise failed(f"reading {self._where}", error) from error
        try:
            body.require(position, end, self._where)
        except TransferError:
            body.close()
            raise
        return body


class _Body:
    """An answer's body, whoever fetched it, with the headers that came before it."""

    def __init__(self, stream: Any, status: int, headers: Mapping[str, str]) -> None:
        self.readinto: Callable[[Any], int] = stream.readinto
        self.close: Callable[[], None] = stream.close
        self._status = status
        self.headers = headers

    def require(self, position: int, end: int, where: str) -> None:
        """Refuse other bytes than those from ``position`` on: a server may ignore what it is asked for."""
        begins = self.headers.get("content-range", "") if self._status == 206 else "bytes 0-"
        length = self.headers.get("content-length", "none")
        if not begins.startswith(f"bytes {position}-") or length != str(end - position):
            raise OtherBytesError(
                f"reading {where} failed: asked for bytes {position} to {end}, answered with {length} bytes"
                f" ({begins or 'all of it'}). Nothing is lost: run the job again"
            )


def _opened(gets: SignedGets, request: Mapping[str, str], begun: Exchange | None) -> _Body:
    if (signed := gets.get(request, begun)) is not None:
        return _Body(signed, signed.status, signed.headers)
    answer = gets.by_boto3(request)
    about = answer["ResponseMetadata"]
    return _Body(answer["Body"], about["HTTPStatusCode"], about["HTTPHeaders"])


class _Summed:
    """The checksum of a whole object, over its bytes as they come."""

    def __init__(self, checksum: Checksum | None, where: str, size: int) -> None:
        self._checksum = checksum
        self._where = where
        self._size = self._left = size

    def take(self, block: memoryview) -> None:
        """Take the next bytes; raises `TransferError` with the last ones if they are not the object's."""
        if self._checksum is None or not block.nbytes:
            return
        self._checksum.update(block)
        self._left -= block.nbytes
        # With the last bytes, not at the read that finds no more: who knows the size does not ask for it.
        if not self._left and not self._checksum.holds():
            raise TransferError(
                f"reading {self._where} failed: its {self._checksum.name} checksum is not that of the {self._size} bytes that"
                " came. Nothing is lost: run the job again"
            )


class _ResumingBody(io.RawIOBase):
    """An object's bytes, or a part of them, fetched on from where it stopped when a connection breaks."""

    def __init__(
        self,
        open_at: Callable[[int, int], _Body],
        where: str,
        span: tuple[int, int],
        body: _Body | None = None,
        check: Callable[[memoryview], None] | None = None,
    ) -> None:
        self._open_at = open_at
        self._where = where
        self._position, self._end = span
        self._body = body
        self._check = check

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        # Most reads go well, and the machinery of repeating takes longer than to read.
        try:
            count = self._take(view)
        except (BotoCoreError, OSError):
            count = self._repeated(view)
        if self._check is not None:
            self._check(view[:count])
        return count

    def _repeated(self, buffer: memoryview) -> int:
        try:
            count: int = _RETRY(self._take, buffer)
        except (BotoCoreError, OSError) as error:
            raise failed(f"reading {self._where}", error) from error
        return count

    def _take(self, buffer: memoryview) -> int:
        if self._position >= self._end or not buffer.nbytes:
            return 0
        try:
            if self._body is None:
                self._body = self._open_at(self._position, self._end)
            count = self._body.readinto(buffer)
            if not count:
                raise ConnectionResetError(f"ended after {self._position} of {self._end} bytes")
        except (BotoCoreError, OSError) as error:
            log.log_event("object_read_interrupted", object=self._where, position=self._position, error=str(error))
            self._close_body()
            raise
        self._position += count
        return count

    def _close_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        self._close_body()
        super().close()


def code_of(error: ClientError) -> str:
    """Return S3's word for an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def failed(what: str, error: Exception) -> FedgrassError:
    """Return the error of a transfer that did not come about."""
    return TransferError(f"{what} failed: {error}. Nothing is lost: run the job again")

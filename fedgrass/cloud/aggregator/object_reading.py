"""A pinned object as a stream: taken up where a connection broke, and compared with its checksum at its end."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from fedgrass.cloud.aggregator.checksums import Checksum
from fedgrass.cloud.aggregator.kept_connections import Exchange
from fedgrass.cloud.aggregator.signed_get import SignedGets
from fedgrass.cloud.aggregator.sources import UpdateReference
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


def ask_for_object(gets: SignedGets, bucket: str, reference: UpdateReference) -> Asked | None:
    """Ask for an object without waiting for it; None if it can only be opened."""
    begun = gets.begin(_request(bucket, reference))
    return None if begun is None else Asked(gets, bucket, reference, begun)


def open_object(gets: SignedGets, bucket: str, reference: UpdateReference, begun: Exchange | None = None) -> BinaryIO:
    """Open the very bytes that a reference pins, for ``read`` and ``readinto``.

    Raises
    ------
    UpdateError
        Coded ``missing`` if they are no longer there.
    TransferError
        If S3 does not answer, or with something else; while reading, too.
    """
    request = _request(bucket, reference)
    where = f"s3://{bucket}/{reference.key}"

    def open_at(position: int, begun: Exchange | None = None) -> _Body:
        at = {**request, "Range": f"bytes={position}-"} if position else request
        try:
            body = _opened(gets, at, begun)
        except ClientError as error:
            if code_of(error) in _GONE:
                raise UpdateError(
                    "missing", f"{where}: what was listed is no longer there ({code_of(error)})"
                ) from error
            raise failed(f"reading {where}", error) from error
        # Of botocore's credentials, where what renews them gives some that are over.
        except RuntimeError as error:
            raise failed(f"reading {where}", error) from error
        try:
            body.require(position, reference.bytes, where)
        except TransferError:
            body.close()
            raise
        return body

    try:
        return _ResumingBody(open_at, where, reference.bytes, open_at(0, begun))  # type: ignore[return-value]
    except BotoCoreError as error:
        raise failed(f"reading {where}", error) from error


def _request(bucket: str, reference: UpdateReference) -> dict[str, str]:
    request = {"Bucket": bucket, "Key": reference.key}
    # Pinned: an object that was replaced since the listing must not be read in its place.
    if reference.etag:
        request["IfMatch"] = f'"{reference.etag}"'
    if reference.version_id:
        request["VersionId"] = reference.version_id
    return request


class _Body:
    """An answer's body, whoever fetched it, with the headers that came before it."""

    def __init__(self, stream: Any, status: int, headers: Mapping[str, str]) -> None:
        self.readinto: Callable[[Any], int] = stream.readinto
        self.close: Callable[[], None] = stream.close
        self._status = status
        self.headers = headers

    def require(self, position: int, size: int, where: str) -> None:
        """Refuse other bytes than those from ``position`` on: a server may ignore what it is asked for."""
        begins = self.headers.get("content-range", "") if self._status == 206 else "bytes 0-"
        length = self.headers.get("content-length", "none")
        if not begins.startswith(f"bytes {position}-") or length != str(size - position):
            raise OtherBytesError(
                f"reading {where} failed: asked for bytes {position} to {size}, answered with {length} bytes"
                f" ({begins or 'all of it'}). Nothing is lost: run the job again"
            )


def _opened(gets: SignedGets, request: Mapping[str, str], begun: Exchange | None) -> _Body:
    if (signed := gets.get(request, begun)) is not None:
        return _Body(signed, signed.status, signed.headers)
    answer = gets.by_boto3(request)
    about = answer["ResponseMetadata"]
    return _Body(answer["Body"], about["HTTPStatusCode"], about["HTTPHeaders"])


class _ResumingBody(io.RawIOBase):
    """An object's bytes, fetched on from where it stopped when a connection breaks."""

    def __init__(self, open_at: Callable[[int], _Body], where: str, size: int, body: _Body) -> None:
        self._open_at = open_at
        self._where = where
        self._size = size
        self._position = 0
        self._body: _Body | None = body
        self._checksum = Checksum.of(body.headers)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        # Most reads go well, and the machinery of repeating takes longer than to read.
        try:
            count = self._take(view)
        except (BotoCoreError, OSError):
            count = self._repeated(view)
        self._check(view[:count])
        return count

    def _repeated(self, buffer: memoryview) -> int:
        try:
            count: int = _RETRY(self._take, buffer)
        except (BotoCoreError, OSError) as error:
            raise failed(f"reading {self._where}", error) from error
        return count

    def _take(self, buffer: memoryview) -> int:
        if self._position >= self._size or not buffer.nbytes:
            return 0
        try:
            if self._body is None:
                self._body = self._open_at(self._position)
            count = self._body.readinto(buffer)
            if not count:
                raise ConnectionResetError(f"ended after {self._position} of {self._size} bytes")
        except (BotoCoreError, OSError) as error:
            log.log_event("object_read_interrupted", object=self._where, position=self._position, error=str(error))
            self._close_body()
            raise
        self._position += count
        return count

    def _check(self, block: memoryview) -> None:
        if self._checksum is None or not block.nbytes:
            return
        self._checksum.update(block)
        # With the last bytes, not at the read that finds no more: who knows the size does not ask for it.
        if self._position == self._size and not self._checksum.holds():
            raise TransferError(
                f"reading {self._where} failed: its {self._checksum.name} checksum is not that of the {self._size} bytes that"
                " came. Nothing is lost: run the job again"
            )

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

"""A bucket as the aggregator uses it: pinned reads, bounded downloads, and objects that are written once."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.cloud.aggregator.object_reading import (
    OtherBytesError,
    ask_for_object,
    code_of,
    failed,
    open_object,
)
from fedgrass.cloud.aggregator.ranges import CONNECTIONS, share_of
from fedgrass.cloud.aggregator.signed_get import SignedGets
from fedgrass.cloud.aggregator.sources import Asking, Opener, UpdateReference
from fedgrass.errors import MessageError, ReleaseError, TransferError
from fedgrass.files import sha256_of
from fedgrass.protocol.names import UPDATE_FILE, parse_update_key, update_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        ListObjectVersionsOutputTypeDef,
        ListObjectVersionsRequestTypeDef,
        ObjectIdentifierTypeDef,
        ObjectVersionTypeDef,
    )

# Bytes read at once: digests are computed on the way, without the whole file in memory.
_BLOCK = 1 << 20
_DIGEST = "sha256"  # user metadata: lets a repeated upload be compared without a download


class Bucket:
    """One S3 bucket. Every failure that is not told apart below is a `TransferError`."""

    def __init__(self, client: S3Client, name: str) -> None:
        self._client = client
        self._gets = SignedGets(client)
        self.name = name

    @property
    def client(self) -> S3Client:
        """The boto3 client beneath."""
        return self._client

    def uri(self, key: str) -> str:
        """Return the address that recipes use."""
        return f"s3://{self.name}/{key}"

    def read(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return an object's content, or None if there is no such object.

        Raises
        ------
        TransferError
            If it has more than ``max_bytes``.
        """
        try:
            answer = self._client.get_object(Bucket=self.name, Key=key)
        except ClientError as error:
            # Without ListBucket S3 answers 403 for a key that does not exist.
            if code_of(error) == "NoSuchKey" or (code_of(error) == "AccessDenied" and not self._lists(key)):
                return None
            raise failed(f"reading {self.uri(key)}", error) from error
        # Before the body is read: nothing here is trusted to be small.
        if answer["ContentLength"] > max_bytes:
            raise TransferError(f"{self.uri(key)}: {answer['ContentLength']} bytes; at most {max_bytes} are accepted")
        try:
            content: bytes = answer["Body"].read()
        except (BotoCoreError, OSError) as error:
            raise failed(f"reading {self.uri(key)}", error) from error
        return content

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes; None if there is no such object."""
        try:
            return int(self._client.head_object(Bucket=self.name, Key=key)["ContentLength"])
        except ClientError as error:
            if code_of(error) in {"404", "NoSuchKey", "NotFound"}:
                return None
            raise failed(f"reading {self.uri(key)}", error) from error
        except BotoCoreError as error:
            raise failed(f"reading {self.uri(key)}", error) from error

    def download(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        """Fetch an object whose size and digest are known.

        Parameters
        ----------
        key
            The object's key.
        path
            File to write.
        size
            Its bytes.
        sha256
            Its SHA-256, in hex.

        Raises
        ------
        TransferError
            If it cannot be read, or is another object.
        """
        try:
            found = self._copied(key, path, size)
        except OtherBytesError:
            found = ""
        if found != sha256:
            raise TransferError(
                f"{self.uri(key)}: its content is not what the manifest says ({size} bytes, SHA-256 {sha256[:12]}…)"
            )

    def _copied(self, key: str, path: Path, size: int) -> str:
        digest = hashlib.sha256()
        with self.open(key, size) as body, path.open("wb") as file:
            while block := body.read(_BLOCK):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    def write(self, key: str, content: bytes) -> None:
        """Write an object, replacing what is there."""
        try:
            self._client.put_object(Bucket=self.name, Key=key, Body=content)
        except (ClientError, BotoCoreError) as error:
            raise failed(f"writing {self.uri(key)}", error) from error

    def write_file(self, key: str, path: Path) -> None:
        """Write a file's content, in parts if it is large, replacing what is there."""
        try:
            self._client.upload_file(str(path), self.name, key)
        except (ClientError, BotoCoreError, S3UploadFailedError) as error:
            raise failed(f"writing {self.uri(key)}", error) from error

    def remove_below(self, prefix: str) -> None:
        """Delete all objects whose keys begin with ``prefix``; safe to repeat."""
        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                # A page has at most 1,000 keys, as many as one DeleteObjects takes.
                keys: list[ObjectIdentifierTypeDef] = [{"Key": entry["Key"]} for entry in page.get("Contents", ())]
                if keys:
                    answer = self._client.delete_objects(Bucket=self.name, Delete={"Objects": keys, "Quiet": True})
                    for left in answer.get("Errors", ()):
                        raise TransferError(f"{self.uri(left['Key'])}: was not deleted ({left['Code']})")
        except (ClientError, BotoCoreError) as error:
            raise failed(f"deleting {self.uri(prefix)}", error) from error

    def open(self, key: str, size: int) -> BinaryIO:
        """Open an object of known size for ``readinto``; a broken connection is taken up where it stopped."""
        # Lanes' sums and models: nothing else is fetched beside them.
        reference = UpdateReference(thing="", key=key, bytes=size)
        return open_object(self._gets, self.name, reference, connections=CONNECTIONS)

    def write_first(self, key: str, content: bytes) -> bytes:
        """Write an object unless there is one, and return what is there then: the first writer's content."""
        if self._create(key, content, hashlib.sha256(content).hexdigest()):
            return content
        # A bound against an object that somebody else put there: update lists are far smaller.
        found = self.read(key, max_bytes=1 << 30)
        if found is None:
            raise TransferError(f"{self.uri(key)}: was there and is gone; run again")
        return found

    def publish(self, key: str, path: Path) -> None:
        """Write a file to a key that never changes afterwards; repeating it with the same content is harmless.

        Raises
        ------
        ReleaseError
            If the key holds other content: a published version is never overwritten.
        """
        digest = sha256_of(path)
        with path.open("rb") as file:
            if self._create(key, file, digest):
                return
        try:
            # By the digest in its metadata: comparing contents would download every model again.
            found = self._client.head_object(Bucket=self.name, Key=key).get("Metadata", {}).get(_DIGEST)
        except (ClientError, BotoCoreError) as error:
            raise failed(f"reading {self.uri(key)}", error) from error
        if found != digest:
            raise ReleaseError(
                f"{self.uri(key)}: holds other content (SHA-256 {str(found)[:12]}…, ours is {digest[:12]}…). "
                "Published models are never overwritten: publish under another version"
            )

    def _lists(self, key: str) -> bool:
        """Whether there is such an object, for a role that may list some prefixes only: S3 then denies what is missing."""
        try:
            found = self._client.list_objects_v2(Bucket=self.name, Prefix=key, MaxKeys=1).get("Contents", [])
        except (ClientError, BotoCoreError) as error:
            raise failed(f"listing {self.uri(key)}", error) from error
        return any(entry["Key"] == key for entry in found)

    def _create(self, key: str, body: bytes | BinaryIO, digest: str) -> bool:
        try:
            # IfNoneMatch: S3 decides which of two writers is first.
            self._client.put_object(Bucket=self.name, Key=key, Body=body, Metadata={_DIGEST: digest}, IfNoneMatch="*")
        except ClientError as error:
            if code_of(error) in {"PreconditionFailed", "412"}:
                return False
            raise failed(f"writing {self.uri(key)}", error) from error
        except BotoCoreError as error:
            raise failed(f"writing {self.uri(key)}", error) from error
        return True


class RoundUpdates(Asking):
    """The updates of one round in the bucket (`fedgrass.protocol.names.update_key`)."""

    def __init__(
        self, client: S3Client, bucket: str, fleet: str, number: int, *, gets: SignedGets | None = None
    ) -> None:
        self._client = client
        self._gets = gets or SignedGets(client)
        self._bucket = bucket
        self._fleet = fleet
        self._prefix = update_prefix(fleet, number)

    def of_round(self, number: int) -> RoundUpdates:
        """Return the updates of another round of the fleet."""
        return RoundUpdates(self._client, self._bucket, self._fleet, number, gets=self._gets)

    def list(self) -> list[UpdateReference]:
        """Return the newest version of the objects under the round's prefix, as `objects` finds them."""
        return [reference for reference, _ in self.objects()]

    def objects(self, things: Collection[str] | None = None) -> Iterator[tuple[UpdateReference, str]]:
        """Yield the newest version of objects under the round's prefix, in order, each with the name of its folder.

        One folder is a thing's. Who fills a folder gains nothing by it: where a page of the listing ends in one, the rest of that
        folder is passed over, but for the update; and where ``things`` are given, so are the folders up to the next thing's. The
        number of requests is bounded by the things, not by what lies there.
        """
        try:
            for entry in self._entries(things):
                reference = self._reference(entry)
                yield reference, entry["Key"][len(self._prefix) :].partition("/")[0]
        except (ClientError, BotoCoreError) as error:
            raise failed(f"listing s3://{self._bucket}/{self._prefix}", error) from error

    def open(self, reference: UpdateReference) -> BinaryIO:
        """Open the very version that was pinned."""
        return open_object(self._gets, self._bucket, reference)

    def ask(self, reference: UpdateReference, *, among: int) -> Opener | None:
        """Ask for the version that was pinned, and do not wait for it; None if it can only be opened."""
        return ask_for_object(self._gets, self._bucket, reference, connections=share_of(among))

    def _entries(self, things: Collection[str] | None) -> Iterator[ObjectVersionTypeDef]:
        folders = sorted(f"{self._prefix}{thing}/" for thing in things or ())
        marker = ""
        while True:
            page = self._page({"Bucket": self._bucket, "Prefix": self._prefix, "KeyMarker": marker})
            # Older versions are not taken: an update is what its thing wrote last.
            yield from (entry for entry in page.get("Versions", ()) if entry["IsLatest"])
            if not page["IsTruncated"]:
                return
            # Not NextKeyMarker: of what it names, documents and services differ.
            last = max(str(entry["Key"]) for entry in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())))
            folder = last[: last.find("/", len(self._prefix)) + 1] or last
            update = folder + UPDATE_FILE
            # The folder is passed over, but its update may lie behind what was listed of it.
            if last < update:
                beyond = self._page({"Bucket": self._bucket, "Prefix": update, "MaxKeys": 1}).get("Versions", ())
                yield from (entry for entry in beyond if entry["IsLatest"] and entry["Key"] == update)
            marker = (
                folder[:-1] + "0" if folder.endswith("/") else last
            )  # '0' follows '/': beyond all keys of the folder
            if things is not None:
                following = bisect_right(folders, folder)
                if following == len(folders):
                    return
                marker = max(marker, folders[following])

    def _page(self, request: ListObjectVersionsRequestTypeDef) -> ListObjectVersionsOutputTypeDef:
        return self._client.list_object_versions(**request)

    @staticmethod
    def _reference(entry: ObjectVersionTypeDef) -> UpdateReference:
        version = entry.get("VersionId")
        return UpdateReference(
            thing=_thing(entry["Key"]),
            key=entry["Key"],
            bytes=entry["Size"],
            etag=entry["ETag"].strip('"'),
            version_id=None if version == "null" else version,  # of a bucket without versioning
        )


def _thing(key: str) -> str:
    try:
        return parse_update_key(key).thing
    except MessageError:
        return ""

"""Model bundles from S3: bounded, checked by digest, whole or absent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from fedgrass.bundle import BUILDER, MANIFEST, MAX_MANIFEST_BYTES, PARAMETERS, Bundle, Manifest, parse_manifest
from fedgrass.errors import BundleError, FedgrassError, TransferError
from fedgrass.files import flush_directory, sha256_of
from fedgrass.protocol.messages import Base

# Bytes read at a time: a model of gigabytes passes through a megabyte of memory.
_BLOCK = 1 << 20


class ObjectStore(Protocol):
    """The one S3 call that is used, as boto3's client has it."""

    def get_object(self, *, Bucket: str, Key: str) -> Mapping[str, Any]:  # noqa: N803 - boto3's names
        """Return an object whose ``Body`` can be read."""
        ...


def fetch_bundle(store: ObjectStore, bucket: str, base: Base, folder: Path, *, max_bytes: int) -> Bundle:
    """Return the announced bundle from ``folder``, downloading what is missing there.

    Only what training needs is fetched: manifest, graph, builder and parameters; the manifest in ``folder`` names just these.

    Parameters
    ----------
    store
        An S3 client.
    bucket
        The bucket that the announcement names.
    base
        The model, by version, key and digests.
    folder
        Where the files go; what is whole there is not fetched again.
    max_bytes
        Bytes of all files above which nothing is fetched.

    Returns
    -------
    Bundle
        The bundle in ``folder``.

    Raises
    ------
    TransferError
        If an object cannot be read now; trying again may help.
    BundleError
        If the objects are not what the announcement says, or too large; trying again will not help.
    """
    prefix = str(PurePosixPath(base.parameters_key).parent)
    name = f"s3://{bucket}/{prefix}/{MANIFEST}"
    # The manifest first: it says how large the rest is, and is checked against the announcement.
    manifest = manifest_of(base, _read(store, bucket, f"{prefix}/{MANIFEST}", MAX_MANIFEST_BYTES), name=name)
    wanted = {
        name: manifest.files[name] for name in manifest.files if name in (manifest.graph_file, BUILDER, PARAMETERS)
    }
    total = sum(description.bytes for description in wanted.values())
    if total > max_bytes:
        raise BundleError(f"s3://{bucket}/{prefix}: {total} bytes; this device takes at most {max_bytes} (maxBundleMb)")
    folder.mkdir(parents=True, exist_ok=True)
    for name, description in wanted.items():
        fetch(store, bucket, f"{prefix}/{name}", folder / name, sha256=description.sha256, size=description.bytes)
    return Bundle(folder, manifest.model_copy(update={"files": wanted}))


def manifest_of(base: Base, content: bytes, *, name: str) -> Manifest:
    """Read the manifest of a round's base.

    Parameters
    ----------
    base
        The model that it must be of.
    content
        The file's content, untrusted.
    name
        What the file is called in an error.

    Returns
    -------
    Manifest
        The manifest.

    Raises
    ------
    BundleError
        If it is malformed, or of another model.
    """
    manifest = parse_manifest(content, name=name)
    if not base.names(manifest):
        raise BundleError(f"{name}: is not the model {base.version} that the round starts from")
    return manifest


def fetch(store: ObjectStore, bucket: str, key: str, path: Path, *, sha256: str, size: int, exact: bool = True) -> None:
    """Download one object of known size and digest, unless ``path`` holds it.

    Parameters
    ----------
    store
        An S3 client.
    bucket
        The bucket.
    key
        The object's key.
    path
        File to write, whole or not at all; its folder exists.
    sha256
        The object's SHA-256, in hex.
    size
        Its bytes; no more are taken.
    exact
        Whether they are known; if not, ``size`` is the most that it may have.

    Raises
    ------
    TransferError
        If it cannot be read.
    BundleError
        If it is another object.
    """
    # The size before the digest: hashing what is obviously another file takes seconds on a small device.
    if path.is_file() and (path.stat().st_size == size or not exact) and sha256_of(path) == sha256:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    digest, count = hashlib.sha256(), 0
    body = _open(store, bucket, key)
    try:
        with partial.open("wb") as stream:
            while block := _next(body, key):
                count += len(block)
                # Stopped at once: an object that was replaced by a larger one must not fill the disk.
                if count > size:
                    break
                digest.update(block)
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        # A connection that broke off looks like this, so it is worth another try; a wrong digest is not.
        if exact and count < size:
            raise TransferError(f"s3://{bucket}/{key}: ended after {count} of {size} bytes")
        if count > size or digest.hexdigest() != sha256:
            raise BundleError(f"s3://{bucket}/{key}: differs from its digest {sha256[:12]}…")
        partial.replace(path)
        flush_directory(path.parent)
    except OSError as error:
        raise TransferError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        body.close()
        partial.unlink(missing_ok=True)


def _read(store: ObjectStore, bucket: str, key: str, most: int) -> bytes:
    body = _open(store, bucket, key)
    try:
        parts, count = [], 0
        # One block more than allowed is read at most; whoever parses it sees that it is too long.
        while count <= most and (block := _next(body, key)):
            parts.append(block)
            count += len(block)
        return b"".join(parts)
    finally:
        body.close()


def _open(store: ObjectStore, bucket: str, key: str) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return store.get_object(Bucket=bucket, Key=key)["Body"]
    except (ClientError, BotoCoreError) as error:
        raise _translated(f"s3://{bucket}/{key}", error) from error


def _next(body: Any, key: str) -> bytes:
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:
        block: bytes = body.read(_BLOCK)
    except (BotoCoreError, HTTPError, OSError) as error:
        raise TransferError(f"{key}: reading broke off ({type(error).__name__})") from error
    return block


def _translated(name: str, error: Exception) -> FedgrassError:
    code = getattr(error, "response", {}).get("Error", {}).get("Code", type(error).__name__)
    # S3 answers 403 for a missing key without the right to list, so only these mean that waiting is of no use.
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return BundleError(f"{name}: does not exist")
    return TransferError(f"{name}: cannot be read ({code})")

"""A published model bundle, fetched whole to start from; a device fetches what it trains with (`fedgrass.downloads`)."""

from __future__ import annotations

from pathlib import Path

from fedgrass.bundle import MANIFEST, MAX_MANIFEST_BYTES, PARAMETERS, Bundle
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.downloads import manifest_of
from fedgrass.errors import TransferError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import Base


def download_bundle(bucket: Bucket, base: Base, folder: Path) -> Bundle:
    """Fetch a published bundle whole, comparing every file with its digest.

    Parameters
    ----------
    bucket
        The fleet's bucket; a broken connection is taken up where it stopped.
    base
        The model, by version, key and digests.
    folder
        Where the files go; must not exist.

    Returns
    -------
    Bundle
        The bundle in ``folder``.

    Raises
    ------
    TransferError
        If a file is missing or differs.
    BundleError
        If the manifest is not that of ``base``.
    """
    prefix = base.parameters_key.removesuffix(PARAMETERS)
    content = bucket.read(prefix + MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
    if content is None:
        raise TransferError(f"{bucket.uri(prefix + MANIFEST)}: missing; publish the model again")
    manifest = manifest_of(base, content, name=bucket.uri(prefix + MANIFEST))
    # Without exist_ok: files of another model in the folder would look like a part of this one.
    folder.mkdir(parents=True)
    for name, description in manifest.files.items():
        bucket.download(prefix + name, folder / name, size=description.bytes, sha256=description.sha256)
    # Last, as in the bucket: a folder with a manifest is whole.
    write_atomically(folder / MANIFEST, content)
    return Bundle.open(folder)

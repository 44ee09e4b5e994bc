"""A published model bundle, fetched to start from."""

from __future__ import annotations

from pathlib import Path

from cloud.aggregator.s3 import Bucket
from fedgrass.bundle import MANIFEST, MAX_MANIFEST_BYTES, PARAMETERS, Bundle, parse_manifest
from fedgrass.errors import BundleError, TransferError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import Base


def download_bundle(bucket: Bucket, base: Base, folder: Path) -> Bundle:
    """Fetch the bundle that lies beside ``base.parameters_key``, every file compared with its digest.

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
    manifest = parse_manifest(content, name=bucket.uri(prefix + MANIFEST))
    if (manifest.parameters_sha256, manifest.graph_sha256) != (base.parameters_sha256, base.graph_sha256):
        raise BundleError(f"{bucket.uri(prefix)}: is not the model {base.version} that the round was opened with")
    folder.mkdir(parents=True)
    for name, description in manifest.files.items():
        bucket.download(prefix + name, folder / name, size=description.bytes, sha256=description.sha256)
    write_atomically(folder / MANIFEST, content)
    return Bundle.open(folder)

"""The model of a round: a parameter file in a folder, and the manifest that names its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle, Manifest, Parameters


def rebased(manifest: Manifest, parameters_sha256: str, *, version: str = "") -> Manifest:
    """Return the manifest with another digest for the parameters; the rest is the same model."""
    description = manifest.files[PARAMETERS].model_copy(update={"sha256": parameters_sha256})
    changes = {"files": {**manifest.files, PARAMETERS: description}, "version": version or manifest.version}
    return manifest.model_copy(update=changes)


def in_folder(manifest: Manifest, parameters: Parameters, folder: Path, *, version: str) -> Bundle:
    """Write the parameter file and return the bundle that it makes, for aggregation only: no other file is there."""
    content = b"".join(tensors.encode(parameters))
    path = folder / PARAMETERS
    path.unlink(missing_ok=True)  # to truncate a file is to wait: ext4 then writes the new content to the disk at once
    path.write_bytes(content)
    return Bundle(folder, rebased(manifest, hashlib.sha256(content).hexdigest(), version=version))

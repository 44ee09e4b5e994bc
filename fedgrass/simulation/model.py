"""The model of a round: a parameter file in a folder, and the manifest that names its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle, Manifest, Parameters
from fedgrass.control import SERVER_STATE
from fedgrass.protocol.messages import ServerState
from fedgrass.strategies.arithmetic.interfaces import State


def rebased(manifest: Manifest, parameters_sha256: str, *, version: str = "") -> Manifest:
    """Give a manifest another digest of its parameters; the rest is the same model.

    Parameters
    ----------
    manifest
        The manifest.
    parameters_sha256
        Of the new file of parameters, in hex.
    version
        The new version; the same if empty.

    Returns
    -------
    Manifest
        A copy.
    """
    description = manifest.files[PARAMETERS].model_copy(update={"sha256": parameters_sha256})
    changes = {"files": {**manifest.files, PARAMETERS: description}, "version": version or manifest.version}
    return manifest.model_copy(update=changes)


def state_in_folder(state: State, strategy: str, base: Bundle) -> ServerState | None:
    """Write the state of a round's strategy beside its base, as a round's job does; None if there is none.

    Parameters
    ----------
    state
        Vectors of all parameters by slot.
    strategy
        Name of the strategy.
    base
        The model that it belongs to.
    """
    if not state:
        return None
    metadata = {"strategy": strategy, "parameters_sha256": base.manifest.parameters_sha256}
    # In one piece: it is written, and its digest is announced.
    content = b"".join(tensors.encode(state, metadata))
    path = base.folder / SERVER_STATE
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return ServerState(strategy=strategy, sha256=hashlib.sha256(content).hexdigest())


def in_folder(manifest: Manifest, parameters: Parameters, folder: Path, *, version: str) -> Bundle:
    """Write a file of parameters, and describe it as a bundle for aggregation only: the other files are not there.

    Parameters
    ----------
    manifest
        Of the model.
    parameters
        The parameters.
    folder
        Where the file goes, replacing what is there.
    version
        Of the bundle.

    Returns
    -------
    Bundle
        The bundle.
    """
    content = b"".join(tensors.encode(parameters))
    path = folder / PARAMETERS
    path.unlink(missing_ok=True)  # to truncate a file is to wait: ext4 then writes the new content to the disk at once
    path.write_bytes(content)
    return Bundle(folder, rebased(manifest, hashlib.sha256(content).hexdigest(), version=version))

"""New parameters into a model bundle, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import (
    GRAPH,
    INFERENCE,
    INFERENCE_INT8,
    PARAMETERS,
    Bundle,
    Constant,
    Parameters,
    check_parameters,
    parse_manifest,
)
from fedgrass.errors import BundleError
from fedgrass.files import write_atomically


def with_parameters(content: bytes, constants: Iterable[Constant], parameters: Parameters) -> bytes:
    """Return the content of an ``inference.tflite`` with its constants replaced by these parameters.

    Only values change, never shapes, so every constant stays where the manifest says it lies.
    """
    patched = bytearray(content)
    for constant in constants:
        value = np.asarray(parameters[constant.parameter], dtype="<f4").transpose(constant.axes).tobytes()
        if constant.offset + len(value) > len(patched):
            raise BundleError(
                f"{INFERENCE}: {constant.parameter!r} at offset {constant.offset} does not fit into {len(patched)} bytes; "
                "export the bundle again"
            )
        patched[constant.offset : constant.offset + len(value)] = value
    return bytes(patched)


def write_bundle(base: Bundle, parameters: Parameters, folder: Path, *, version: str) -> Bundle:
    """Write a complete bundle that differs from ``base`` in its parameters and version only.

    The training graph is the same file, so both bundles' updates can be averaged. The quantized model is not carried
    over: it would hold the old parameters.

    Parameters
    ----------
    folder
        Made if absent; a bundle in it is replaced.

    Raises
    ------
    BundleError
        If the parameters are another model's, or not finite, or the base cannot be read or patched.
    """
    parameters = check_parameters(parameters, base.manifest)
    for name, value in parameters.items():
        if not np.isfinite(value).all():
            raise BundleError(f"parameters: {name!r} has values that are not finite; a model with it is useless")
    missing = {p.name for p in base.manifest.parameters} - {c.parameter for c in base.manifest.constants}
    if missing:
        raise BundleError(
            f"{base.folder}: the manifest does not say where {min(missing)!r} lies in {INFERENCE}; export the bundle again"
        )
    manifest = parse_manifest(base.manifest.model_copy(update={"version": version}).to_json())
    inference = with_parameters(_read(base.path(INFERENCE)), base.manifest.constants, parameters)
    graph = _read(base.path(GRAPH))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / GRAPH, graph)
    write_atomically(folder / INFERENCE, inference)
    (folder / INFERENCE_INT8).unlink(missing_ok=True)
    tensors.save(folder / PARAMETERS, parameters)
    return Bundle.seal(folder, manifest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); fetch the bundle again") from error

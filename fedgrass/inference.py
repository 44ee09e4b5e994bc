"""New parameters into a model bundle, and the application's models made of them, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedgrass import tensors
from fedgrass.associated_files import files_of, with_files
from fedgrass.bundle import (
    BUILDER,
    INFERENCE,
    INFERENCE_INT8,
    PARAMETERS,
    Bundle,
    Constant,
    Manifest,
    Parameters,
    check_parameters,
    parse_manifest,
)
from fedgrass.engines.base import Dataset
from fedgrass.engines.metrics import CLASSIFIERS, correct
from fedgrass.engines.several import apart
from fedgrass.engines.signatures import Signature
from fedgrass.errors import BundleError
from fedgrass.files import write_atomically
from fedgrass.quantization import quantized
from fedgrass.tensors import Array


def with_parameters(content: bytes, constants: Iterable[Constant], parameters: Parameters) -> bytes:
    """Replace the constants of an inference model by other parameters.

    Only values change, never shapes, so every constant stays where the manifest says it lies.

    Parameters
    ----------
    content
        The content of ``inference.tflite``.
    constants
        Where each constant lies, of which parameter it is, and how its axes are permuted.
    parameters
        float32 arrays by name.

    Returns
    -------
    bytes
        The new content, of the same length.

    Raises
    ------
    BundleError
        If a constant lies beyond the end: manifest and file do not belong together.
    """
    patched = bytearray(content)
    for constant in constants:
        # The converter may have transposed a kernel; the manifest keeps how.
        value = np.asarray(parameters[constant.parameter], dtype="<f4").transpose(constant.axes).tobytes()
        if constant.offset + len(value) > len(patched):
            raise BundleError(
                f"{INFERENCE}: {constant.parameter!r} at offset {constant.offset} does not fit into {len(patched)} bytes; "
                "export the bundle again"
            )
        patched[constant.offset : constant.offset + len(value)] = value
    return bytes(patched)


def pruned(parameters: Parameters, sparsity: float) -> Parameters:
    """Set the smallest values of each weight matrix or kernel to zero (magnitude pruning; Han et al. 2015, arXiv:1506.02626).

    Parameters
    ----------
    sparsity
        Share of its values that become zero, from 0 to below 1. Biases and other vectors are left alone.
    """

    def prune(value: Array) -> Array:
        count = int(value.size * sparsity)
        if value.ndim < 2 or count == 0:
            return value
        kept: Array = value.copy()
        # A partition finds the smallest in linear time; their order means nothing.
        kept.reshape(-1)[np.argpartition(np.abs(value), count - 1, axis=None)[:count]] = 0
        return kept

    return {name: prune(value) for name, value in parameters.items()}


def application_models(content: bytes, *, int8: bool = True) -> dict[str, bytes]:
    """Return the application's models by file name: the float one, and the quantized one if that makes it much smaller."""
    small = quantized(content) if int8 else None
    return {INFERENCE: content} | ({} if small is None else {INFERENCE_INT8: with_files(small, files_of(content))})


class Application:
    """A bundle's model for the application, for examples as a device's data give them: several inputs or outputs in rows.

    Raises
    ------
    ValueError, RuntimeError, KeyError
        As LiteRT's interpreter raises them.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._manifest = manifest
        self._infer = Signature(Interpreter(model_path=str(path)).get_signature_runner("infer"))

    def __call__(self, x: Array) -> Array:
        """Return the output [1, …] for one example [1, …]."""
        inputs, outputs = self._manifest.inputs, self._manifest.outputs
        given = {"x": x}
        if inputs:
            given = dict(zip((part.name for part in inputs), apart(x, inputs), strict=True))
        found = self._infer(**given)
        if not outputs:
            return found["y"]
        return np.concatenate([found[head.name].reshape(len(x), -1) for head in outputs], axis=1)


def inference_accuracy(bundle: Bundle, data: Dataset) -> dict[str, float]:
    """Return the share of right answers of each of the application's models, by file name.

    There is none for a regression, and none for several outputs.

    Raises
    ------
    BundleError
        If LiteRT cannot run a model.
    """
    manifest = bundle.manifest
    if manifest.loss not in CLASSIFIERS or manifest.outputs:
        return {}
    found = {}
    for name in (INFERENCE, INFERENCE_INT8):
        if name not in manifest.files:
            continue
        try:
            infer = Application(bundle.path(name), manifest)
            right = 0.0
            for batch in data.batches(manifest.batch_size):
                x = np.asarray(batch.x, manifest.x.dtype)
                outputs = np.concatenate([infer(example[np.newaxis]) for example in x])
                right += float(correct(manifest.loss, outputs, batch.y).sum())
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{bundle.path(name)}: LiteRT cannot run it ({error})") from error
        found[name] = right / len(data)
    return found


def write_bundle(
    base: Bundle,
    parameters: Parameters,
    folder: Path,
    *,
    version: str,
    int8: bool = True,
    sparsity: float = 0.0,
) -> Bundle:
    """Write a complete bundle that differs from ``base`` in its parameters and version only.

    The training graph is the same file, so both bundles' updates can be averaged; and so is the builder's code, if it has some.

    Parameters
    ----------
    folder
        Made if absent; a bundle in it is replaced.
    int8
        Whether to make the application's quantized model too. A model that this would hardly make smaller goes without.
    sparsity
        `pruned` by this share, the application's models only: training goes on from the dense parameters.

    Raises
    ------
    BundleError
        If the parameters are another model's, or not finite, or the base cannot be read or patched.
    """
    parameters = check_parameters(parameters, base.manifest)
    # Before anything is written: NaN would load, run and answer NaN on each device.
    for name, value in parameters.items():
        if not np.isfinite(value).all():
            raise BundleError(f"parameters: {name!r} has values that are not finite; a model with it is useless")
    manifest = parse_manifest(base.manifest.model_copy(update={"version": version}).to_json())
    # Read before anything in the folder is replaced, as base and folder may be the same.
    kept = {name: _read(base.path(name)) for name in (manifest.graph_file, BUILDER) if name in manifest.files}
    application: dict[str, bytes] = {}
    if INFERENCE in manifest.files:
        application = application_models(_patched(base, pruned(parameters, sparsity)), int8=int8)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (BUILDER, INFERENCE, INFERENCE_INT8):
        (folder / name).unlink(missing_ok=True)
    for name, content in {**kept, **application}.items():
        write_atomically(folder / name, content)
    tensors.save(folder / PARAMETERS, parameters)
    return Bundle.seal(folder, manifest)


def _patched(base: Bundle, parameters: Parameters) -> bytes:
    missing = {p.name for p in base.manifest.parameters} - {c.parameter for c in base.manifest.constants}
    if missing:
        raise BundleError(
            f"{base.folder}: the manifest does not say where {min(missing)!r} lies in {INFERENCE}; export the bundle again"
        )
    return with_parameters(_read(base.path(INFERENCE)), base.manifest.constants, parameters)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); fetch the bundle again") from error

"""Writing an update, on the device: NumPy only, one parameter at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import Parameters, TensorDescription
from fedgrass.errors import BundleError, DivergedError
from fedgrass.tensors import Array
from fedgrass.update.codecs import Codec, Floats, codec_named
from fedgrass.update.header import UpdateHeader


@dataclass(frozen=True)
class UpdateInfo:
    """What was written. ``norm`` is the L2 norm of the difference, before encoding and after clipping."""

    sha256: str
    bytes: int
    norm: float


def write_update(
    path: Path,
    base: Parameters,
    local: Parameters,
    header: UpdateHeader,
    *,
    codec: str = "float32",
    clip_norm: float = 0.0,
) -> UpdateInfo:
    """Write ``local - base`` as an update file, whole or not at all; the same input gives the same bytes.

    Parameters
    ----------
    path
        The file to write; its folder exists.
    base, local
        Float parameters by name, in the manifest's order, with equal names, shapes and dtypes.
    header
        What the update says about itself; its ``codec`` is set from the argument.
    codec
        How differences are stored (`fedgrass.update.codecs.CODECS`).
    clip_norm
        If positive, a difference with a larger L2 norm is scaled down to it.

    Raises
    ------
    BundleError
        If the two sets of parameters are not of the same model.
    DivergedError
        If the difference is not finite; nothing is written.
    UpdateError
        If the codec is unknown.
    """
    encoder: Codec = codec_named(codec)
    _require_alike(base, local)
    norm = math.sqrt(sum(_squares(_difference(base[name], local[name])) for name in base))
    if not math.isfinite(norm):
        raise DivergedError("the trained parameters are not finite: no update was written. Lower the learning rate")
    scale = clip_norm / norm if 0 < clip_norm < norm else 1.0
    stored: dict[str, Array] = {}
    for name, before in base.items():
        parameter = TensorDescription(name=name, shape=before.shape, dtype=before.dtype.name)
        delta = _difference(before, local[name])
        if scale != 1.0:
            delta *= np.float32(scale)
        for tensor, values in zip(encoder.layout(parameter), encoder.encode(parameter, delta), strict=True):
            stored[tensor.name] = values
    metadata = header.model_copy(update={"codec": encoder.name}).to_metadata()
    sha256 = tensors.save(path, stored, metadata)
    return UpdateInfo(sha256, path.stat().st_size, norm * scale)


def _difference(before: Array, after: Array) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by its norm
        return after.astype(np.float32).ravel() - before.astype(np.float32).ravel()


def _squares(delta: Floats) -> float:
    return float(np.square(delta, dtype=np.float64).sum())


def _require_alike(base: Parameters, local: Parameters) -> None:
    if base.keys() != local.keys():
        odd = ", ".join(sorted(base.keys() ^ local.keys())[:3])
        raise BundleError(f"update: base and trained parameters have other names (for example {odd})")
    for name, before in base.items():
        after = local[name]
        if before.shape != after.shape or before.dtype != after.dtype or before.dtype.kind != "f":
            raise BundleError(
                f"update: {name!r} is {after.dtype}{list(after.shape)}, the base has {before.dtype}{list(before.shape)}; "
                "both must be the same floats"
            )

"""Writing an update, on the device: NumPy only, one parameter at a time."""

from __future__ import annotations

import io
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import Parameters, TensorDescription
from fedgrass.errors import BundleError, ConfigurationError, DivergedError
from fedgrass.noise import SEED_BYTES, Grid, shrunk_to
from fedgrass.protocol.messages import UpdateTask
from fedgrass.tensors import Array
from fedgrass.update.codecs import Codec, Floats, StoredTensor
from fedgrass.update.entropy import TENSOR, compress
from fedgrass.update.feedback import ErrorFeedback
from fedgrass.update.header import UpdateHeader
from fedgrass.update.registry import UpdateCodec, codec_named

# Scalars whose squares are summed together.
_BLOCK = 1 << 20
_PLAIN = UpdateTask()
_NO_CHANCE = np.random.default_rng(0)  # for codecs that leave nothing to it


@dataclass(frozen=True)
class UpdateInfo:
    """What was written. ``norm`` is the L2 norm of the difference, before encoding and after clipping."""

    sha256: str
    bytes: int
    norm: float


@dataclass(frozen=True)
class EncodedUpdate:
    """An update file's content. ``norm`` is as in `UpdateInfo`."""

    tensors: Parameters
    metadata: dict[str, str]
    norm: float

    def to_bytes(self) -> bytes:
        """Return what the file would hold."""
        return b"".join(tensors.encode(self.tensors, self.metadata))


def write_update(
    path: Path,
    base: Mapping[str, Array],
    local: Mapping[str, Array],
    header: UpdateHeader,
    task: UpdateTask = _PLAIN,
    *,
    feedback: ErrorFeedback | None = None,
) -> UpdateInfo:
    """Write ``local - base`` as an update file, whole or not at all; the same input gives the same bytes, but for noise.

    Parameters
    ----------
    path
        File to write, whole or not at all; its folder exists.
    base, local
        Float parameters by name, before and after training.
    header
        What the update says about itself.
    task, feedback
        As of `encode_update`, whose errors are raised before anything is written.

    Returns
    -------
    UpdateInfo
        Digest, size and norm.
    """
    encoded = encode_update(base, local, header, task, feedback=feedback)
    sha256 = tensors.save(path, encoded.tensors, encoded.metadata)
    return UpdateInfo(sha256, path.stat().st_size, encoded.norm)


def encode_update(
    base: Mapping[str, Array],
    local: Mapping[str, Array],
    header: UpdateHeader,
    task: UpdateTask = _PLAIN,
    *,
    feedback: ErrorFeedback | None = None,
    noise_seed: Callable[[], bytes] = lambda: secrets.token_bytes(SEED_BYTES),
) -> EncodedUpdate:
    """Return ``local - base`` as an update file's content; the same input gives the same bytes, but for noise.

    Parameters
    ----------
    base, local
        Float parameters by name, in the manifest's order, with equal names, shapes and dtypes.
    header
        What the update says about itself; its ``codec`` is set from the task. It seeds stochastic rounding.
    task
        How the round wants updates encoded. ``codec`` says how differences are stored (`fedgrass.protocol.codec_name`).
        If ``clip_norm`` is positive, a difference with a larger L2 norm is scaled down to it, or to a little less, never
        to more; what error feedback adds is clipped with it. If ``noise_multiplier`` is positive, discrete Gaussian noise
        of standard deviation ``noise_multiplier * clip_norm`` is added to every scalar of the clipped difference: local
        differential privacy (docs/privacy.md). Error feedback is then off: it would carry this round's noise, taken back,
        into the next.
    feedback
        Where the residual of a lossy codec is kept.
    noise_seed
        Gives the noise of each block of a parameter its seed. Only a simulation may have one that can be repeated.

    Returns
    -------
    EncodedUpdate
        The file's tensors and metadata, and the norm.

    Raises
    ------
    BundleError
        If the two sets of parameters are not of the same model.
    DivergedError
        If the difference is not finite.
    UpdateError
        If the codec is unknown.
    ConfigurationError
        If there is to be noise, but nothing bounds the difference.
    """
    codec = codec_named(task.codec)
    _require_alike(base, local)
    # Checked first: noise without a bound would claim a privacy that it does not give.
    if task.noise_multiplier > 0:
        _require_clipping(task.clip_norm)
        feedback = None
    residual = feedback.before() if feedback else {}

    def difference(name: str) -> Floats:
        delta = _difference(base[name], local[name])
        return delta + residual[name].ravel() if name in residual else delta

    stored = _StoredParameters(codec, header.rounding_seed, keeps_residual=feedback is not None)
    squares = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by its norm
        scale = _clip_factor(map(difference, base), task.clip_norm) if task.clip_norm > 0 else 1.0
        grid = Grid.of(task.noise_multiplier * task.clip_norm) if task.noise_multiplier > 0 else None
        for name, before in base.items():
            delta = difference(name)
            squares += _squares(delta)
            if not math.isfinite(squares):
                raise DivergedError("the trained parameters are not finite. Lower the learning rate")
            if grid is not None:
                grid.clip_and_noise(delta, scale, noise_seed)
            elif scale != 1.0:
                np.multiply(delta, np.float64(scale), out=delta, casting="same_kind")
            stored.add(name, before, delta)
    if feedback is not None:
        feedback.keep(residual, stored.residual)
    # The task's codec, whatever the header said: the file is what was written.
    metadata = {**header.to_metadata(), "codec": codec.name}
    return EncodedUpdate(stored.tensors(), metadata, math.sqrt(squares) * scale)


class _StoredParameters:
    """The tensors that a codec makes of an update's parameters, and the ``residual``: what it rounded away."""

    def __init__(self, codec: UpdateCodec, rounding_seed: int, *, keeps_residual: bool) -> None:
        self._codec = codec
        lossless = codec.parameters.lossless
        self._rounding = _NO_CHANCE if lossless else np.random.default_rng(rounding_seed)
        self._keeps_residual = keeps_residual and not lossless
        self._stored: dict[str, Array] = {}
        self.residual: Parameters = {}

    def add(self, name: str, before: Array, delta: Floats) -> None:
        """Encode one parameter's difference; takes its values, if the residual is kept.

        Parameters
        ----------
        name
            The parameter's.
        before
            What it was, for shape and dtype.
        delta
            float32 [n]: the difference, flat.
        """
        codec = self._codec.parameters
        parameter, layout = _described(self._codec.name, name, before.shape, before.dtype)
        encoded = codec.encode(parameter, delta, self._rounding)
        _store(self._stored, name, layout, encoded)
        if self._keeps_residual:
            delta -= _decoded(codec, parameter, encoded)
            self.residual[name] = delta.astype(before.dtype, copy=False).reshape(before.shape)

    def tensors(self) -> dict[str, Array]:
        """Return them all, compressed where the codec has it."""
        return {TENSOR: compress(self._stored.values())} if self._codec.compressed else self._stored


def _require_clipping(clip_norm: float) -> None:
    if clip_norm <= 0:
        raise ConfigurationError(
            "update.noise_multiplier is set without update.clip_norm: noise protects only what is bounded"
        )


def _clip_factor(deltas: Iterable[Floats], clip_norm: float) -> float:
    """Return what the differences are multiplied by, so that their joint L2 norm is at most ``clip_norm``.

    The factor leaves room for the rounding of each product to float32, so that not the last bit is beyond it.
    """
    norm = math.sqrt(sum(map(_squares, deltas)))
    return shrunk_to(clip_norm, norm) * (1 - 2.0**-22) if clip_norm < norm else 1.0


def _store(stored: dict[str, Array], name: str, layout: Sequence[StoredTensor], encoded: Sequence[Array]) -> None:
    for tensor, values in zip(layout, encoded, strict=True):
        if tensor.name in stored:
            raise BundleError(f"parameter {name!r}: another one's name is its own and a codec's suffix; rename it")
        stored[tensor.name] = values


def _decoded(codec: Codec, parameter: TensorDescription, encoded: Sequence[Array]) -> Floats:
    stream = io.BytesIO(b"".join(values.tobytes() for values in encoded))
    found = np.empty(parameter.size, np.float32)
    codec.decoder(parameter, lambda array: tensors.read_into(stream, array, name="residual"))(found)
    return found


@lru_cache(maxsize=4096)
def _described(
    codec: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[TensorDescription, tuple[StoredTensor, ...]]:
    parameter = TensorDescription.model_validate({"name": name, "shape": shape, "dtype": dtype.name})
    return parameter, codec_named(codec).parameters.layout(parameter)


def _difference(before: Array, after: Array) -> Floats:
    # In float32, whatever the parameters are: what an update holds.
    found: Floats = np.subtract(after, before, dtype=np.float32).ravel()
    return found


def _squares(delta: Floats) -> float:
    total = 0.0
    for start in range(
        0, delta.size, _BLOCK
    ):  # twice the size of a large difference is memory that a small device lacks
        wide = delta[start : start + _BLOCK].astype(np.float64)
        total += float(wide @ wide)
    return total


def _require_alike(base: Mapping[str, Array], local: Mapping[str, Array]) -> None:
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

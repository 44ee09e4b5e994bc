"""A masked update: one tensor of integers modulo two to the 16 or 32, and the boxes with the seeds of its masks."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgrass import tensors
from fedgrass.errors import TensorFileError, TruncatedFileError, UpdateError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.masks import COMMITMENT_BYTES, SEED_BYTES, Expander, Masked, add_mask, commitment, dtype_of
from fedgrass.secure.quantize import quantized
from fedgrass.secure.sealing import Context, box_bytes, seal
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats
from fedgrass.update.header import MAX_METADATA_BYTES, UpdateHeader

TENSOR, BOXES, COMMITMENTS = "masked", "boxes", "commitments"
# Metadata, and one tensor's entry.
_MAX_HEADER = MAX_METADATA_BYTES + 512


@dataclass(frozen=True)
class MaskedUpdate:
    """What a device uploads.

    ``boxes`` are in the order of the helpers, ``commitments`` to the seeds, one after the other, in that of the masks; ``values``
    [size + count coordinates].
    """

    header: UpdateHeader
    boxes: tuple[bytes, ...]
    commitments: bytes
    values: Masked

    def save(self, path: Path) -> str:
        """Write it as a safetensors file, whole or not at all; returns the SHA-256."""
        return tensors.save(path, {TENSOR: self.values}, self._metadata())

    def to_bytes(self) -> bytes:
        """Return what the file would hold."""
        return b"".join(tensors.encode({TENSOR: self.values}, self._metadata()))

    def _metadata(self) -> dict[str, str]:
        text = ",".join(base64.b64encode(box).decode() for box in self.boxes)
        told = base64.b64encode(self.commitments).decode()
        return {**self.header.to_metadata(), BOXES: text, COMMITMENTS: told}


def codec_of(bits: int) -> str:
    """Return what the header of a masked update calls its form."""
    return f"masked{bits}"


def masked(
    base: Mapping[str, Array],
    local: Mapping[str, Array],
    header: UpdateHeader,
    examples: int,
    task: SecureTask,
    context: Context,
    signer: Ed25519PrivateKey,
    *,
    clip_norm: float = 0.0,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> MaskedUpdate:
    """Return ``local - base`` as integers under masks, with the masks' seeds sealed for the helpers.

    Parameters
    ----------
    base, local
        Float parameters by name, in the manifest's order.
    header
        What the update says of itself, in clear.
    examples
        The device's number of examples: masked as the values are.
    task, context
        What was announced, and what the seeds are bound to.
    signer
        The device's key.
    clip_norm
        If positive, the L2 norm that the difference is scaled down to.
    random
        Gives the seeds. Only a test may have one that can be repeated.

    Raises
    ------
    DivergedError
        If the difference is not finite.
    """

    def blocks() -> Iterator[Floats]:
        for name, before in base.items():
            # One tensor at a time, so that no second copy of the model is made.
            yield np.subtract(local[name], before, dtype=np.float32).ravel()

    size = sum(value.size for value in base.values())
    values = quantized(blocks, size, examples, task, seed=header.rounding_seed, clip_norm=clip_norm)
    seeds = [random(SEED_BYTES) for _ in task.masks]
    expander = Expander(task.bits)
    for seed in seeds:
        # Whatever `collude` helpers tell the cloud, one mask of each device is unknown to all of them.
        add_mask(values, seed, expander)
    boxes = tuple(
        seal([seeds[mask] for mask in task.known_to(index)], context, header.thing, helper, signer)
        for index, helper in enumerate(task.helpers)
    )
    commitments = b"".join(map(commitment, seeds))
    return MaskedUpdate(header.model_copy(update={"codec": codec_of(task.bits)}), boxes, commitments, values)


def read_masked(stream: BinaryIO, file_bytes: int, size: int, task: SecureTask) -> MaskedUpdate:
    """Read a device's masked update; nothing of it is trusted.

    Parameters
    ----------
    stream, file_bytes
        The file, and its size as storage says.
    size
        Number of the model's parameters.
    task
        What was announced.

    Raises
    ------
    UpdateError
        Coded as in ``docs/reference/quarantine.md``.
    """
    length, dtype = size + task.count_coordinates, dtype_of(task.bits)
    # By the size that S3 says, before a byte is read.
    if file_bytes > (most := length * dtype.itemsize + _MAX_HEADER + 8):
        raise UpdateError("too_large", f"{file_bytes} bytes; a masked update of this model has at most {most}")
    try:
        found = tensors.read_header(stream, file_bytes=file_bytes, name="update", max_header_bytes=_MAX_HEADER)
        header = UpdateHeader.from_metadata(found.metadata)
        if header.codec != codec_of(task.bits):
            raise UpdateError("unknown_codec", f"it is {header.codec!r}, the round asked for {codec_of(task.bits)!r}")
        specs = [(spec.name, spec.shape, spec.dtype) for spec in found.tensors]
        if specs != [(TENSOR, (length,), dtype)]:
            raise UpdateError("wrong_shape", f"its tensors are not one {TENSOR!r} of {length} {dtype}")
        boxes = _boxes(found.metadata.get(BOXES, ""), task)
        commitments = _commitments(found.metadata.get(COMMITMENTS, ""), task)
        values: Masked = np.empty(length, dtype)
        tensors.read_into(stream, values, name="update")
    except TruncatedFileError as error:
        raise UpdateError("truncated", str(error)) from error
    except TensorFileError as error:
        raise UpdateError("corrupt_header", str(error)) from error
    return MaskedUpdate(header, boxes, commitments, values)


def _boxes(text: str, task: SecureTask) -> tuple[bytes, ...]:
    try:
        boxes = tuple(base64.b64decode(part, validate=True) for part in text.split(","))
    except (binascii.Error, ValueError):
        boxes = ()
    expected = [box_bytes(len(task.known_to(index))) for index in range(len(task.helpers))]
    if [len(box) for box in boxes] != expected:
        raise UpdateError("corrupt_header", f"its boxes of seeds are not {len(expected)} of {expected} bytes")
    return boxes


def _commitments(text: str, task: SecureTask) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != (expected := len(task.masks) * COMMITMENT_BYTES):
        raise UpdateError("corrupt_header", f"its commitments to seeds are not {expected} bytes")
    return found

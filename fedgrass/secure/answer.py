"""A helper's answer as a file: the sums of its masks, encrypted, its lock, and its tokens for the others' locks."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedgrass import tensors
from fedgrass.errors import MessageError, TensorFileError
from fedgrass.secure.lock import TOKEN_BYTES, WRAPPED_BYTES
from fedgrass.secure.masks import dtype_of
from fedgrass.secure.request import AcceptedSet

LOCK, TOKENS, NOISED = "lock", "tokens", -1
Layout = list[tuple[str, "np.dtype[Any]", tuple[int, ...]]]


def sums_of(accepted: AcceptedSet, helper: int) -> list[tuple[int, int]]:
    """Return the group and the mask of each sum in a helper's answer, in order.

    Where helpers add noise there is one sum for a group, `NOISED`, of several masks.
    """
    if accepted.adding:
        return [(group, NOISED) for group in accepted.groups]
    return [(group, mask) for group in accepted.groups for mask in accepted.task.known_to(helper)]


def layout(accepted: AcceptedSet, helper: int) -> Layout:
    """Return the tensors of an answer: the sums, then the lock and the tokens."""
    task = accepted.task
    dtype, count = dtype_of(task.bits), len(task.helpers) - 1
    sums = [(f"{group}.{mask}", dtype, (accepted.length,)) for group, mask in sums_of(accepted, helper)]
    return [
        *sums,
        (LOCK, np.dtype("u1"), (comb(count, task.collude) * WRAPPED_BYTES,)),
        (TOKENS, np.dtype("u1"), (count * TOKEN_BYTES,)),
    ]


def header_bytes(accepted: AcceptedSet, helper: int) -> bytes:
    """Return an answer's header: known before anything is summed."""
    named = {"schema": "1", "digest": accepted.digest, "helper": accepted.task.helpers[helper].name}
    return tensors.encode_header(layout(accepted, helper), named)


def answer_bytes(accepted: AcceptedSet, helper: int) -> int:
    """Return the size of a helper's answer, which is known before it arrives."""
    shapes = ((dtype.itemsize, shape[0]) for _, dtype, shape in layout(accepted, helper))
    return len(header_bytes(accepted, helper)) + sum(size * count for size, count in shapes)


@dataclass(frozen=True)
class Answer:
    """An answer's file, its header checked; the sums are read one at a time."""

    path: Path
    helper: int
    accepted: AcceptedSet
    offset: int
    lock: bytes
    tokens: tuple[bytes, ...]

    @property
    def sums_bytes(self) -> int:
        """Bytes of the encrypted sums."""
        return len(sums_of(self.accepted, self.helper)) * self.accepted.length * (self.accepted.task.bits // 8)

    def open_sums(self) -> BinaryIO:
        """Open the file at the first sum."""
        stream = self.path.open("rb")
        stream.seek(self.offset)
        return stream


def read_answer(path: Path, accepted: AcceptedSet, helper: int) -> Answer:
    """Read a helper's answer up to its sums.

    Parameters
    ----------
    path
        The file.
    accepted
        The set that was asked about.
    helper
        The helper's number.

    Returns
    -------
    Answer
        The answer; its sums are still to be read.

    Raises
    ------
    MessageError
        If it is not this helper's for this set.
    """
    name = accepted.task.helpers[helper].name
    expected = header_bytes(accepted, helper)
    try:
        with path.open("rb") as stream:
            found = stream.read(len(expected))
            # Byte for byte: the header follows from the set, so nothing in it has to be parsed.
            if found != expected:
                raise MessageError(f"the answer of helper {name!r} is for another set, or was changed")
            answer = Answer(path, helper, accepted, len(expected), b"", ())
            # Lock and tokens lie behind the sums, because a helper knows the digest of what it encrypted only at the
            # end.
            stream.seek(len(expected) + answer.sums_bytes)
            lock, *given = _ends(stream, layout(accepted, helper))
    except (OSError, TensorFileError) as error:
        raise MessageError(f"the answer of helper {name!r} cannot be read ({error})") from error
    return Answer(path, helper, accepted, len(expected), lock, tuple(given))


def _ends(stream: BinaryIO, tensors_of: Layout) -> list[bytes]:
    lock_bytes, token_bytes = tensors_of[-2][2][0], tensors_of[-1][2][0]
    # One byte more than there should be, to see whether the file goes on.
    rest = stream.read(lock_bytes + token_bytes + 1)
    if len(rest) != lock_bytes + token_bytes:
        raise TensorFileError(f"{len(rest)} bytes behind the sums, expected {lock_bytes + token_bytes}")
    given = rest[lock_bytes:]
    return [rest[:lock_bytes], *(given[at : at + TOKEN_BYTES] for at in range(0, len(given), TOKEN_BYTES))]

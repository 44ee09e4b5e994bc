"""The cloud's last step: take the sums of the masks, as the helpers gave them, off the sum of the masked updates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedgrass.errors import AggregationError, HelpersMissingError, MessageError
from fedgrass.secure.answer import Answer, read_answer, sums_of
from fedgrass.secure.lock import CONTENT_BYTES, others, unlocked
from fedgrass.secure.masks import Masked, encrypted, pieces, span
from fedgrass.secure.request import AcceptedSet


@dataclass(frozen=True)
class Helped:
    """Whose sums were used, by name, and why others' were not."""

    used: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def unmask(totals: Mapping[int, Masked], accepted: AcceptedSet, answers: Mapping[int, Path]) -> Helped:
    """Take the masks off the groups' sums, in place; where helpers add noise it stays on them.

    Parameters
    ----------
    totals
        The sum of the masked updates of each group, by the group's number.
    accepted
        The set that they are the sums of.
    answers
        The helpers' files, by the helper's number.

    Returns
    -------
    Helped
        What became of each helper's answer.

    Raises
    ------
    HelpersMissingError
        If fewer than ``collude + 1`` helpers gave theirs for this set, or not all that were to add noise.
    AggregationError
        If two helpers' sums of the same mask differ: one of them is wrong, and nobody can tell which.
    """
    found, refused = _read(accepted, answers)
    if len(found) < accepted.needed[0]:
        raise _too_few(len(found), accepted, answers, refused)
    # Counted again: an answer that is there may still be locked, or changed on its way.
    keys = _opened(found, accepted, refused)
    if len(keys) < accepted.needed[0]:
        raise _too_few(len(keys), accepted, answers, refused)
    # Each mask is taken off once, by the first helper that has it; the others' sums of it are only compared.
    missing = {(group, mask) for group in accepted.groups for mask in range(len(accepted.task.masks))}
    noised = bool(accepted.adding)
    digests: dict[tuple[int, int], tuple[bytes, int]] = {}
    for index, secret in sorted(keys.items()):
        with found[index].open_sums() as stream:
            position = 0
            for which in sums_of(accepted, index):
                # Every sum is read, taken or not: a wrong one must not stay unseen.
                hashed, take = hashlib.sha256(), noised or which in missing
                for piece in pieces(accepted.length):
                    part = span(piece, accepted.length)
                    content = stream.read((part.stop - part.start) * accepted.task.bits // 8)
                    plain = encrypted(content, secret, position)
                    position += len(plain)
                    hashed.update(plain)
                    if take:
                        target = totals[which[0]][part]
                        np.subtract(target, np.frombuffer(plain, target.dtype), out=target)
                missing.discard(which)
                if noised:  # each helper's is another
                    continue
                _agree(digests.setdefault(which, (hashed.digest(), index)), (hashed.digest(), index), accepted)
    return Helped(tuple(accepted.task.helpers[index].name for index in sorted(keys)), refused)


def _too_few(
    found: int, accepted: AcceptedSet, answers: Mapping[int, Path], refused: Mapping[str, str]
) -> HelpersMissingError:
    needed, count = accepted.needed
    names = [one.name for one in accepted.task.helpers]
    asked = accepted.adding or range(len(names))
    said = [f"{names[index]} is silent" for index in asked if index not in answers]
    said += [f"{name}: {why}" for name, why in refused.items()]
    return HelpersMissingError(f"{found} of {count} helpers gave their sums, {needed} are needed; {'; '.join(said)}")


def _read(accepted: AcceptedSet, answers: Mapping[int, Path]) -> tuple[dict[int, Answer], dict[str, str]]:
    found: dict[int, Answer] = {}
    refused: dict[str, str] = {}
    for index, path in sorted(answers.items()):
        try:
            found[index] = read_answer(path, accepted, index)
        except MessageError as error:  # noqa: PERF203 - there are five at most
            refused[accepted.task.helpers[index].name] = str(error)
    return found, refused


def _opened(found: Mapping[int, Answer], accepted: AcceptedSet, refused: dict[str, str]) -> dict[int, bytes]:
    """Return the keys of the sums that open, and are whole."""
    task, digest = accepted.task, accepted.digest
    keys = {}
    for index, answer in found.items():
        given = {
            other: found[other].tokens[others(task, other).index(index)]
            for other in others(task, index)
            if other in found
        }
        try:
            content = unlocked(answer.lock, given, task, index, digest)
            if _hash(answer) != content[CONTENT_BYTES // 2 :]:
                raise MessageError("its sums were changed on the way")
            keys[index] = content[: CONTENT_BYTES // 2]
        except MessageError as error:
            refused[task.helpers[index].name] = str(error)
    return keys


def _hash(answer: Answer) -> bytes:
    hashed, left = hashlib.sha256(), answer.sums_bytes
    with answer.open_sums() as stream:
        while left:
            block = stream.read(min(left, 1 << 20))
            hashed.update(block)
            left -= len(block)
    return hashed.digest()


def _agree(first: tuple[bytes, int], other: tuple[bytes, int], accepted: AcceptedSet) -> None:
    if first[0] != other[0]:
        names = [accepted.task.helpers[index].name for index in (first[1], other[1])]
        raise AggregationError(
            f"helpers {names[0]!r} and {names[1]!r} gave different sums of the same masks: one of them is wrong, and nothing was "
            "made of either. Look at both, and put another in the place of the one that is wrong"
        )

"""Noise added by the helpers: each hands in one sum with its share of the noise, which is useless without the others' sums.

A helper's sum is that of the masks that are assigned to it (`AcceptedSet.assigned_to`), plus discrete Gaussian noise of its
own, plus a pad for each other helper that adds noise: one of the two adds it, the other takes it off. The pads follow from the
pair's key and the set's digest. So what the cloud can make of the honest helpers' sums is their total, and that has the noise
of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedgrass.errors import MessageError
from fedgrass.noise import noise_block
from fedgrass.protocol.secure import decoded_key
from fedgrass.secure.lock import derived
from fedgrass.secure.masks import PIECE, Expander, Masked
from fedgrass.secure.request import AcceptedSet


def noise_seed(key: X25519PrivateKey, digest: str, group: int) -> bytes:
    """Return the seed of a helper's noise: the same in every attempt, or two answers together would show the noise.

    Parameters
    ----------
    key
        The helper's private key.
    digest
        Of the set.
    group
        Number of the group in the set.

    Returns
    -------
    bytes
        32 bytes.
    """
    return derived(key.private_bytes_raw(), "noise", digest, str(group))


def require_noise(accepted: AcceptedSet, helper: int) -> None:
    """Raise `MessageError` if a set does not say as it should who adds noise."""
    adding, task = accepted.adding, accepted.task
    if bool(adding) != task.shared_noise:
        raise MessageError("its helpers are to add noise, or not, and it does not say so")
    if not adding:
        return
    if list(adding) != sorted(set(adding)) or not set(adding) <= set(range(len(task.helpers))) or helper not in adding:
        raise MessageError(f"it says that the helpers {list(adding)} add noise; this one is {helper}")
    if len(adding) < task.needed:
        raise MessageError(
            f"it says that {len(adding)} helpers add noise; {task.needed} or more must, as {task.collude} may collude"
        )


class Share:
    """A helper's sum for a group of a set, without the masks: its noise, and the pads.

    Parameters
    ----------
    seed
        Of the noise, where it has to be the same in every run: a simulation's.
    """

    def __init__(
        self, accepted: AcceptedSet, helper: int, group: int, key: X25519PrivateKey, seed: bytes | None = None
    ) -> None:
        task, self._helper = accepted.task, helper
        self._deviation = task.share_steps(len(accepted.adding))
        self._values = (
            accepted.length - task.count_coordinates
        )  # which, with noise, say no more than how many devices there are
        self._seed = seed or noise_seed(key, accepted.digest, group)
        self._expander = Expander(task.bits)
        self._pads = {
            other: derived(
                key.exchange(X25519PublicKey.from_public_bytes(decoded_key(task.helpers[other].key))),
                "pad",
                accepted.digest,
                str(group),
            )
            for other in accepted.adding
            if other != helper
        }

    def add_to(self, total: Masked, index: int) -> None:
        """Add a piece of it, in place."""
        for other, pad in self._pads.items():
            # The smaller number adds the pad, the larger one takes it off, so that it is gone in the total.
            change = np.add if self._helper < other else np.subtract
            change(total, self._expander.piece(pad, index, len(total)), out=total)
        count = min(len(total), self._values - index * PIECE)
        if count > 0:
            noise = noise_block(self._seed, index, count, self._deviation)
            np.add(total[:count], noise.astype(total.dtype), out=total[:count])


def seeds_of(accepted: AcceptedSet, helper: int, group: int, seeds: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Return the seeds of the masks that are assigned to a helper, of all devices of a group.

    Parameters
    ----------
    accepted
        The set.
    helper
        The helper's number.
    group
        The group's number.
    seeds
        Of each of the set's devices, those that this helper was given, in the order of its masks.

    Returns
    -------
    list
        The seeds, 32 bytes each.
    """
    known = accepted.task.known_to(helper)
    which = [known.index(mask) for mask in accepted.assigned_to(helper)]
    members = zip(seeds, accepted.members, strict=True)
    return [one[number] for one, member in members if member.group == group for number in which]

"""Seeds, sealed for one helper and signed by the device: HPKE (RFC 9180) and Ed25519 (RFC 8032)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedgrass.errors import MessageError
from fedgrass.protocol.secure import KEY_BYTES, Helper, SecureTask, decoded_key
from fedgrass.secure.masks import SEED_BYTES

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_OVERHEAD = 32 + 16  # the encapsulated key, and the tag
_SIGNATURE = 64


@dataclass(frozen=True)
class Context:
    """What a box is bound to: it opens in this round of this fleet, from this base, for this helper, as this device's only.

    ``noise`` is the deviation of what the helpers add, in steps: less than the device was told of, and its box does not open.
    ``session`` is the cohort's salt: a fleet that was made again, under its old name, has rounds of the same numbers.
    ``groups`` and ``group_min`` are those of the round, with which the salt and its name say whom a device is summed with.
    """

    fleet: str
    round: int
    session: str
    base_sha256: str
    bits: int
    collude: int
    noise: int = 0
    groups: int = 1
    group_min: int = 0

    @classmethod
    def of_round(cls, fleet: str, number: int, session: str, base_sha256: str, task: SecureTask) -> Context:
        """Return the context of a round's boxes.

        Parameters
        ----------
        fleet, number
            Whose round it is, and which.
        session
            The cohort's salt.
        base_sha256
            Digest of the base's parameters.
        task
            The round's masking.
        """
        noise = task.noise_steps if task.shared_noise else 0
        groups = (task.groups, task.group_min) if task.groups > 1 else (1, 0)
        return cls(fleet, number, session, base_sha256, task.bits, task.collude, noise, *groups)

    def of(self, thing: str, helper: Helper) -> bytes:
        """Return the bytes for one device and helper."""
        bound = [self.fleet, self.round, self.session, self.base_sha256, self.bits, self.collude, self.noise, thing]
        # Devices of an earlier version know of one group only, and their boxes go on to open there.
        bound += [self.groups, self.group_min] if self.groups > 1 else []
        return json.dumps(["fedgrass secure 1", *bound, helper.name, helper.key]).encode()


def box_bytes(seeds: int) -> int:
    """Return the size of a box with so many seeds: the sealed seeds, the signature, and the device's public key."""
    return seeds * SEED_BYTES + _OVERHEAD + _SIGNATURE + KEY_BYTES


def seal(seeds: Sequence[bytes], context: Context, thing: str, helper: Helper, signer: Ed25519PrivateKey) -> bytes:
    """Return the box of a device for a helper.

    Parameters
    ----------
    seeds
        Of the masks that this helper is to know, in order.
    context
        The round that the box is bound to.
    thing
        The device's name.
    helper
        Whose public key seals it.
    signer
        The device's signing key.

    Returns
    -------
    bytes
        Sealed seeds, signature, and the device's public key.
    """
    bound = context.of(thing, helper)
    sealed = SUITE.encrypt(b"".join(seeds), X25519PublicKey.from_public_bytes(decoded_key(helper.key)), bound)
    # The signature covers the context too, so that a box is known for this round's before anything is decrypted.
    return sealed + signer.sign(bound + sealed) + signer.public_key().public_bytes_raw()


def signer_of(box: bytes) -> bytes:
    """Return the public key, 32 bytes, of the device that signed a box."""
    return box[-KEY_BYTES:]


def opened(box: bytes, seeds: int, context: Context, thing: str, helper: Helper, key: X25519PrivateKey) -> list[bytes]:
    """Return the seeds of a box.

    Parameters
    ----------
    box
        What `seal` returned.
    seeds
        How many there must be.
    context
        The round that it must be bound to.
    thing
        The device that must have signed it.
    helper
        The helper that it must be for.
    key
        That helper's private key.

    Returns
    -------
    list
        The seeds, 32 bytes each.

    Raises
    ------
    MessageError
        If it is not this device's for this helper in this round.
    """
    if len(box) != box_bytes(seeds):
        raise MessageError(
            f"{thing!r}: its seeds for {helper.name!r} are {len(box)} bytes, expected {box_bytes(seeds)}"
        )
    bound, sealed = context.of(thing, helper), box[: -_SIGNATURE - KEY_BYTES]
    try:
        # The signature first: only its own sealed content is handed to HPKE.
        Ed25519PublicKey.from_public_bytes(signer_of(box)).verify(
            box[-_SIGNATURE - KEY_BYTES : -KEY_BYTES], bound + sealed
        )
        found = SUITE.decrypt(sealed, key, bound)
    except (InvalidSignature, InvalidTag, ValueError) as error:
        raise MessageError(
            f"{thing!r}: its seeds for {helper.name!r} do not open: they are of another round, base or device, for another "
            "helper's key, or were changed"
        ) from error
    return [found[start : start + SEED_BYTES] for start in range(0, len(found), SEED_BYTES)]

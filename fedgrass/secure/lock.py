"""A helper's sums are locked: they open only where as many others as must not collude answered for the very same set.

Without it a cloud that shows helpers three sets, two without a device in common and both together, learns two sums where it
should learn one (docs/secure-aggregation.md). Each pair of helpers has a key by Diffie-Hellman of their pinned keys. A helper
gives, with its sums for a set, a token for each other helper: a PRF of that set's digest under the pair's key. A helper's sums
are encrypted; the key is wrapped, once for each choice of ``collude`` others, under the tokens of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedgrass.errors import MessageError
from fedgrass.protocol.secure import SecureTask, decoded_key

TOKEN_BYTES = 32
CONTENT_BYTES = 64  # the key of the sums, and the digest of what was encrypted
WRAPPED_BYTES = CONTENT_BYTES + 16
_NONCE = bytes(12)  # a wrapping key wraps one content: both follow from the set and the sums


def derived(secret: bytes, *info: str) -> bytes:
    """Return 32 bytes that follow from a secret and what they are for (HKDF, RFC 5869)."""
    text = "|".join(("fedgrass secure 1", *info)).encode()
    return HKDF(SHA256(), TOKEN_BYTES, salt=None, info=text).derive(secret)


def own_key(key: X25519PrivateKey, digest: str) -> bytes:
    """Return the key that a helper encrypts its sums for a set with: the same in every attempt."""
    return derived(key.private_bytes_raw(), "sums", digest)


def token(key: X25519PrivateKey, other: str, digest: str, *, owner: int, giver: int) -> bytes:
    """Return what one helper gives for the lock of another; either of the two can make it, as it holds one of the keys.

    Parameters
    ----------
    key
        The private key of the helper that makes it.
    other
        The public key of the other one, as base64.
    digest
        Of the set.
    owner
        Number of the helper whose lock it opens.
    giver
        Number of the helper that gives it.

    Returns
    -------
    bytes
        32 bytes.
    """
    # Diffie-Hellman gives both helpers the same secret; owner and giver in the derivation keep the two directions
    # apart.
    secret = key.exchange(X25519PublicKey.from_public_bytes(decoded_key(other)))
    return derived(secret, "token", digest, str(owner), str(giver))


def others(task: SecureTask, helper: int) -> list[int]:
    """Return the other helpers, in order."""
    return [one for one in range(len(task.helpers)) if one != helper]


def choices(task: SecureTask, helper: int) -> Iterator[tuple[int, ...]]:
    """Yield each choice of others whose tokens open a helper's lock together."""
    return combinations(others(task, helper), task.collude)


def locked(content: bytes, key: X25519PrivateKey, task: SecureTask, helper: int, digest: str) -> bytes:
    """Return the lock of a helper's content: wrapped once for each of the `choices`.

    Parameters
    ----------
    content
        What opens its sums: 64 bytes.
    key
        Its private key.
    task
        The round's masking, with all helpers' public keys.
    helper
        Its number.
    digest
        Of the set.

    Returns
    -------
    bytes
        All wrappings, in the order of the choices.
    """
    given = {
        other: token(key, task.helpers[other].key, digest, owner=helper, giver=other) for other in others(task, helper)
    }
    return b"".join(
        AESGCM(_wrapping(given, choice, digest)).encrypt(_NONCE, content, None) for choice in choices(task, helper)
    )


def tokens(key: X25519PrivateKey, task: SecureTask, helper: int, digest: str) -> bytes:
    """Return the tokens that a helper gives the others for a set, in their order.

    Parameters
    ----------
    key
        The private key of the helper that gives them.
    task
        The round's masking, with all helpers' public keys.
    helper
        Its number.
    digest
        Of the set.

    Returns
    -------
    bytes
        32 bytes for each of the others.
    """
    return b"".join(
        token(key, task.helpers[other].key, digest, owner=other, giver=helper) for other in others(task, helper)
    )


def unlocked(lock: bytes, given: Mapping[int, bytes], task: SecureTask, helper: int, digest: str) -> bytes:
    """Return a helper's content, by the tokens that the others gave for its lock.

    Parameters
    ----------
    lock
        What `locked` returned.
    given
        The tokens by the number of the helper that gave them.
    task
        The round's masking.
    helper
        Number of the helper whose lock it is.
    digest
        Of the set.

    Returns
    -------
    bytes
        The content.

    Raises
    ------
    MessageError
        If fewer than ``collude`` others gave theirs, or what they gave does not open it.
    """
    for index, choice in enumerate(choices(task, helper)):
        if all(other in given for other in choice):
            part = lock[index * WRAPPED_BYTES : (index + 1) * WRAPPED_BYTES]
            try:
                return AESGCM(_wrapping(given, choice, digest)).decrypt(_NONCE, part, None)
            except InvalidTag:
                continue  # one of them gave a token for another set, or none of worth
    raise MessageError(f"the sums of {task.helpers[helper].name!r} are locked: no {task.collude} others opened them")


def _wrapping(given: Mapping[int, bytes], choice: Sequence[int], digest: str) -> bytes:
    return derived(b"".join(given[other] for other in choice), "lock", digest, *map(str, choice))

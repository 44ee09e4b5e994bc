"""The helpers of a simulation with secure aggregation: real ones, in this process, whose keys follow from the seed."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.check import Checked, judged
from fedgrass.secure.helper import Helper
from fedgrass.secure.keys import public_text
from fedgrass.secure.request import AcceptedSet, SumRequest
from fedgrass.secure.summing import NoiseSeeds


def parse_secure(text: str, seed: int) -> dict[str, Any]:
    """Read ``HELPERS:COLLUDE[:BITS]`` as the setting ``secure``.

    Parameters
    ----------
    text
        Such as ``3:1`` or ``5:2:16``.
    seed
        The simulation's, from which the helpers' keys follow.

    Raises
    ------
    ConfigurationError
        If it is something else.

    Examples
    --------
    >>> [helper["name"] for helper in parse_secure("3:1:16", 0)["helpers"]]
    ['helper-1', 'helper-2', 'helper-3']
    """
    found = re.fullmatch(r"(\d):(\d)(?::(16|32))?", text)
    if found is None:
        raise ConfigurationError(f"secure {text!r}: expected HELPERS:COLLUDE[:BITS], such as 3:1 or 5:2:16")
    helpers = [{"name": f"helper-{i + 1}", "key": public_text(_key(seed, i))} for i in range(int(found[1]))]
    return {"helpers": helpers, "collude": int(found[2]), "bits": int(found[3] or 32)}


def virtual_signer(seed: int, thing: str) -> Ed25519PrivateKey:
    """Return a virtual device's key."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"signer/{seed}/{thing}".encode()).digest())


class VirtualHelpers:
    """The helpers of a run, as the aggregator asks them; each keeps what a helper keeps in a folder.

    Raises
    ------
    ConfigurationError
        If the settings pin other keys than the simulation has.
    """

    def __init__(self, task: SecureTask, fleet: str, seed: int, folder: Path) -> None:
        keys = [_key(seed, index) for index in range(len(task.helpers))]
        for helper, key in zip(task.helpers, keys, strict=True):
            if helper.key != public_text(key):
                raise ConfigurationError(
                    f"secure.helpers: a simulation has no private key for that of {helper.name!r}; let --secure make the helpers"
                )
        self._answers = folder / "answers"
        self._helpers = [
            Helper(folder / f"helper-{i}", fleet, key=key, noise_of=_noise_of(seed, i)) for i, key in enumerate(keys)
        ]

    def check(self, requests: Sequence[SumRequest]) -> Checked:
        """Have every helper say which boxes open."""
        found = {i: one.check(request) for i, (one, request) in enumerate(zip(self._helpers, requests, strict=True))}
        return judged(requests[0].accepted, found)

    def ask(self, requests: Sequence[SumRequest]) -> Mapping[int, Path]:
        """Have every helper answer."""
        # A round's answers only: each is as long as the model.
        shutil.rmtree(self._answers, ignore_errors=True)
        self._answers.mkdir(parents=True)
        found = {}
        for request in requests:
            index = request.helper
            found[index] = self._answers / f"helper-{index}"
            self._helpers[index].answer(request, found[index])
        return found


# Keys that anybody can compute: a simulation has no secrets, and must give the same bytes each time.
def _key(seed: int, index: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(f"helper/{seed}/{index}".encode()).digest())


# Else it would follow from the set's boxes, which nobody can seed, and no two runs with it would be alike.
def _noise_of(seed: int, index: int) -> NoiseSeeds:
    def found(accepted: AcceptedSet, group: int) -> bytes:
        # The session follows from the seed and the round.
        return hashlib.sha256(f"helper noise/{seed}/{index}/{accepted.session}/{group}".encode()).digest()

    return found

"""A helper's part: the sums of the masks whose seeds it was given, once in a round and for one set of devices."""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.errors import MessageError
from fedgrass.files import sha256_of, write_atomically
from fedgrass.secure.check import MAX_REASON, BoxCheck
from fedgrass.secure.helper_state import FolderState, HelperState, Known
from fedgrass.secure.keys import public_text
from fedgrass.secure.masks import COMMITMENT_BYTES, commitment
from fedgrass.secure.request import AcceptedSet, Member, SumRequest
from fedgrass.secure.sealing import opened, signer_of
from fedgrass.secure.shares import require_noise
from fedgrass.secure.summing import NoiseSeeds, write_sums


@dataclass(frozen=True)
class HelperLimits:
    """What the helper's owner allows, whatever the cloud asks for.

    Attributes
    ----------
    min_devices
        Devices in a set, and in each of its groups, without which it is not summed.
    known_seconds
        How long the helper must have known the key of a device for it to be among these.
    """

    min_devices: int = 2
    known_seconds: float = 0.0


class Helper:
    """A helper, by what it keeps: its key, what it has answered, and which devices' keys it knows since when.

    It is the same one wherever it lives: on a core device (``components/trainer``), or as a job in an account of its own
    (`fedgrass.cloud.helper`).

    Parameters
    ----------
    place
        A folder that outlives the process, or what stands for one. Without it the helper could answer twice.
    fleet
        The only fleet whose rounds are answered.
    noise_of
        Gives the seed of its noise for a group of a set. Only a simulation may have one, whose runs have to be alike.
    """

    def __init__(
        self,
        place: Path | HelperState,
        fleet: str,
        limits: HelperLimits | None = None,
        *,
        key: X25519PrivateKey | None = None,
        clock: Callable[[], float] = time.time,
        noise_of: NoiseSeeds | None = None,
    ) -> None:
        self._state = FolderState(place) if isinstance(place, Path) else place
        self._fleet = fleet
        self._limits = limits or HelperLimits()
        self._key = key or self._state.key()
        self._clock = clock
        self._noise_of = noise_of

    @property
    def public_key(self) -> str:
        """The key to pin in the fleet's settings."""
        return public_text(self._key)

    def respond(self, content: bytes, path: Path, *, after_piece: Callable[[], None] = lambda: None) -> str:
        """Write what a request asks for, a check or sums; nothing of it is trusted.

        Parameters
        ----------
        content
            The request, as it lies in the bucket.
        path, after_piece
            As of `answer`.

        Returns
        -------
        str
            SHA-256 of the file.

        Raises
        ------
        MessageError
            If it is no request, or one that is not to be answered.
        """
        request = SumRequest.decode(content)
        if not request.check:
            return self.answer(request, path, after_piece=after_piece)
        write_atomically(path, self.check(request).encode())
        return sha256_of(path)

    def answer(self, request: SumRequest, path: Path, *, after_piece: Callable[[], None] = lambda: None) -> str:
        """Write the answer to a request; repeated, or taken up after a kill, it gives the same bytes.

        Parameters
        ----------
        request
            The set, and this helper's boxes.
        path
            File to write; it may hold what an earlier attempt wrote.
        after_piece
            Called between two pieces of a sum; may raise to stop here and go on later.

        Returns
        -------
        str
            SHA-256 of the file.

        Raises
        ------
        MessageError
            If the set is not to be answered: another one was in this round, it is too small, a box does not open.
        """
        accepted = request.accepted
        self._check(request)
        require_noise(accepted, request.helper)
        seeds = self._seeds(request)
        self._check_devices(request)
        # On disk before the first byte of a sum: a second set in this round would tell the cloud the difference of
        # two sums.
        self._commit(accepted)
        write_sums(path, accepted, request.helper, seeds, self._key, after_piece, noise_of=self._noise_of)
        return sha256_of(path)

    def check(self, request: SumRequest) -> BoxCheck:
        """Say which devices' boxes do not open, and why; or why nothing of this fleet's would be summed for such a set.

        It binds to nothing and gives no sum away: the cloud learns of each box whether it is a good one, which a box that
        was made by somebody else, or changed, never is.
        """
        bad: dict[str, str] = {}
        try:
            self._check(request)
            known = self._state.known()
            for member, text in zip(request.accepted.members, request.boxes, strict=True):
                if why := self._why_not(request, member, text, known):
                    bad[member.thing] = why
            # What would be left of the set has to be large enough as well.
            good = [member for member in request.accepted.members if member.thing not in bad]
            self._keep_signers(request, good, known)
            self._require_known(good, known, most=True)
        except MessageError as error:
            return BoxCheck(digest=request.digest, refused=str(error)[:MAX_REASON], unopened=bad)
        if request.accepted.task.groups == 1:
            return BoxCheck(digest=request.digest, unopened=bad)
        told, least = self._known_in(good, known), self._limits.min_devices
        return BoxCheck(digest=request.digest, unopened=bad, least=least, known=told)

    def _check(self, request: SumRequest) -> None:
        accepted, task = request.accepted, request.accepted.task
        if accepted.fleet != self._fleet:
            raise MessageError(f"it is for fleet {accepted.fleet!r}, this helper is of {self._fleet!r}")
        if request.helper >= len(task.helpers) or task.helpers[request.helper].key != self.public_key:
            raise MessageError(f"it is for another helper's key; this one's is {self.public_key}")
        things = [member.thing for member in accepted.members]
        # A device that is named twice would have its mask summed twice, and would make the set look larger than it
        # is.
        if things != sorted(set(things)) or len(request.boxes) != len(things):
            raise MessageError("its devices are not in order, or one is there twice, or a box is missing")
        if len(things) > task.most:
            raise MessageError(f"it names {len(things)} devices; the values are wide enough for {task.most}")
        # By this helper's own reckoning: a cloud that could choose who is with whom would sum one device by itself.
        if strange := [
            one.thing for one in accepted.members if one.group != task.group_of(accepted.session, one.thing)
        ]:
            raise MessageError(f"it has {strange[0]!r} in another group than the cohort's salt and its name give")
        least, size = max(self._limits.min_devices, task.least_summed), min(accepted.groups.values())
        # Before a set is fixed groups may be too small: they are left out then.
        if size < least and not (request.check and max(accepted.groups.values()) >= least):
            raise MessageError(f"a group has {size} devices; this helper sums {least} or more")

    def _why_not(self, request: SumRequest, member: Member, text: str, known: Known) -> str:
        try:
            self._seeds_of(request, member, text)
            self._require_signer(member, text, known)
        except MessageError as error:
            return str(error)[:MAX_REASON]
        return ""

    def _seeds(self, request: SumRequest) -> list[list[bytes]]:
        """Open the boxes; returns each device's seeds in the order of this helper's masks."""
        members = request.accepted.members
        return [self._seeds_of(request, one, text) for one, text in zip(members, request.boxes, strict=True)]

    def _seeds_of(self, request: SumRequest, member: Member, text: str) -> list[bytes]:
        accepted, task = request.accepted, request.accepted.task
        known, thing = task.known_to(request.helper), member.thing
        try:
            parts = (text, member.boxes, member.commitments)
            box, digests, commitments = (base64.b64decode(part, validate=True) for part in parts)
        except (binascii.Error, ValueError) as error:
            raise MessageError(f"{thing!r}: its box is not base64") from error
        # Checked before it is opened: all helpers must mean the same boxes, or their answers would not fit together.
        if digests[32 * request.helper :][:32] != hashlib.sha256(box).digest():
            raise MessageError(f"{thing!r}: its box is not the one that the set names")
        seeds = opened(box, len(known), accepted.context, thing, task.helpers[request.helper], self._key)
        told = [commitments[COMMITMENT_BYTES * mask :][:COMMITMENT_BYTES] for mask in known]
        # A device that gives two helpers different seeds would make their sums differ, and cost everybody the round.
        if told != [commitment(seed) for seed in seeds]:
            raise MessageError(f"{thing!r}: its seeds are others than those that its update tells of")
        return seeds

    def _check_devices(self, request: SumRequest) -> None:
        """Keep devices' keys, and require that enough of them were known before."""
        members, known = request.accepted.members, self._state.known()
        for member, text in zip(members, request.boxes, strict=True):
            self._require_signer(member, text, known)
        self._keep_signers(request, members, known)
        # Again: another process of this helper may have kept another key since it was looked at.
        for member, text in zip(members, request.boxes, strict=True):
            self._require_signer(member, text, known)
        self._require_known(members, known)

    def _require_signer(self, member: Member, text: str, known: Known) -> None:
        pinned = known.get(member.thing)
        if pinned is not None and pinned[0] != _signer(text):
            raise MessageError(
                f"{member.thing!r} signs with another key than before; if it was set up again, remove it from {self._state.where}"
            )

    def _keep_signers(self, request: SumRequest, members: Sequence[Member], known: Known) -> None:
        now = self._clock()
        boxes = dict(zip((one.thing for one in request.accepted.members), request.boxes, strict=True))
        new = {one.thing: (_signer(boxes[one.thing]), now) for one in members if one.thing not in known}
        if new:
            # Trust on first use: the first key that a name came with is the one it keeps.
            known.update(self._state.keep(new))

    def _known_in(self, members: Sequence[Member], known: Known) -> dict[int, int]:
        """Return how many devices of each group it has known for long enough."""
        now, seconds = self._clock(), self._limits.known_seconds
        found = dict.fromkeys((member.group for member in members), 0)
        for member in members:
            found[member.group] += now - known[member.thing][1] >= seconds
        return found

    def _require_known(self, members: Sequence[Member], known: Known, *, most: bool = False) -> None:
        """Require it of the group with the fewest such devices; with ``most``, of the one with the most."""
        limits, found = self._limits, self._known_in(members, known)
        old = max(found.values(), default=0) if most else min(found.values(), default=0)
        if old < limits.min_devices:
            which = "" if len(found) < 2 else f", in {len(found)} groups, of one of these"
            raise MessageError(
                f"of {len(members)} devices{which} it has known {old} for {limits.known_seconds:g} s; {limits.min_devices} are "
                "needed"
            )

    def _commit(self, accepted: AcceptedSet) -> None:
        """Take this set for the round's one, durably; raises `MessageError` if there is another."""
        # By the session too: a fleet that was made again starts at round 1.
        identity = hashlib.sha256(f"{accepted.round}|{accepted.session}".encode()).hexdigest()[:32]
        if self._state.first_for(identity, accepted.digest) != accepted.digest:
            raise MessageError(f"round {accepted.round} was answered for another set; a helper answers once")


def _signer(box: str) -> str:
    return base64.b64encode(signer_of(base64.b64decode(box))).decode()

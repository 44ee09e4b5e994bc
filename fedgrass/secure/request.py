"""What the cloud asks a helper: the accepted devices of a round, named once and for all, with their seeds for it."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import MessageError, first_problem
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, ThingName
from fedgrass.protocol.secure import MOST_DEVICES, MOST_GROUPS, MOST_HELPERS, SecureTask
from fedgrass.secure.sealing import Context

# Some 1,300 bytes for each of 100,000 devices.
MAX_REQUEST_BYTES = 128 << 20


class Member(BaseModel):
    """A device of the set.

    ``boxes`` is the base64 of the SHA-256 of its box for each helper, one after the other; ``commitments`` that of what its
    update says of its seeds: a device that seals other seeds for one helper than for another is found by it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    thing: ThingName
    group: int = Field(default=0, ge=0, lt=MOST_GROUPS)
    boxes: Annotated[str, Field(max_length=300)]
    commitments: Annotated[str, Field(max_length=300)]


class AcceptedSet(BaseModel):
    """The set: everything that must be the same for every helper. Its digest stands for it.

    ``adding`` are the helpers that add noise, by number, in order; all of them must answer. Empty: none does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    fleet: FleetName
    round: RoundNumber
    session: Annotated[str, Field(min_length=1, max_length=64)]
    base_sha256: Sha256
    length: int = Field(ge=1, le=1 << 40)
    task: SecureTask
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=MOST_DEVICES)]
    adding: Annotated[tuple[int, ...], Field(max_length=MOST_HELPERS)] = ()

    @property
    def needed(self) -> tuple[int, int]:
        """How many helpers must answer, and of how many."""
        task = self.task
        return (len(self.adding), len(self.adding)) if self.adding else (task.needed, len(task.helpers))

    def assigned_to(self, helper: int) -> tuple[int, ...]:
        """Return the masks of which a helper hands in one sum where helpers add noise: it is the first that knows them."""
        # Each mask by exactly one of those that know it: twice, and it would not cancel out.
        first = {number: min(set(self.adding) - set(without)) for number, without in enumerate(self.task.masks)}
        return tuple(number for number, who in first.items() if who == helper)

    @property
    def digest(self) -> str:
        """SHA-256 of the set, in hex."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def context(self) -> Context:
        """What the boxes are bound to."""
        return Context.of_round(self.fleet, self.round, self.session, self.base_sha256, self.task)

    @property
    def groups(self) -> dict[int, int]:
        """The groups that are summed, each by itself, in order, with how many devices each has."""
        return dict(sorted(Counter(member.group for member in self.members).items()))


class SumRequest(BaseModel):
    """The set, and the boxes of its devices for one helper, in the order of the members, as base64.

    With ``check`` the helper is asked which of the boxes open (`fedgrass.secure.check`), and for no sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    accepted: AcceptedSet
    helper: int = Field(ge=0)
    boxes: tuple[str, ...]
    check: bool = False

    @property
    def digest(self) -> str:
        """What the answer is found by: the set's digest, or another that follows from it, for a check."""
        digest = self.accepted.digest
        # Not the set's own digest: an answer to a check must not pass for one to the sums.
        return hashlib.sha256(f"check {digest}".encode()).hexdigest() if self.check else digest

    def encode(self) -> bytes:
        """Return the request as JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, content: bytes) -> SumRequest:
        """Read a request; raises `MessageError` naming what is wrong."""
        if len(content) > MAX_REQUEST_BYTES:
            raise MessageError(f"request: {len(content)} bytes; at most {MAX_REQUEST_BYTES} are accepted")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise MessageError(f"request: {first_problem(error)}") from error


@dataclass(frozen=True)
class Candidate:
    """A device that may be in the set, with its boxes for all helpers."""

    thing: str
    boxes: tuple[bytes, ...]
    commitments: bytes
    group: int = 0


def requests_for(
    accepted: Sequence[Candidate],
    context: Context,
    length: int,
    task: SecureTask,
    *,
    check: bool = False,
    adding: Sequence[int] = (),
) -> list[SumRequest]:
    """Return the request to each helper, for a set of devices: for the sums, or for a ``check`` before them.

    With ``adding``, these helpers add noise, and only they are asked.

    Parameters
    ----------
    accepted
        The devices of the set, in any order.
    context
        The round that their boxes are bound to.
    length
        Coordinates of each vector.
    task
        The round's masking.
    check
        Whether it is a check before the sums, by which helpers tell whose boxes open.
    adding
        Numbers of the helpers that add noise; none where the devices do, or nobody.

    Returns
    -------
    list
        The requests, one for each helper that is asked.
    """
    # Sorted, so that the digest does not depend on the order in which updates were listed.
    ordered = sorted(accepted, key=lambda one: one.thing)
    named = AcceptedSet(
        fleet=context.fleet,
        round=context.round,
        session=context.session,
        base_sha256=context.base_sha256,
        length=length,
        task=task,
        members=tuple(
            Member(
                thing=one.thing,
                group=one.group,
                boxes=base64.b64encode(b"".join(hashlib.sha256(box).digest() for box in one.boxes)).decode(),
                commitments=base64.b64encode(one.commitments).decode(),
            )
            for one in ordered
        ),
        adding=tuple(adding),
    )
    return [
        SumRequest(
            accepted=named,
            helper=index,
            boxes=tuple(base64.b64encode(one.boxes[index]).decode() for one in ordered),
            check=check,
        )
        for index in adding or range(len(task.helpers))
    ]

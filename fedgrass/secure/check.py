"""Before a set is fixed: which devices' boxes the helpers can open.

A device that seals rubbish for a helper would keep it from answering, and as a helper answers one set in a round, ever, the
round would be lost. So the helpers look first. They tell of each box whether it opens and bind themselves to nothing; the
job leaves out what does not open, and only then names the set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import HelpersMissingError, MessageError, first_problem
from fedgrass.protocol.names import Sha256, ThingName
from fedgrass.protocol.secure import MOST_DEVICES, MOST_GROUPS
from fedgrass.secure.request import AcceptedSet

MAX_REASON = 300
_Reason = Annotated[str, Field(max_length=MAX_REASON)]


class BoxCheck(BaseModel):
    """What a helper found: devices whose boxes do not open, with reasons; or why it would sum nothing, if it would not.

    Of each of several groups it says how many devices it has known for long enough, and ``least``, how many it asks for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    digest: Sha256
    refused: _Reason = ""
    unopened: Annotated[dict[ThingName, _Reason], Field(max_length=MOST_DEVICES)] = {}
    least: int = Field(default=0, ge=0)
    known: Annotated[dict[int, int], Field(max_length=MOST_GROUPS)] = {}

    def encode(self) -> bytes:
        """Return it as JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, content: bytes, digest: str, things: frozenset[str]) -> BoxCheck:
        """Read what a helper sent for a check.

        Parameters
        ----------
        content
            The file's bytes.
        digest
            Of the check that was asked for.
        things
            The set's devices: it may name no others.

        Returns
        -------
        BoxCheck
            The check.

        Raises
        ------
        MessageError
            If it is malformed, or of another set.
        """
        try:
            found = cls.model_validate_json(content)
        except ValidationError as error:
            raise MessageError(f"check: {first_problem(error)}") from error
        if found.digest != digest or not things.issuperset(found.unopened):
            raise MessageError("check: it is of another set")
        return found


def most_bytes(devices: int) -> int:
    """Return the size that the answer to a check of so many devices has at most."""
    return 8192 + devices * (6 * MAX_REASON + 200)  # a character may take six bytes in JSON


class Checked(BaseModel):
    """What is made of the helpers' checks: who can sum, and the devices and groups that are left out, with reasons."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    helpers: tuple[int, ...]
    unopened: dict[str, str] = {}
    small: dict[int, str] = {}


def judged(accepted: AcceptedSet, found: Mapping[int, BoxCheck]) -> Checked:
    """Decide who is left out: the devices of which a helper opens no box; or that helper, if it opens fewer than half of them.

    Raises
    ------
    HelpersMissingError
        If too few helpers are left that can sum.
    """
    task, count = accepted.task, len(accepted.members)
    said: list[str] = []
    able: list[int] = []
    for index, helper in enumerate(task.helpers):
        if index not in found:
            said.append(f"{helper.name} is silent")
        # More likely the helper has lost its key than most devices seal rubbish.
        elif 2 * len(found[index].unopened) > count:
            thing, why = next(iter(found[index].unopened.items()))
            said.append(f"{helper.name} opens {count - len(found[index].unopened)} of {count} boxes ({thing}: {why})")
        elif found[index].refused:
            said.append(f"{helper.name}: {found[index].refused}")
        else:
            able.append(index)
    if len(able) < task.needed:
        raise HelpersMissingError(
            f"{len(able)} of {len(task.helpers)} helpers can sum, {task.needed} are needed; {'; '.join(said)}"
        )
    unopened: dict[str, str] = {}
    for index in able:
        for thing, why in found[index].unopened.items():
            # One able helper that cannot open a box is enough: it could not sum the set.
            unopened.setdefault(thing, f"helper {task.helpers[index].name}: {why}")
    small = _small(accepted, {index: found[index] for index in able}, frozenset(unopened))
    return Checked(helpers=tuple(able), unopened=dict(sorted(unopened.items())), small=small)


def _small(accepted: AcceptedSet, found: Mapping[int, BoxCheck], out: frozenset[str]) -> dict[int, str]:
    """Return the groups that would have too few devices once those in ``out`` have left, of several groups."""
    task, small = accepted.task, dict[int, str]()
    # The only group is the set: whether a helper sums it is for the helper to say, and others may do.
    if task.groups == 1:
        return small
    for group, size in accepted.groups.items():
        gone = {one.thing for one in accepted.members if one.group == group} & out
        if size - len(gone) < task.group_min:
            small[group] = f"{size - len(gone)} devices are in the group, group_min is {task.group_min}"
        for index, check in found.items():
            # Any of those that leave may be one that this helper knows; what it left out itself it has not counted.
            known = check.known.get(group, 0) - len(gone - check.unopened.keys())
            if known < check.least:
                small.setdefault(
                    group,
                    f"helper {task.helpers[index].name} may know {known} of its devices, {check.least} are needed",
                )
    return small

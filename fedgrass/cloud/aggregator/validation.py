"""Validate untrusted updates: what passes is safe to add, what does not is refused with a reason."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.errors import UpdateError
from fedgrass.partial import StepPlan
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.cohort import takes
from fedgrass.protocol.messages import Cohort
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.update.header import UpdateHeader


@dataclass(frozen=True)
class Expected:
    """What an update of this round must say of itself. What is None (offline use) is not checked.

    ``earlier`` holds, by round, the base of earlier rounds whose late updates are taken too, with their age. ``plan`` is how many
    steps a training has, where updates may be of a part of one.
    """

    base_sha256: str
    graph_sha256: str
    fleet: str | None = None
    round: int | None = None
    cohort: Cohort | None = None
    checks: Checks = field(default_factory=Checks)
    earlier: Mapping[int, EarlierRound] = field(default_factory=dict)
    plan: StepPlan | None = None


@dataclass(frozen=True)
class EarlierRound:
    """A round that is over: its base and cohort, and how many models came after that base.

    ``spent`` holds, by key, the ETags of the updates that were used or refused in some round already.
    """

    base_sha256: str
    age: int
    cohort: Cohort | None = None
    spent: Mapping[str, Container[str]] = field(default_factory=dict)


class UpdateValidator:
    """Judges updates by what storage, their headers and their norms say."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._seen: set[tuple[str, int | None]] = set()

    def check_reference(self, reference: UpdateReference) -> None:
        """Check what storage says of an update, before it is opened: a thing has one update per round."""
        if not reference.thing:
            raise UpdateError("unexpected_key", f"{reference.key!r} is not the key of an update")
        # Per round: a device may have a late update of an earlier round beside that of this one.
        if (reference.thing, reference.round) in self._seen:
            raise UpdateError("duplicate", f"thing {reference.thing!r} has another update in this round")
        # Round 0 is none: references of this round carry no number.
        earlier = self._expected.earlier.get(reference.round or 0)
        # Spent objects themselves are not listed (see `late`): here the same key holds another one.
        if earlier is not None and reference.key in earlier.spent:
            raise UpdateError(
                "replayed",
                f"thing {reference.thing!r} was already used for round {reference.round}, and sent another since",
            )
        # A late update is measured against the cohort that its own round asked.
        cohort = earlier.cohort if earlier else self._expected.cohort
        if cohort is not None and not takes(cohort, reference.thing):
            raise UpdateError("uninvited", f"thing {reference.thing!r} is not in the round's cohort")
        # Only now: an update that is refused must not make the thing's good one a duplicate.
        self._seen.add((reference.thing, reference.round))

    def check_header(self, reference: UpdateReference, header: UpdateHeader) -> UpdateMetadata:
        """Check what an update says of itself, and return what may be believed; its norm is not known yet."""
        expected = self._expected
        earlier = expected.earlier.get(reference.round or 0)
        number = reference.round if earlier else expected.round
        base = earlier.base_sha256 if earlier else expected.base_sha256
        # The key's name is what IAM vouches for; the header is only what the device says.
        if header.thing != reference.thing:
            raise UpdateError(
                "foreign_thing", f"it says it is of thing {header.thing!r}, but {reference.thing!r} wrote it"
            )
        if expected.fleet is not None and header.fleet != expected.fleet:
            raise UpdateError("wrong_fleet", f"it is for fleet {header.fleet!r}, not {expected.fleet!r}")
        if number is not None and header.round != number:
            raise UpdateError("wrong_round", f"it is for round {header.round}, not {number}")
        if header.graph_sha256 != expected.graph_sha256:
            raise UpdateError(
                "wrong_graph", f"it is of graph {header.graph_sha256[:12]}…, not {expected.graph_sha256[:12]}…"
            )
        if header.base_sha256 != base:
            raise UpdateError("wrong_base", f"it is a difference from {header.base_sha256[:12]}…, not {base[:12]}…")
        # A late one was trained by its own round's plan, which a schedule may have had otherwise.
        if (
            expected.plan is not None
            and earlier is None
            and (problem := expected.plan.problem(header.num_examples, header.metrics))
        ):
            raise UpdateError("implausible_steps", problem)
        # An honest device with much data is not refused, it only does not outvote the others.
        examples = min(header.num_examples, expected.checks.max_examples)
        return UpdateMetadata(header.thing, examples, dict(header.metrics), earlier.age if earlier else 0)

    def check_norm(self, norm: float) -> None:
        """Hold an update's norm against the fixed bound."""
        bound = self._expected.checks.max_norm
        # 0 is no bound. NaN and infinity were refused when the norm was measured.
        if 0 < bound < norm:
            raise UpdateError("norm_exceeded", f"the difference's L2 norm is {norm:.6g}; the bound is {bound:.6g}")

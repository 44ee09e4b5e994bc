"""Which of the objects under a round's prefix are updates of the fleet's things; all others are refused by their names.

What outsiders control is bounded here: how many entries one thing, and all strangers together, get in the round's report. Nothing
that is refused here is opened, and nothing of it counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.protocol.cohort import takes
from fedgrass.protocol.losses import may_be_asked
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import UNKNOWN_THING, QuarantinedEntry
from fedgrass.protocol.utility import LastLosses

_OF_A_THING = 3
"""Refused objects of one of the fleet's things that the report names; the others are only counted."""

_OF_STRANGERS = 100
"""Refused objects of all that are not of the fleet, together."""


@dataclass
class Listed:
    """The objects under a round's prefix: updates and refused ones; ``more`` were refused beyond those that are named."""

    updates: list[UpdateReference] = field(default_factory=list)
    refused: list[QuarantinedEntry] = field(default_factory=list)
    more: int = 0


def listed_updates(source: RoundUpdates, things: Collection[str] | None) -> Listed:
    """List a round's updates.

    Parameters
    ----------
    things
        Who is of the fleet (`fedgrass.protocol.roster.things_of_fleet`); None where that was judged before.
    """
    found = Listed()
    refused: Counter[str] = Counter()
    for reference, writer in source.objects(things):
        # The name comes from the key, which IAM lets only that thing write (`${credentials-iot:ThingName}`).
        known = things is None or writer in things
        if known and reference.thing:
            found.updates.append(reference)
            continue
        # All strangers share one count: a name costs an attacker nothing.
        whose = writer if known else ""
        refused[whose] += 1
        # Counted, not named: the report must stay small whatever lies in the bucket.
        if refused[whose] > (_OF_A_THING if whose else _OF_STRANGERS):
            found.more += 1
        else:
            found.refused.append(_entry(reference, writer, known=known))
    return found


def without_uninvited(listed: Listed, record: RoundRecord, losses: Mapping[str, LastLosses]) -> Listed:
    """Refuse the updates of candidates by lot that have not reported what a round chooses by.

    Before the list is pinned: what a device reports meanwhile changes nothing for a job that runs again.

    Parameters
    ----------
    listed
        The round's objects.
    record
        The round, with ``by_loss`` in its cohort.
    losses
        What devices reported last, by thing.
    """
    found = Listed([], list(listed.refused), listed.more)
    for reference in listed.updates:
        # Lots are held against the cohort when the update is read, as in every round.
        asked = may_be_asked(record, reference.thing, losses.get(reference.thing, LastLosses()))
        if asked or not takes(record.cohort, reference.thing):
            found.updates.append(reference)
        else:
            detail = (
                f"thing {reference.thing!r} is a candidate by its lot, and has reported no loss that is high enough"
            )
            found.refused.append(_refused(reference, reference.thing, "uninvited", detail))
    return found


def _entry(reference: UpdateReference, writer: str, *, known: bool) -> QuarantinedEntry:
    reason, detail = (
        ("unexpected_key", f"{reference.key!r} is not the key of an update")
        if known
        else (
            UNKNOWN_THING,
            f"{writer!r} is not of the fleet: no heartbeat of it is known, and no silo of that name is listed",
        )
    )
    return _refused(reference, writer, reason, detail)


def _refused(reference: UpdateReference, writer: str, reason: str, detail: str) -> QuarantinedEntry:
    return QuarantinedEntry(
        thing=writer, key=reference.key, etag=reference.etag, bytes=reference.bytes, reason=reason, detail=detail[:500]
    )

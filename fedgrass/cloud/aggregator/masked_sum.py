"""The mean of masked updates: their sum modulo a power of two, with the masks' sums, as the helpers give them, taken off.

With `secure.groups` there is such a sum for each group of devices (`fedgrass.cloud.aggregator.group_means`).

Central privacy's noise is added to the integers of that sum, by which devices have clipped, before anything is read off it.

Every update is read once, whole, and only then added. No single update is ever in clear, so what can be checked of one is what
its header says and that it is of the right form; its values are the device's to bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgrass.cloud.aggregator.bounds import Counted
from fedgrass.cloud.aggregator.combination import Combined, Screened
from fedgrass.cloud.aggregator.group_means import GroupMeans
from fedgrass.cloud.aggregator.screening import Accepted, Screening
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.errors import AggregationError, ConfigurationError, UpdateError
from fedgrass.protocol.secure import SecureTask
from fedgrass.protocol.secure_settings import why_not_by_sums
from fedgrass.secure.check import Checked
from fedgrass.secure.masked import MaskedUpdate, read_masked
from fedgrass.secure.masks import Masked as MaskedValues
from fedgrass.secure.masks import dtype_of
from fedgrass.secure.quantize import doubt, mean_of
from fedgrass.secure.request import Candidate, SumRequest, requests_for
from fedgrass.secure.sealing import Context
from fedgrass.secure.unmask import unmask
from fedgrass.strategies.arithmetic.interfaces import Noise
from fedgrass.strategies.base import Strategy
from fedgrass.update.codecs import Floats
from fedgrass.update.header import Reason

# The sum of a single update would be that update in clear.
_LEAST = 2


class Helpers(Protocol):
    """The helpers, seen from the aggregator."""

    def check(self, requests: Sequence[SumRequest]) -> Checked:
        """Ask each helper which of the boxes open, before a set is fixed; the same answer whenever it is asked in a round."""
        ...

    def ask(self, requests: Sequence[SumRequest]) -> Mapping[int, Path]:
        """Tell each helper its request, wait, and return the files of those that answered in time, by their number."""
        ...


@dataclass(frozen=True)
class Masked:
    """A round's masks: how updates were masked, what their seeds are bound to, and who opens them."""

    task: SecureTask
    context: Context
    helpers: Helpers


@dataclass
class _Sums:
    """What was added up so far: by group the sum, and by thing what it is of."""

    totals: dict[int, MaskedValues] = field(default_factory=dict)
    good: dict[str, Accepted] = field(default_factory=dict)
    named: dict[str, Candidate] = field(default_factory=dict)

    @property
    def sizes(self) -> Counter[int]:
        """Devices by group."""
        return Counter(one.group for one in self.named.values())

    def without(self, thing: str) -> Accepted:
        """Forget a device; its group's sum is the caller's affair."""
        del self.named[thing]
        return self.good.pop(thing)


class MaskedMean:
    """The mean of a round's masked updates, or what the strategy makes of the means of its groups.

    Memory: a vector of ``bits`` for each group, and one more, whatever the number of updates.

    Parameters
    ----------
    masked
        The round's masks.
    screening
        Opens and judges updates.
    noise
        Central privacy's.
    groups
        Combines the groups' means, where the round has several.
    """

    def __init__(
        self, masked: Masked, screening: Screening, noise: Noise | None = None, groups: GroupMeans | None = None
    ) -> None:
        if noise is not None and masked.task.noise == 0:
            raise ConfigurationError(
                "secure: the round's integers were announced without room for the noise of central privacy"
            )
        self._masked = masked
        self._noise = noise
        self._groups = groups
        self._screening = screening
        # Examples are counted in masked coordinates behind the parameters: a weight in clear would tell about one
        # device.
        self._length = screening.layout.size + masked.task.count_coordinates

    def of(self, candidates: Sequence[UpdateReference], min_updates: int) -> Combined:
        """Return the mean, once the helpers have opened the sum.

        Raises
        ------
        HelpersMissingError
            If too few helpers did.
        AggregationError
            If what they gave makes no sense.
        """
        task, least = self._masked.task, max(_LEAST, min_updates)
        sums = self._added(candidates)
        self._leave_out(sums, self._small(sums))
        adding: tuple[int, ...] = ()
        # Helpers are asked once before the set is fixed: after that a single box that does not open would cost the
        # whole round.
        if len(sums.good) >= least:
            checked = self._masked.helpers.check(self._requests(sums, check=True))
            adding = checked.helpers if task.shared_noise else ()
            self._leave_out(sums, checked.small)
            self._take_out(sums, checked.unopened)
            self._leave_out(sums, self._small(sums))
        # Leaving out may have left too few. The helpers must not open such a sum.
        if len(sums.good) < least:
            return self._told(sums)
        requests = self._requests(sums, adding=adding)
        unmask(sums.totals, requests[0].accepted, self._masked.helpers.ask(requests))
        return self._by_groups(sums, least) if task.groups > 1 else self._whole(sums)

    def _added(self, candidates: Sequence[UpdateReference]) -> _Sums:
        """Add up the good updates, each to the sum of its group."""
        task, session, sums = self._masked.task, self._masked.context.session, _Sums()
        for reference, opener in (opening := self._screening.openers(candidates)):
            try:
                with opener() as stream:
                    update = read_masked(stream, reference.bytes, self._screening.layout.size, task)
                accepted = self._judged(reference, update, len(sums.good))
            except UpdateError as error:
                self._screening.refuse(reference, error)
                continue
            group = task.group_of(session, reference.thing)
            total = sums.totals.setdefault(group, np.zeros(self._length, dtype_of(task.bits)))
            # Unsigned integers wrap around, which is the modulus of the masks: no remainder has to be taken.
            np.add(total, update.values, out=total)
            sums.good[reference.thing] = accepted
            sums.named[reference.thing] = Candidate(reference.thing, update.boxes, update.commitments, group)
        opening.close()
        return sums

    def _requests(self, sums: _Sums, *, check: bool = False, adding: tuple[int, ...] = ()) -> list[SumRequest]:
        context, task = self._masked.context, self._masked.task
        return requests_for(list(sums.named.values()), context, self._length, task, check=check, adding=adding)

    def _whole(self, sums: _Sums) -> Combined:
        task, count = self._masked.task, len(sums.good)
        total = sums.totals[0]
        # While they are integers: noise that is added after scaling could be told apart by its last bits.
        if self._noise is not None:
            self._noise.add_to(total[: self._screening.layout.size], task.noise_steps)
        why, mean = doubt(total, count, task), mean_of(total, count, task)
        note = "all count alike, so it changes nothing" if task.equal else "the step is shorter than it should be"
        note = f"{why}; {note}" if why else ""
        return self._told(sums, mean, dict.fromkeys(sums.good, 1 / count), note=note)

    def _by_groups(self, sums: _Sums, least: int) -> Combined:
        if self._groups is None or self._noise is not None:
            raise ConfigurationError("secure.groups: central noise is for one sum; set privacy.mode to distributed")
        sizes = sums.sizes
        found = self._groups.of(sums.totals, sizes, self._masked.task, least)
        # Nobody can say whose fault it was: the group goes as a whole.
        self._leave_out(sums, found.refused, "implausible_group")
        shares = {
            thing: found.shares[one.group] / sizes[one.group] for thing, one in sums.named.items() if found.shares
        }
        return self._told(sums, found.difference, shares, found.declined)

    def _told(
        self,
        sums: _Sums,
        difference: Floats | None = None,
        shares: Mapping[str, float] | None = None,
        declined: str = "",
        note: str = "",
    ) -> Combined:
        """Return the result with what became of each device."""
        ordered = sorted(sums.good.values(), key=lambda one: one.reference.thing)
        found, counted = Screened(ordered, self._screening.refused), [Counted(one, one.facts) for one in ordered]
        weights = [shares[one.reference.thing] for one in ordered] if shares else []
        return Combined(found, counted, difference, weights, declined, note)

    def _small(self, sums: _Sums) -> dict[int, str]:
        """Return the groups that have too few devices to be summed, of several groups."""
        task = self._masked.task
        if task.groups == 1:
            return {}
        return {
            group: f"{size} devices are in the group, group_min is {task.group_min}"
            for group, size in sums.sizes.items()
            if size < task.group_min
        }

    def _leave_out(self, sums: _Sums, groups: Mapping[int, str], reason: Reason = "small_group") -> None:
        """Refuse all devices of these groups, and forget the groups' sums."""
        for thing, one in list(sums.named.items()):
            if one.group in groups:
                self._screening.refuse(sums.without(thing).reference, UpdateError(reason, groups[one.group]))
        for group in groups:
            sums.totals.pop(group, None)

    def _take_out(self, sums: _Sums, unopened: Mapping[str, str]) -> None:
        """Subtract updates from the sums again, and refuse them: that their seeds do not open shows only when all are read."""
        references = [one.reference for thing, one in sums.good.items() if thing in unopened]
        for reference, opener in (opening := self._screening.openers(references)):
            try:
                with opener() as stream:
                    update = read_masked(stream, reference.bytes, self._screening.layout.size, self._masked.task)
            # It was in the sum, so it can be neither kept nor quietly left in.
            except UpdateError as error:
                raise AggregationError(f"{reference.key}: was read, and cannot be read again ({error})") from error
            # Exact here, unlike in floating point: addition modulo a power of two has an inverse.
            total = sums.totals[sums.named[reference.thing].group]
            np.subtract(total, update.values, out=total)
            sums.without(reference.thing)
            self._screening.refuse(reference, UpdateError("unopened_seeds", unopened[reference.thing]))
        opening.close()

    def _judged(self, reference: UpdateReference, update: MaskedUpdate, before: int) -> Accepted:
        # Values look random under the mask, so the header is all that can be judged of a single update.
        facts = self._screening.examiner.check_header(reference, update.header)
        # One more addend could wrap the sum around, and every coordinate would be wrong without a sign of it.
        if before >= self._masked.task.most:
            raise UpdateError(
                "uninvited",
                f"the sum is wide enough for {self._masked.task.most} devices (secure.most), and has as many",
            )
        # The norm of masked values means nothing; 0 stands for unknown.
        return self._screening.passed(reference, facts, 0.0)


def require_sums(strategy: Strategy, groups: int) -> None:
    """Raise `ConfigurationError` if a strategy needs single updates: here all strategies are installed."""
    if why := why_not_by_sums(strategy, groups):
        raise ConfigurationError(f"strategy {strategy.name!r}: with secure the cloud sees sums only, and it {why}")

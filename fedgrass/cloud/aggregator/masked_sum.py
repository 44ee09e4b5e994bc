"""The mean of masked updates: their sum modulo a power of two, with the masks' sums, as the helpers give them, taken off.

Central privacy's noise is added to the integers of that sum, by which devices have clipped, before anything is read off it.

Every update is read once, whole, and only then added. No single update is ever in clear, so what can be checked of one is what
its header says and that it is of the right form; its values are the device's to bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgrass.cloud.aggregator.bounds import Counted
from fedgrass.cloud.aggregator.combination import Combined, Screened
from fedgrass.cloud.aggregator.screening import Accepted, Screening
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.errors import AggregationError, ConfigurationError, UpdateError
from fedgrass.protocol.secure import SecureTask
from fedgrass.protocol.secure_settings import why_not_by_sums
from fedgrass.secure.check import Checked
from fedgrass.secure.masked import MaskedUpdate, read_masked
from fedgrass.secure.masks import Masked as MaskedValues
from fedgrass.secure.masks import dtype_of
from fedgrass.secure.quantize import mean_of
from fedgrass.secure.request import Candidate, SumRequest, requests_for
from fedgrass.secure.sealing import Context
from fedgrass.secure.unmask import unmask
from fedgrass.strategies.arithmetic.interfaces import Noise
from fedgrass.strategies.base import Strategy

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


class MaskedMean:
    """The mean of a round's masked updates. Memory: two vectors of ``bits`` each, whatever the number of updates."""

    def __init__(self, masked: Masked, screening: Screening, noise: Noise | None = None) -> None:
        if noise is not None and masked.task.noise == 0:
            raise ConfigurationError(
                "secure: the round's integers were announced without room for the noise of central privacy"
            )
        self._masked = masked
        self._noise = noise
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
        task = self._masked.task
        total = np.zeros(self._length, dtype_of(task.bits))
        good: list[Accepted] = []
        adding: tuple[int, ...] = ()
        named: list[Candidate] = []
        for reference, opener in (opening := self._screening.openers(candidates)):
            try:
                with opener() as stream:
                    update = read_masked(stream, reference.bytes, self._screening.layout.size, task)
                accepted = self._judged(reference, update, len(good))
            except UpdateError as error:
                self._screening.refuse(reference, error)
                continue
            # Unsigned integers wrap around, which is the modulus of the masks: no remainder has to be taken.
            np.add(total, update.values, out=total)
            good.append(accepted)
            named.append(Candidate(reference.thing, update.boxes, update.commitments))
        opening.close()
        # Helpers are asked once before the set is fixed: after that a single box that does not open would cost the
        # whole round.
        if len(good) >= max(_LEAST, min_updates):
            checks = requests_for(named, self._masked.context, self._length, task, check=True)
            checked = self._masked.helpers.check(checks)
            unopened, adding = checked.unopened, checked.helpers if task.shared_noise else ()
            # Exact here, unlike in floating point: addition modulo a power of two has an inverse.
            self._take_out(total, [one.reference for one in good if one.reference.thing in unopened], unopened)
            good = [one for one in good if one.reference.thing not in unopened]
            named = [one for one in named if one.thing not in unopened]
        ordered = sorted(good, key=lambda one: one.reference.thing)
        found, counted = Screened(ordered, self._screening.refused), [Counted(one, one.facts) for one in ordered]
        # Taking out may have left too few. The helpers must not open such a sum.
        if len(good) < max(_LEAST, min_updates):
            return Combined(found, counted)
        requests = requests_for(named, self._masked.context, self._length, task, adding=adding)
        unmask([total], requests[0].accepted, self._masked.helpers.ask(requests))
        # While they are integers: noise that is added after scaling could be told apart by its last bits.
        if self._noise is not None:
            self._noise.add_to(total[: self._screening.layout.size], task.noise_steps)
        difference = mean_of(total, len(good), task)
        return Combined(found, counted, difference, [1 / len(good)] * len(good))

    def _take_out(
        self, total: MaskedValues, references: Sequence[UpdateReference], unopened: Mapping[str, str]
    ) -> None:
        """Subtract updates from the sum again, and refuse them: that their seeds do not open shows only when all are read."""
        for reference, opener in (opening := self._screening.openers(references)):
            try:
                with opener() as stream:
                    update = read_masked(stream, reference.bytes, self._screening.layout.size, self._masked.task)
            # It was in the sum, so it can be neither kept nor quietly left in.
            except UpdateError as error:
                raise AggregationError(f"{reference.key}: was read, and cannot be read again ({error})") from error
            np.subtract(total, update.values, out=total)
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


def require_sums(strategy: Strategy) -> None:
    """Raise `ConfigurationError` if a strategy needs single updates: here all strategies are installed."""
    if why := why_not_by_sums(strategy):
        raise ConfigurationError(f"strategy {strategy.name!r}: with secure the cloud sees sums only, and it {why}")

"""The means of the groups of a masked round, judged and combined as if each were one update: `secure.groups` of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.arithmetic import norm_of, sum_of_squares
from fedgrass.cloud.aggregator.bounds import Bounds, Counted
from fedgrass.cloud.aggregator.screening import Accepted, Screening
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.stored_matrix import StoredMatrix
from fedgrass.errors import AggregationError, DeclinedError, UpdateError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.masks import Masked
from fedgrass.secure.quantize import examples_in, mean_of
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.strategies.base import RobustRule
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Grouped:
    """What was made of the groups.

    Attributes
    ----------
    shares
        By group, its share in the difference; a group that was refused has none.
    refused
        By group, why its mean is not plausible.
    difference
        The combined difference; None if too few devices are left.
    declined
        Why the strategy made nothing of enough of them.
    """

    shares: Mapping[int, float] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    difference: Floats | None = None
    declined: str = ""


@dataclass(frozen=True)
class GroupMeans:
    """Combines the groups' means: a strategy's robust rule over them, or their mean weighed by the examples in them.

    Parameters
    ----------
    bounds
        The strategy, and the settings' bounds, which hold for the groups' means.
    base
        The model that they are differences from.
    screening
        Of the round's updates: the fixed bound on norms is its validator's.
    scratch
        Folder for the means, 4 bytes for each parameter and group; the system's temporary one if None.
    """

    bounds: Bounds
    base: Bundle
    screening: Screening
    scratch: Path | None = None

    def of(self, totals: Mapping[int, Masked], sizes: Mapping[int, int], task: SecureTask, min_updates: int) -> Grouped:
        """Combine the groups' sums.

        Parameters
        ----------
        totals
            By group, the sum of its devices' integers, without masks.
        sizes
            By group, how many devices that is the sum of.
        task
            How values became integers.
        min_updates
            Devices in good groups without which there is no difference.

        Raises
        ------
        AggregationError
            If the good groups are too few for the strategy.
        """
        refused: dict[int, str] = {}
        with StoredMatrix(self.base, self.screening.layout, self.scratch) as spool:
            rows: dict[int, Accepted] = {}
            for group, total in sorted(totals.items()):
                try:
                    rows[group] = self._stored(group, total, sizes[group], task, spool)
                except (AggregationError, UpdateError) as error:  # noqa: PERF203 - there are a hundred at most
                    refused[group] = f"group {group}: {error}"
            odd = self.bounds.too_long(list(rows.values()))
            refused |= {group: f"group {group}: {odd[_key(group)]}" for group in rows if _key(group) in odd}
            kept = [group for group in rows if group not in refused]
            if sum(sizes[group] for group in kept) < max(1, min_updates):
                return Grouped(refused=refused)
            counted = self.bounds.counted([rows[group] for group in kept])
            spool.choose([(one.good.reference.key, one.facts, one.factor) for one in counted])
            difference = np.empty(self.screening.layout.size, np.float32)
            try:
                shares = self._combined(spool, counted, difference)
            except DeclinedError as error:
                return Grouped(refused=refused, declined=str(error))
        return Grouped(dict(zip(kept, shares, strict=True)), refused, difference)

    def _stored(self, group: int, total: Masked, size: int, task: SecureTask, spool: StoredMatrix) -> Accepted:
        mean, examples = mean_of(total, size, task), examples_in(total, task)
        # As an update's norm: six digits, since further ones depend on the processor.
        with np.errstate(all="ignore"):
            norm = float(f"{norm_of([sum_of_squares(mean)]):.6g}")
        self.screening.examiner.check_norm(norm)
        spool.write(_key(group), mean)
        return Accepted(
            UpdateReference(thing=_key(group), key=_key(group), bytes=0),
            UpdateMetadata(_key(group), examples, {}).measured(norm),
        )

    def _combined(self, spool: StoredMatrix, counted: list[Counted], difference: Floats) -> list[float]:
        if isinstance(self.bounds.method, RobustRule):
            return list(self.bounds.method.combination.combine(spool, difference))
        from fedgrass.strategies.arithmetic.products import weighted_mean

        # Where all devices count alike a group has as many "examples" as devices.
        weights = np.array([one.facts.num_examples for one in counted], np.float64)
        return weighted_mean(spool, weights / weights.sum(), difference)


def _key(group: int) -> str:
    # Of the same width, so that their order by name is that of their numbers.
    return f"group-{group:03d}"

"""How much each update counts in a weighted mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import ClassVar

from fedgrass.errors import UpdateError
from fedgrass.partial import share_done
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata, Weighting


@dataclass(frozen=True)
class ExampleWeighting:
    """In proportion to examples.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    https://arxiv.org/abs/1602.05629
    """

    is_mean: ClassVar[bool] = True

    def weight(self, facts: UpdateMetadata) -> float:
        """Return the examples."""
        return float(facts.num_examples)

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return one over all examples."""
        return 1 / sum(f.num_examples for f in facts)


@dataclass(frozen=True)
class EqualWeighting:
    """Every device the same, whatever it claims."""

    is_mean: ClassVar[bool] = True

    def weight(self, _facts: UpdateMetadata) -> float:
        """Return 1."""
        return 1.0

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return one over the number of updates."""
        return 1 / len(facts)


@dataclass(frozen=True)
class StalenessWeighting:
    """By examples, less the older the base: examples / (1 + age) ** exponent.

    All updates of a device together weigh no more than one fresh one, however many it held back for this round.

    What age takes away from an update goes to nobody, so that a round of old updates makes a small step: FedBuff, Nguyen et
    al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, https://arxiv.org/abs/2106.06639
    """

    exponent: float = 0.5
    is_mean: ClassVar[bool] = True

    def weight(self, facts: UpdateMetadata) -> float:
        """Return the discounted examples."""
        # `ages` are of all this device's updates in the round, so that holding many back gains nothing.
        together = sum(map(self._discount, facts.ages))
        return facts.num_examples * self._discount(facts.age) / max(1.0, together)

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return one over the examples of all devices, undiscounted."""
        # Each device's examples once, however many updates it has here.
        return 1 / sum(f.num_examples / max(1, len(f.ages)) for f in facts)

    def _discount(self, age: int) -> float:
        return 1 / math.pow(1 + age, self.exponent)


@dataclass(frozen=True)
class WorkWeighting:
    """Partial work: as ``inner`` has it, times the share of its training that a device has done.

    No claim can lengthen an update, and where all have done all it is ``inner``. It leans towards fast devices, which
    `FedNovaWeighting` does not.
    """

    inner: Weighting

    @property
    def is_mean(self) -> bool:
        """As ``inner``."""
        return self.inner.is_mean

    def weight(self, facts: UpdateMetadata) -> float:
        """Return the part of a whole training's weight."""
        return self.inner.weight(facts) * share_done(facts.metrics)

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return what makes the weights as many as those of whole trainings."""
        return self.inner.scale(facts) * sum(map(self.inner.weight, facts)) / sum(map(self.weight, facts))


@dataclass(frozen=True)
class FedNovaWeighting:
    """FedNova: each difference per local step, times the mean number of steps; devices that did more steps do not outvote others.

    Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
    https://arxiv.org/abs/2007.07481. Steps are the update's metric ``steps``; with ``momentum`` of the devices' optimizer they
    count as far as they move along a gradient that stays the same: the paper's ‖a‖₁, of a learning rate that does not change.
    """

    momentum: float = 0.0
    nesterov: bool = False
    is_mean: ClassVar[bool] = False

    def weight(self, facts: UpdateMetadata) -> float:
        """Return examples per step."""
        return facts.num_examples / self._moved(facts)

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return the mean number of steps, by examples, over all examples."""
        examples = sum(f.num_examples for f in facts)
        steps = sum(f.num_examples * self._moved(f) for f in facts) / examples
        return steps / examples

    def believed(self, facts: Sequence[UpdateMetadata], factor: float) -> Sequence[UpdateMetadata]:
        """Return them with their steps within ``factor`` of the median: few weigh much, and many lengthen the whole step."""
        return _near_the_median(facts, "steps", 1.0, factor)

    def _moved(self, facts: UpdateMetadata) -> float:
        steps, m = _metric(facts, "steps", least=1.0), self.momentum
        # Added up at once: the number of steps is a claim, and a loop would run as long as it says.
        moved = (steps - m * (1 - math.pow(m, steps)) / (1 - m)) / (1 - m)
        # Keras: v = m·v - rate·g; w += v, or with Nesterov w += m·v - rate·g.
        return m * moved + steps if self.nesterov else moved


@dataclass(frozen=True)
class StepLengthWeighting:
    """SCAFFOLD: each difference per unit of step length, so that what is summed is a gradient (times -1).

    A step length is the metric ``step_length``: the sum of a device's learning rates, as its optimizer applies them.
    """

    equal: bool = False
    is_mean: ClassVar[bool] = False

    def weight(self, facts: UpdateMetadata) -> float:
        """Return the device's part over its step length."""
        return self._part(facts) / _metric(facts, "step_length", least=_LEAST_LENGTH)

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return one over all parts."""
        return 1 / sum(map(self._part, facts))

    def mean_length(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return the mean step length of the updates that count."""
        lengths = (self._part(f) * _metric(f, "step_length", least=_LEAST_LENGTH) for f in facts)
        return self.scale(facts) * sum(lengths)

    def believed(self, facts: Sequence[UpdateMetadata], factor: float) -> Sequence[UpdateMetadata]:
        """Return them with their step lengths within ``factor`` of the median."""
        return _near_the_median(facts, "step_length", _LEAST_LENGTH, factor)

    def _part(self, facts: UpdateMetadata) -> float:
        return 1.0 if self.equal else float(facts.num_examples)


@dataclass(frozen=True)
class QFairWeighting:
    """q-FedAvg: devices on which the model does badly count more, by their loss to the power of q.

    Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, https://arxiv.org/abs/1905.10497 (algorithm 2),
    with 1 / ``learning_rate`` for the Lipschitz constant. The loss is the update's metric ``loss``, held within
    [1e-10, ``max_loss``]: it is a claim, and an attacker would have it high.
    """

    q: float = 1.0
    learning_rate: float = 0.1
    max_loss: float = 10.0
    is_mean: ClassVar[bool] = False

    def weight(self, facts: UpdateMetadata) -> float:
        """Return L·F^q."""
        return math.pow(self._loss(facts), self.q) / self.learning_rate

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return one over the sum of q·F^(q-1)·‖L·Δ‖² + L·F^q."""
        lipschitz = 1 / self.learning_rate
        total = 0.0
        for f in facts:
            loss, norm = self._loss(f), lipschitz * (f.norm or 0.0)
            total += self.q * loss ** (self.q - 1) * norm**2 + lipschitz * loss**self.q
        return 1 / total

    def believed(self, facts: Sequence[UpdateMetadata], factor: float) -> Sequence[UpdateMetadata]:
        """Return them with no loss that would weigh more than ``factor`` times the median's."""
        if self.q == 0:
            return facts
        losses = [self._loss(f) for f in facts]
        # Bounded in weight: F^q of a claim is at most `factor` times the median's.
        most = median_low(losses) * factor ** (1 / self.q)
        return [f.claiming("loss", min(one, most)) for f, one in zip(facts, losses, strict=True)]

    def _loss(self, facts: UpdateMetadata) -> float:
        return min(_metric(facts, "loss", least=1e-10), self.max_loss)


# A claimed length of 0 would weigh infinitely much.
_LEAST_LENGTH = 1e-12


def _near_the_median(
    facts: Sequence[UpdateMetadata], name: str, least: float, factor: float
) -> Sequence[UpdateMetadata]:
    """Return them with a metric, which is a claim, within ``factor`` of its median."""
    claims = [_metric(f, name, least=least) for f in facts]
    middle = median_low(claims)
    bounded = (min(max(one, middle / factor), middle * factor) for one in claims)
    return [f.claiming(name, one) for f, one in zip(facts, bounded, strict=True)]


def _metric(facts: UpdateMetadata, name: str, *, least: float) -> float:
    value = facts.metrics.get(name)
    if value is None:
        raise UpdateError(
            "missing_metric", f"the strategy weighs by the metric {name!r}, which the update does not have"
        )
    return max(value, least)

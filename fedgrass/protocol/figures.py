"""Devices' own figures, averaged so that none of the devices decides.

Loss, accuracy and the number of examples are each device's word. So no count weighs more than the checks allow, by itself and by
the median of all (`Checks`), and no loss is farther from the median loss than they allow; an accuracy cannot be outside 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from fedgrass.protocol.settings import Checks


@dataclass(frozen=True)
class Claim:
    """What one device says: its figures, and on how many examples (at least 1)."""

    examples: int
    metrics: Mapping[str, float]


FIGURES = ("loss", "accuracy")


def averaged(claims: Sequence[Claim], checks: Checks, prefix: str = "") -> tuple[dict[str, float], int]:
    """Average devices' losses and accuracies, weighted by their examples.

    A figure is averaged over the devices that have it, and left out if none has it.

    Parameters
    ----------
    claims
        What each device said of itself: its examples and its metrics.
    checks
        The fleet's bounds: how many examples one device counts at most, and by how much its loss may exceed the
        median.
    prefix
        Goes before a figure's name in the metrics: ``base_`` or ``validation_``.

    Returns
    -------
    tuple
        The means by name, and the number of examples that counted.
    """
    weights = _weights([claim.examples for claim in claims], checks)
    means: dict[str, float] = {}
    for name in FIGURES:
        pairs = zip(claims, weights, strict=True)
        given = [(claim.metrics[prefix + name], weight) for claim, weight in pairs if prefix + name in claim.metrics]
        if not given:
            continue
        values = [value for value, _ in given]
        if name == "loss":
            values = _near_the_median(values, checks.clip_loss_over_median)
        total = sum(weight for _, weight in given)
        means[name] = sum(value * (weight / total) for value, (_, weight) in zip(values, given, strict=True))
    return means, int(sum(weights))


def _weights(examples: Sequence[int], checks: Checks) -> list[float]:
    bound = float(checks.max_examples)
    if checks.max_examples_over_median and len(examples) > 1:
        bound = min(bound, max(1.0, checks.max_examples_over_median * median_low(examples)))
    return [min(count, bound) for count in examples]


def _near_the_median(losses: list[float], factor: float) -> list[float]:
    """Return the losses, none farther from the median than ``factor`` times the median of what they amount to."""
    if not factor or len(losses) < 2:
        return losses
    middle, reach = median_low(losses), factor * median_low(map(abs, losses))
    return [min(max(loss, middle - reach), middle + reach) for loss in losses]

"""Devices' own figures, averaged so that none of the devices decides.

All figures and the number of examples are claims of devices. So no count weighs more than the checks allow, by itself and by
the median of all (`Checks`), and no loss or other error is farther from the median one than they allow; an accuracy, and what
else is a share, cannot be outside 0 to 1. Figures that are not means over examples are made of devices' sums
(`fedgrass.protocol.sums`), where devices with most of the examples send them; else they are means of devices' own figures, and
that is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

from fedgrass.errors import MessageError
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.metrics import OTHERS, is_of_output, kind
from fedgrass.protocol.sums import Sums, added


@dataclass(frozen=True)
class Claim:
    """What one device says: its figures, and on how many examples (at least 1)."""

    examples: int
    metrics: Mapping[str, float]
    sums: Mapping[str, str | None] = field(default_factory=dict)
    """By the prefix of the figures' names."""


FIGURES = ("loss", "accuracy", *OTHERS)
_MEANS = ("loss", "accuracy", "mae")
"""Figures that are means over examples, so that means of devices' means are those of all examples."""
_ERRORS = ("loss", "mae", "rmse", "r2", "error_threshold")


@dataclass(frozen=True)
class Pooled:
    """Figures of several devices together, and on how many examples; ``averaged`` names those that are means of devices' own."""

    figures: dict[str, float]
    examples: int
    averaged: tuple[str, ...] = ()


def pooled(claims: Sequence[Claim], checks: Checks, prefix: str = "") -> Pooled:
    """Return the figures of all devices' examples in one place as far as their sums tell, and means of the devices' own else.

    Parameters
    ----------
    claims
        What devices say, by device.
    checks
        Bounds of what one of them counts for.
    prefix
        Of the figures' names.
    """
    means, examples = averaged(claims, checks, prefix)
    means.pop("auc_error", None)  # says nothing of a mean of devices' own
    summed = _of_sums(claims, checks, prefix)
    figures = means | summed
    return Pooled(figures, examples, tuple(name for name in figures if name not in summed and kind(name) not in _MEANS))


def _of_sums(claims: Sequence[Claim], checks: Checks, prefix: str) -> dict[str, float]:
    """Add the sums of the devices that agree on their shape, if these have more than half of the examples."""
    weights = _weights([claim.examples for claim in claims], checks)
    by_shape: dict[object, list[tuple[Sums, float]]] = {}
    for claim, weight in zip(claims, weights, strict=True):
        for sums in _readable(claim.sums.get(prefix)):
            by_shape.setdefault(sums.shape, []).append((sums, weight))
    # More than half by weight, so that a few devices cannot choose what is added.
    half = sum(weights) / 2
    found: dict[str, float] = {}
    # What most can add without their scores first, so that some devices' messages without them cost no more than the AUC.
    for parts in sorted(by_shape.values(), key=lambda parts: -sum(weight for _, weight in parts)):
        if sum(weight for _, weight in parts) > half:
            sums = added(
                [part for part, _ in parts], [weight for _, weight in parts], reach=checks.clip_loss_over_median
            )
            # What was found first stands: later shapes only add what it lacks.
            found = sums.figures() | found
    return found


def averaged(claims: Sequence[Claim], checks: Checks, prefix: str = "") -> tuple[dict[str, float], int]:
    """Average devices' own figures, weighted by their examples.

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
    for name in (*FIGURES, *_of_outputs(claims, prefix)):
        pairs = zip(claims, weights, strict=True)
        given = [(claim.metrics[prefix + name], weight) for claim, weight in pairs if prefix + name in claim.metrics]
        if not given:
            continue
        values = [value for value, _ in given]
        # Shares are bounded by nature; an error is not, and one device's 1e30 would be the mean.
        if kind(name) in _ERRORS:
            values = _near_the_median(values, checks.clip_loss_over_median)
        total = sum(weight for _, weight in given)
        means[name] = sum(value * (weight / total) for value, (_, weight) in zip(values, given, strict=True))
    return means, int(sum(weights))


def _of_outputs(claims: Sequence[Claim], prefix: str) -> list[str]:
    """Return the names of several outputs' figures that at least half of the devices have: nobody else invents any."""
    counts = Counter(name.removeprefix(prefix) for claim in claims for name in claim.metrics if name.startswith(prefix))
    return sorted(name for name, count in counts.items() if 2 * count >= len(claims) and is_of_output(name))


def _readable(text: str | None) -> list[Sums]:
    """Return a device's sums, and the same without scores; nothing if it sent none, or they cannot be read."""
    if not text:
        return []
    try:
        sums = Sums.decode(text)
    except MessageError:
        return []
    return [sums, sums.without_scores()] if sums.scores else [sums]


def _weights(examples: Sequence[int], checks: Checks) -> list[float]:
    bound = float(checks.max_examples)
    if checks.max_examples_over_median and len(examples) > 1:
        # At least 1, or a fleet whose median is 0 would have no weights.
        bound = min(bound, max(1.0, checks.max_examples_over_median * median_low(examples)))
    return [min(count, bound) for count in examples]


def _near_the_median(losses: list[float], factor: float) -> list[float]:
    """Return the losses, none farther from the median than ``factor`` times the median of what they amount to."""
    if not factor or len(losses) < 2:
        return losses
    # The distance is scaled by the median size, since losses such as a likelihood may lie around 0 or below it.
    middle, reach = median_low(losses), factor * median_low(map(abs, losses))
    return [min(max(loss, middle - reach), middle + reach) for loss in losses]

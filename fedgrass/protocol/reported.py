"""What devices say of their own training, over a round: the curve of a fleet that has no evaluation set.

Each figure is a mean by examples over the devices that report it. They are what devices claim, so nothing is decided by them.
Their names are the devices' too, and each name is a metric in CloudWatch that is paid for: only those that more than half of a
round's updates have count, so that no single device can make one up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

# Names of a round: CloudWatch bills each one as a metric.
_MOST = 16
_ABOUT_TRAINING = ("steps", "planned_steps", "step_length")
"""What strategies weigh by, and no figure of a model."""


def reported(updates: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Average what updates report.

    Parameters
    ----------
    updates
        Of each its number of examples, and its metrics.

    Returns
    -------
    dict
        Means by name, of at most 16 names in their order.

    Examples
    --------
    >>> reported([(30, {"loss": 1.0, "mine": 5.0}), (10, {"loss": 2.0}), (10, {"loss": 2.0})])
    {'loss': 1.4}
    """
    given = list(updates)
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for examples, metrics in given:
        for name, value in metrics.items():
            # One device's NaN would make the fleet's mean one.
            if name not in _ABOUT_TRAINING and examples > 0 and math.isfinite(value):
                found[name].append((examples, value))
    common = sorted(name for name, pairs in found.items() if 2 * len(pairs) > len(given))[:_MOST]
    means = {name: _mean(found[name]) for name in common}
    return {name: value for name, value in means.items() if math.isfinite(value)}


def _mean(pairs: list[tuple[int, float]]) -> float:
    total = sum(examples for examples, _ in pairs)
    # Divided first: the product of a large count and a large value could overflow.
    return sum(examples / total * value for examples, value in pairs)

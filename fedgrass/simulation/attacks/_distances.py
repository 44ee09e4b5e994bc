"""Attacks that go as far from the honest mean as honest updates go from one another: what they share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedgrass.simulation.attacks import Craft, Doubles, Seen


def as_far_as_others(total: bool, direction: Callable[[Doubles], Doubles]) -> Craft:
    """Away from the honest mean, as far as the honest updates that are farthest apart.

    Min-max: no farther from any of them than they are from each other; min-sum: in the sum of squares. Shejwalkar and Houmansadr,
    "Manipulating the Byzantine", NDSS 2021.
    """

    def craft(seen: Seen) -> Doubles:
        mean, away = seen.honest.mean(axis=0), direction(seen.honest)
        # ‖a - b‖² from scalar products: all pairs without an array of [n, n, size].
        products = seen.honest @ seen.honest.T
        squares = products.diagonal()
        apart = squares[:, None] + squares[None, :] - 2 * products
        allowed = apart.sum(axis=1).max() if total else apart.max()

        def passes(step: float) -> bool:
            distances = np.square(mean + step * away - seen.honest).sum(axis=1)
            return bool((distances.sum() if total else distances.max()) <= allowed)

        low, high = 0.0, 1.0
        # Doubled until it is too far, then halved in between: the distance grows with the step.
        while high < 1e9 and passes(high):
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if passes(middle) else (low, middle)
        return np.asarray(mean + seen.factor * low * away)

    return craft


def against_the_mean(honest: Doubles) -> Doubles:
    mean = honest.mean(axis=0)
    # 1e-30 keeps a mean of zero from dividing by zero.
    return np.asarray(-mean / max(float(np.linalg.norm(mean)), 1e-30))


def against_the_deviation(honest: Doubles) -> Doubles:
    return np.asarray(-honest.std(axis=0))


def against_the_sign(honest: Doubles) -> Doubles:
    return np.asarray(-np.sign(honest.mean(axis=0)))

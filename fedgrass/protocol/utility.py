"""Devices of high loss take part first: power of choice by the losses that devices reported last.

A round looks at some times as many devices as it asks, the candidates, chosen by lot alone; of these it asks the ones whose
reported loss is highest, and some by lot whatever their loss. Cho, Wang, Joshi, *Client Selection in Federated Learning*,
2020, https://arxiv.org/abs/2010.01243 (their rpow-d; unknown losses are explored by lot here, and do not come first).

Cloud and device keep the same: the loss of the device's last update to a round that chooses so, and the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.protocol.message import Finite, Metrics
from fedgrass.protocol.names import RoundNumber, Sha256

LOSS = "loss"
"""The figure of an update that counts: the mean over the last epoch of the device's training."""


class ToldLoss(BaseModel):
    """A loss that a device reported, with the round and the training graph that it is of."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    loss: Finite
    round: RoundNumber
    graph_sha256: Sha256


class LastLosses(BaseModel):
    """The last two losses that a device reported, the newest first: a round is answered while its own must not choose yet."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    told: tuple[ToldLoss, ...] = ()

    def and_then(self, told: ToldLoss) -> LastLosses:
        """Return these with one more; one of an older round than the newest changes nothing."""
        if self.told and told.round <= self.told[0].round:
            return self
        return LastLosses(told=(told, *self.told[:1]))

    def before(self, number: int, since: int, graph_sha256: str) -> float | None:
        """Return the loss that counts for a round, of that graph and not of a round before ``since``; None if it is unknown."""
        newest = next((one for one in self.told if one.round < number), None)
        if newest is None or newest.round < since or newest.graph_sha256 != graph_sha256:
            return None
        return newest.loss


def told_loss(metrics: Metrics, number: int, graph_sha256: str) -> ToldLoss | None:
    """Return what an update's figures say of the loss; None if they have none."""
    # A device's figures may be anything: one that is none is as good as unknown.
    with suppress(KeyError, ValidationError):
        return ToldLoss(loss=metrics[LOSS], round=number, graph_sha256=graph_sha256)
    return None


class Choice(NamedTuple):
    """A piece of the circle of lots that begins at 0: those with lots below ``explore`` are in, others by their loss."""

    fraction: float
    explore: float
    loss: float
    devices: int


def choose(
    lots: Sequence[float], losses: Sequence[float | None], count: int, *, candidates: float, explore: float
) -> Choice:
    """Choose about so many devices: some by lot alone, the others as those of the candidates whose loss is highest.

    Where too few candidates have a known loss, more are explored, so that never fewer are asked than wanted. Where several have
    the loss that decides, all of them are in.

    Parameters
    ----------
    lots
        Of the devices that could take part, in [0, 1).
    losses
        What they reported last, in the same order; None: unknown.
    count
        How many to ask, 1 at least; all, if there are no more.
    candidates
        Devices to look at for each that is asked, 1 at least.
    explore
        Share of those asked that lot alone decides on.

    Examples
    --------
    >>> choose([0.1, 0.4, 0.6, 0.8], [2.0, 0.5, 3.0, 9.0], 2, candidates=1.5, explore=0.0)
    Choice(fraction=0.7, explore=0.0, loss=2.0, devices=2)
    """
    order = sorted(range(len(lots)), key=lots.__getitem__)
    count = min(count, len(order))
    pool = order[: max(count, round(candidates * count))]
    explored = _explored([losses[place] is not None for place in pool], count, round(explore * count))
    rest = sorted((loss for place in pool[explored:] if (loss := losses[place]) is not None), reverse=True)
    # With all by lot, candidates that are not asked need not look.
    if explored == count:
        pool, rest = pool[:count], []
    least = rest[count - explored - 1] if rest else 0.0
    asked = explored + sum(loss >= least for loss in rest)
    return Choice(_end(lots, order, len(pool)), _end(lots, order, explored), least, asked)


def _explored(known: list[bool], count: int, least: int) -> int:
    """Return how many of the first candidates to explore: ``least``, or as few more as give the count with those known."""
    others = sum(known[least:])
    while least < count and others < count - least:
        others -= known[least]
        least += 1
    return least


def _end(lots: Sequence[float], order: list[int], devices: int) -> float:
    """Return where a piece from 0 with the first so many lots ends: half-way to the next, so that no rounding moves a device."""
    if devices in (0, len(order)):
        return float(devices > 0)
    return (lots[order[devices - 1]] + lots[order[devices]]) / 2

"""Partial work: a device that is not done when its round's time is up sends what it has, and says how much of the training it is.

Shared by the participants, who end their training, and by the aggregator, who judges what they say of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgrass.engines.base import Dataset, Hooks
    from fedgrass.protocol.messages import Announcement, FitTask

STEPS, PLANNED = "steps", "planned_steps"
"""Metrics of an update: the optimizer's steps that its difference is made of, and, if those are not all, how many all are."""


@dataclass(frozen=True)
class StepPlan:
    """How many steps a round's training may have: ``epochs`` times the batches of a device's examples."""

    epochs: int
    batch_size: int

    def steps(self, examples: int) -> int:
        """Return the steps of a whole training on so many examples."""
        return self.epochs * math.ceil(examples / self.batch_size)

    def problem(self, examples: int, metrics: Mapping[str, float]) -> str:
        """Say what is wrong with an update's claim of partial work; empty if nothing is, or it claims none.

        Parameters
        ----------
        examples
            That the update says it was trained on.
        metrics
            That it carries.
        """
        planned, steps, most = metrics.get(PLANNED), metrics.get(STEPS), self.steps(examples)
        if planned is None:
            return ""
        if steps is None or not steps.is_integer() or not planned.is_integer() or not 1 <= steps <= planned <= most:
            return (
                f"it says {_number(steps)} of {_number(planned)} steps; expected whole numbers, from 1 up to the {most} that "
                f"{self.epochs} epochs of {examples} examples have"
            )
        return ""


def share_done(metrics: Mapping[str, float]) -> float:
    """Return the share of its training that an update has, in (0, 1].

    Examples
    --------
    >>> share_done({"steps": 30.0, "planned_steps": 40.0}), share_done({"steps": 40.0})
    (0.75, 1.0)
    """
    planned = metrics.get(PLANNED, 0.0)
    return min(1.0, max(1.0, metrics.get(STEPS, planned)) / planned) if planned > 0 else 1.0


def lasts(announcement: Announcement) -> float | None:
    """Return the seconds from a round's opening in which its devices may train; None: to the end.

    Where noise or masks hide an update, its steps go untold, and so it must have them all.
    """
    margin, update = announcement.fit.partial_margin_seconds, announcement.update
    if not margin or update.hides_figures or announcement.secure is not None:
        return None
    return (announcement.deadline - announcement.opened_at).total_seconds() - margin


@dataclass(frozen=True)
class Ending:
    """When a training is over before its end.

    Parameters
    ----------
    time_is_up
        Whether it is, by any clock.
    least_steps
        Steps that the participant's owner sets as the least, whatever the clock says.
    batches
        Of an epoch.
    """

    time_is_up: Callable[[], bool]
    least_steps: int
    batches: int

    def after(self, epoch: int, step: int) -> bool:
        """Whether the training is over after so many whole epochs and ``step`` batches of the next."""
        return epoch * self.batches + step >= self.least_steps and self.time_is_up()

    def over(self, hooks: Hooks) -> Hooks:
        """Return the hooks, with one that ends the training."""
        from fedgrass.engines.base import EndTraining  # NumPy, which the trainer's component has not

        def after_batch(epoch: int, step: int) -> None:
            hooks.after_batch(epoch, step)
            if self.after(epoch, step):
                raise EndTraining

        return replace(hooks, after_batch=after_batch)


def ending_of(
    examples: Dataset, fit: FitTask, batch_size: int, time_is_up: Callable[[], bool], *, least: tuple[int, int]
) -> Ending:
    """Return when a training may end early: not before it has had what its owner sets as the least.

    Parameters
    ----------
    examples
        All that the participant would train on.
    fit
        What is asked.
    batch_size
        Of the model.
    time_is_up
        Whether the round's time is up.
    least
        Examples and steps (`fedgrass.floors.Floors`): the update of a part of an epoch shows that part's examples only.
    """
    used = len(examples) if fit.max_examples is None else min(fit.max_examples, len(examples))
    batches = math.ceil(used / batch_size)
    # With weights by class nobody knows which of an epoch's examples count: all of them do.
    for_examples = math.ceil(least[0] / batch_size) if fit.class_weight is None else batches
    return Ending(time_is_up, max(1, least[1], for_examples), batches)


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:g}"

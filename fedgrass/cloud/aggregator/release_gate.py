"""Whether a new model is good enough to be released."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedgrass.protocol.metrics import METRICS, Metric, is_better, kind, slack, worse_by
from fedgrass.protocol.release_settings import Gate
from fedgrass.protocol.report import Best, Evaluation, Hold, Outcome
from fedgrass.protocol.settings import FleetSettings

_LEAST_LOSS = 0.1
"""Of a classifier: a rise is measured against this at least, because from 0.01 to 0.02 nobody sees a difference."""


@dataclass(frozen=True)
class Verdict:
    """The gate's verdict, with its reason either way. ``hold`` is the reason's code, if the gate itself holds the model."""

    passed: bool
    reason: str
    hold: Hold | None = None


def judge(
    base: Evaluation | None,
    new: Evaluation | None,
    *,
    tolerance: float,
    loss_tolerance: float = math.inf,
    below_best: float = math.inf,
    best: Best | None = None,
    metric: Metric | None = None,
) -> Verdict:
    """Compare the new model with its base, and with the best that the fleet had, on the same examples.

    A classifier's accuracy may fall by at most ``tolerance``, and its loss rise by at most ``loss_tolerance`` of
    itself. Another
    model's loss may rise by at most ``tolerance`` of itself. Falls that each are small add up: so what was ever
    released is
    remembered, and the accuracy may lie at most ``below_best`` under it; a loss is held against the lowest one
    likewise. Without
    an evaluation set every model passes: each device's own admission is then the only check.

    With a ``metric``, that figure is held against the base's and the best so far instead of the accuracy: a share or R² by
    points, an error by a fraction of itself. The loss may rise by at most ``loss_tolerance`` of itself then too.

    Parameters
    ----------
    base, new
        Figures of the base and of the new model on the same examples; None if nobody evaluated it.
    tolerance
        How far accuracy may fall, in fractions of 1; for a model without accuracy, how far its loss may rise, in
        fractions of itself.
    loss_tolerance
        How far a classifier's loss may rise, in fractions of itself.
    below_best
        How far under the fleet's best accuracy a model may lie, in fractions of 1.
    best
        The best figures so far on the same examples; None if nothing is known of them.
    metric
        The figure to judge by; None: accuracy, or loss where there is none.

    Returns
    -------
    Verdict
        Whether the model passed, and why.
    """
    if base is None or new is None:
        return Verdict(True, "no evaluation set for this model: the gate did not look")
    # Accuracy and loss have fields of their own in the figures; the other metrics lie in a dictionary.
    if metric not in (None, "accuracy", "loss"):
        return _judged_by_metric(metric, base, new, tolerance, loss_tolerance, below_best, best)
    if metric == "loss" or (metric is None and (new.accuracy is None or base.accuracy is None)):
        return _judged_by_loss(base, new, tolerance, below_best, best)
    # Asked for accuracy by name, of a model that has none: held with a reason, not judged by something else.
    if new.accuracy is None or base.accuracy is None:
        return _without("accuracy", new)
    figures = f"accuracy {new.accuracy:.4f} after {base.accuracy:.4f}, tolerance {tolerance:g}"
    # Against the base first, then against the best: the nearer reason is the one to read.
    if new.accuracy < base.accuracy - tolerance - _ROUNDING:
        return Verdict(False, f"{figures}: the base stays", "accuracy")
    if new.loss > (most := _most(base.loss, loss_tolerance)):
        return Verdict(False, f"loss {new.loss:.4f} after {base.loss:.4f}, {most:.4f} at most: the base stays", "loss")
    if best is None:
        return Verdict(True, figures)
    if best.accuracy is not None and new.accuracy < best.accuracy - below_best - _ROUNDING:
        return Verdict(
            False,
            f"accuracy {new.accuracy:.4f}, and the fleet has had {best.accuracy:.4f}; at most {below_best:g} below that: "
            "the base stays",
            "best_accuracy",
        )
    if new.loss > (most := _most(best.loss, loss_tolerance)):
        return Verdict(
            False,
            f"loss {new.loss:.4f}, and the fleet has had {best.loss:.4f}; {most:.4f} at most: the base stays",
            "best_loss",
        )
    return Verdict(True, figures)


def partly_local() -> Verdict:
    """Return the verdict on a model of which devices keep parameters for themselves, where no device evaluates it.

    With the values that they had at export it is no device's model: its figures stand in the report, and hold nothing.
    """
    return Verdict(True, "devices keep parameters of their own: only they can judge the model (gate.devices_seconds)")


def judge_by(gate: Gate, base: Evaluation | None, new: Evaluation | None, best: Best | None = None) -> Verdict:
    """Judge a model by a fleet's settings; see `judge`.

    Parameters
    ----------
    gate
        The settings.
    base, new
        Figures of base and model, or None.
    best
        The best figures so far, or None.

    Returns
    -------
    Verdict
        Whether the model passed, and why.
    """
    return judge(
        base,
        new,
        tolerance=gate.tolerance,
        loss_tolerance=gate.loss_tolerance,
        below_best=gate.below_best,
        best=best,
        metric=gate.metric,
    )


def raised(best: Best | None, figures: Evaluation, evaluation_set: str) -> Best:
    """Update the best figures so far with those of a model.

    Parameters
    ----------
    best
        The best so far; None at the beginning.
    figures
        The model's.
    evaluation_set
        Digest of the examples that they are of, or the word for the devices' own. Figures on another set are
        forgotten.

    Returns
    -------
    Best
        Lowest loss and highest accuracy.
    """
    # Figures on other examples say nothing about these: the mark starts from this model.
    if best is None or best.evaluation_set != evaluation_set:
        return Best(
            evaluation_set=evaluation_set, loss=figures.loss, accuracy=figures.accuracy, metrics=_watchable(figures)
        )
    # Lowest loss and highest accuracy may be of two models: each figure has a mark of its own.
    known = [accuracy for accuracy in (best.accuracy, figures.accuracy) if accuracy is not None]
    metrics = dict(best.metrics)
    for name, value in _watchable(figures).items():
        if name not in metrics or is_better(name, value, metrics[name]):
            metrics[name] = value
    return Best(
        evaluation_set=evaluation_set,
        loss=min(best.loss, figures.loss),
        accuracy=max(known) if known else None,
        metrics=metrics,
    )


def _watchable(figures: Evaluation) -> dict[str, float]:
    return {name: value for name, value in figures.metrics.items() if kind(name) in METRICS}


def decided(
    settings: FleetSettings, number: int, verdict: Verdict, base: Evaluation | None, new: Evaluation | None
) -> tuple[Outcome, str]:
    """Decide what becomes of a round's model, by the gate's verdict and the fleet's settings.

    Parameters
    ----------
    settings
        The fleet's: whether, when and how often to release.
    number
        The round.
    verdict
        The gate's.
    base, new
        Figures of base and model, or None.

    Returns
    -------
    tuple
        The outcome, and why, in words.
    """
    if not verdict.passed:
        return "held", verdict.reason
    # In this order the report names the strongest reason: the gate, then the settings, then the calendar, then the
    # improvement.
    if settings.release == "never":
        return "held", f"the fleet's settings release no model; {verdict.reason}"
    every = settings.release_every
    # "advanced": the model is the next round's base, and devices keep what they have until a release is due.
    if number % every:
        return "advanced", f"{verdict.reason}; the next release is round {number + every - number % every}'s"
    if settings.release == "on_improvement" and not (better := improved(base, new, settings.gate.metric)).passed:
        return "held", better.reason
    return "released", verdict.reason


def improved(base: Evaluation | None, new: Evaluation | None, metric: Metric | None = None) -> Verdict:
    """Say whether the new model is better than its base by a metric: else more accurate, or else of smaller loss.

    Without figures it is not.

    Parameters
    ----------
    base
        The base's figures.
    new
        The new model's.
    metric
        What decides; None takes accuracy, or else loss.
    """
    if base is None or new is None:
        return Verdict(False, "no evaluation set: whether the model is better is not known, and the base stays")
    # None means what the gate judges by, too: accuracy where both have one.
    name = metric or ("loss" if new.accuracy is None or base.accuracy is None else "accuracy")
    before, after = base.value(name), new.value(name)
    if before is None or after is None:
        return _without(name, new)
    return Verdict(
        is_better(name, after, before), f"{name} {after:.4f} after {before:.4f}: released on improvement only"
    )


_ROUNDING = 1e-12  # 0.9 - 0.02 is not quite 0.88 in binary


def _judged_by_metric(
    metric: Metric,
    base: Evaluation,
    new: Evaluation,
    tolerance: float,
    loss_tolerance: float,
    below_best: float,
    best: Best | None,
) -> Verdict:
    before, after = base.value(metric), new.value(metric)
    if after is None:
        return _without(metric, new)
    if before is None:
        return Verdict(True, f"{metric} {after:.4f}; the base has none, so any model with one is better")
    figures = f"{metric} {after:.4f} after {before:.4f}, tolerance {tolerance:g}"
    if worse_by(metric, after, before) > slack(metric, tolerance, before) + _ROUNDING:
        return Verdict(False, f"{figures}: the base stays", "metric")
    if new.loss > (most := _most(base.loss, loss_tolerance)):
        return Verdict(False, f"loss {new.loss:.4f} after {base.loss:.4f}, {most:.4f} at most: the base stays", "loss")
    known = None if best is None else best.metrics.get(metric)
    if known is not None and worse_by(metric, after, known) > slack(metric, below_best, known) + _ROUNDING:
        return Verdict(
            False,
            f"{metric} {after:.4f}, and the fleet has had {known:.4f}; it may be {slack(metric, below_best, known):.4f} worse "
            "than that: the base stays",
            "best_metric",
        )
    return Verdict(True, figures)


def _without(metric: str, new: Evaluation) -> Verdict:
    has = ", ".join(["loss", *(["accuracy"] if new.accuracy is not None else []), *new.metrics])
    return Verdict(
        False, f"gate.metric {metric}: the evaluation has no such figure, it has {has}: the base stays", "metric"
    )


def _judged_by_loss(
    base: Evaluation, new: Evaluation, tolerance: float, below_best: float, best: Best | None
) -> Verdict:
    figures = f"loss {new.loss:.4f} after {base.loss:.4f}, tolerance {tolerance:g}"
    # abs: losses such as a negative log-likelihood of a density can be below zero.
    if new.loss > base.loss + tolerance * abs(base.loss):
        return Verdict(False, f"{figures}: the base stays", "loss")
    if best is not None and new.loss > best.loss + below_best * abs(best.loss):
        return Verdict(
            False,
            f"loss {new.loss:.4f}, and the fleet has had {best.loss:.4f}; at most {below_best:g} of it more: the base stays",
            "best_loss",
        )
    return Verdict(True, figures)


def _most(loss: float, tolerance: float) -> float:
    return loss + tolerance * max(abs(loss), _LEAST_LOSS)

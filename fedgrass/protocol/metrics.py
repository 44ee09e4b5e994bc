"""The figures by which a model is judged: their names, which way each is better, and what values can be.

Of a model with several outputs each output has its own, called ``<output>_accuracy`` and so on; ``loss`` is the weighted sum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field

_Watched = Literal["loss", "accuracy", "precision", "recall", "f1", "f1_macro", "auc", "mae", "rmse", "r2"]

METRICS: tuple[str, ...] = get_args(_Watched)
"""Figures that a gate may watch."""

LONGEST_OUTPUT = 19
"""Characters of an output's name, with which its figures' names begin."""

PREFIXES = ("validation_", "base_", "active_", "personal_")
"""What figures' names begin with that are of another model or of other examples; no output's name begins so."""

Metric = _Watched | Annotated[str, Field(pattern=rf"^\w{{1,{LONGEST_OUTPUT}}}_({'|'.join(METRICS)})$")]
"""A figure that a gate may watch, perhaps one output's."""

SHARES = ("accuracy", "precision", "recall", "f1", "f1_macro", "auc")
"""Figures from 0 to 1, of which more is better: a tolerance of them is in points."""

FALLING = ("loss", "mae", "rmse")
"""Figures of which less is better: a tolerance of them is a share of the figure."""

OTHERS = ("mae", "rmse", "r2", "precision", "recall", "f1", "f1_macro", "auc", "auc_error", "error_threshold")
"""Figures beside loss and accuracy, in the order in which they are shown."""

# Beyond it squares and sums overflow; no honest figure comes near.
_LARGEST = 1e30

_LABELS = {
    "f1": "F1",
    "f1_macro": "F1, macro",
    "auc": "AUC",
    "auc_error": "AUC, at most off by",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
}


# The longest first, should one name ever end in another.
_KNOWN = sorted({*METRICS, *OTHERS}, key=len, reverse=True)


@functools.lru_cache(maxsize=256)
def kind(name: str) -> str:
    """Return what a figure measures, whatever output it is of.

    Examples
    --------
    >>> kind("digit_f1_macro"), kind("f1_macro"), kind("seconds")
    ('f1_macro', 'f1_macro', 'seconds')
    """
    return next((known for known in _KNOWN if name == known or name.endswith(f"_{known}")), name)


def is_of_output(name: str) -> bool:
    """Whether a figure is one of several outputs'."""
    return name != kind(name) and not name.startswith(PREFIXES)


def label(name: str) -> str:
    """Return a figure's name as people read it."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def falls(metric: str) -> bool:
    """Whether less of it is better."""
    return kind(metric) in FALLING


def is_better(metric: str, new: float, old: float) -> bool:
    """Whether ``new`` is the better value of a metric.

    Parameters
    ----------
    metric
        The metric's name.
    new, old
        Its values.
    """
    return new < old if falls(metric) else new > old


def slack(metric: str, tolerance: float, of: float) -> float:
    """Return how far a figure may be worse than ``of``: points of a share or of R², else the share ``tolerance`` of it.

    Parameters
    ----------
    metric
        The metric's name.
    tolerance
        Of the settings.
    of
        The figure to compare with.
    """
    # Errors have different scales, so a tolerance in points would mean something else for each model.
    return tolerance * abs(of) if falls(metric) else tolerance


def worse_by(metric: str, new: float, old: float) -> float:
    """Return how much worse ``new`` is than ``old``, in the metric's own units; negative if it is better.

    Parameters
    ----------
    metric
        The metric's name.
    new, old
        Its values.
    """
    return new - old if falls(metric) else old - new


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, of any output, and is read in percent."""
    return kind(metric) in SHARES


def others(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the known figures beside loss and accuracy, several outputs' last, without those that are not finite."""
    known = [name for name in OTHERS if name in metrics] + [name for name in metrics if is_of_output(name)]
    return {name: metrics[name] for name in known if math.isfinite(metrics[name])}


def impossible(metrics: Mapping[str, float]) -> str | None:
    """Return the name of a figure whose value cannot be; None if all can."""
    for name, value in metrics.items():
        what = kind(name)
        if what in SHARES or what == "auc_error":
            low, high = 0.0, 1.0
        elif what == "r2":
            low, high = -_LARGEST, 1.0
        elif what in ("mae", "rmse", "error_threshold"):
            low, high = 0.0, _LARGEST
        elif what == "loss":
            low, high = -_LARGEST, _LARGEST
        else:
            continue
        # NaN compares as false, and is impossible, too.
        if not low <= value <= high:
            return name
    return None

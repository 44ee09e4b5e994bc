"""The figures by which a model is judged: their names, which way each is better, and what values can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

Metric = Literal["loss", "accuracy", "precision", "recall", "f1", "f1_macro", "auc", "mae", "rmse", "r2"]
"""Figures that a gate may watch."""

METRICS: tuple[Metric, ...] = get_args(Metric)

SHARES = ("accuracy", "precision", "recall", "f1", "f1_macro", "auc")
"""Figures from 0 to 1, of which more is better: a tolerance of them is in points."""

FALLING = ("loss", "mae", "rmse")
"""Figures of which less is better: a tolerance of them is a share of the figure."""

OTHERS = ("mae", "rmse", "r2", "precision", "recall", "f1", "f1_macro", "auc", "auc_error", "error_threshold")
"""Figures beside loss and accuracy, in the order in which they are shown."""

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


def label(name: str) -> str:
    """Return a figure's name as people read it."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def falls(metric: str) -> bool:
    """Whether less of it is better."""
    return metric in FALLING


def is_better(metric: str, new: float, old: float) -> bool:
    """Whether ``new`` is the better value of a metric."""
    return new < old if falls(metric) else new > old


def slack(metric: str, tolerance: float, of: float) -> float:
    """Return how far a figure may be worse than ``of``: points of a share or of R², else the share ``tolerance`` of it."""
    return tolerance * abs(of) if falls(metric) else tolerance


def worse_by(metric: str, new: float, old: float) -> float:
    """Return how much worse ``new`` is than ``old``, in the metric's own units; negative if it is better."""
    return new - old if falls(metric) else old - new


def others(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the known figures beside loss and accuracy, without those that are not finite."""
    return {name: metrics[name] for name in OTHERS if name in metrics and math.isfinite(metrics[name])}


def impossible(metrics: Mapping[str, float]) -> str | None:
    """Return the name of a figure whose value cannot be; None if all can."""
    for name, value in metrics.items():
        if name in SHARES or name == "auc_error":
            low, high = 0.0, 1.0
        elif name == "r2":
            low, high = -_LARGEST, 1.0
        elif name in ("mae", "rmse", "error_threshold"):
            low, high = 0.0, _LARGEST
        elif name == "loss":
            low, high = -_LARGEST, _LARGEST
        else:
            continue
        if not low <= value <= high:
            return name
    return None

"""The fleet's threshold of an anomaly detector, which travels with a model's version: ``score.json`` beside its other files.

It is the quantile that the bundle names, of the scores that the version's own evaluation found: on the operator's evaluation set,
or, by histograms that add up, on what all devices keep back. It is no part of the bundle's digests: a model is evaluated first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

_FIGURE = "error_threshold"


def fleet_score(quantile: float | None, figures: Mapping[str, float]) -> bytes | None:
    """Return the file's content; None of a model that is no anomaly detector, or that was not evaluated.

    Parameters
    ----------
    quantile
        As the bundle names it.
    figures
        Of the evaluation.

    Examples
    --------
    >>> json.loads(fleet_score(0.99, {"error_threshold": 0.25}) or "")["threshold"]
    0.25
    >>> fleet_score(None, {}) is None, fleet_score(0.99, {}) is None
    (True, True)
    """
    if quantile is None or _FIGURE not in figures:
        return None
    found = {"score": "mean_squared_error", "quantile": quantile, "threshold": figures[_FIGURE], "origin": "fleet"}
    return (json.dumps(found) + "\n").encode()

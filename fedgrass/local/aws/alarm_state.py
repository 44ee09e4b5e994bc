"""What state an alarm of CloudWatch has, by the newest data points of its metric.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
"""

from __future__ import annotations

from collections.abc import Sequence

OK = "OK"
ALARM = "ALARM"
INSUFFICIENT_DATA = "INSUFFICIENT_DATA"

EXTRA_PERIODS = 2
"""Looked at beyond the evaluation periods, for some may lack data; the page's examples have two, and it gives no rule."""


def judge(points: Sequence[bool | None], *, periods: int, to_alarm: int, missing: str, before: str) -> str:
    """Return the state that follows from data points.

    Parameters
    ----------
    points
        Whether each is beyond the threshold, None where there is none; the oldest first, `EXTRA_PERIODS` more than
        ``periods``.
    periods, to_alarm
        How many count, and how many of those must be beyond the threshold.
    missing
        What stands for a data point that is not there: ``breaching``, ``notBreaching``, ``ignore`` or ``missing``.
    before
        The state so far.
    """
    real = [point for point in points if point is not None]
    # As many real ones as are there, from farther back if need be; the rest are made up.
    counted = real[-periods:]
    made_up = periods - len(counted)
    if not real:
        return {"breaching": ALARM, "notBreaching": OK, "ignore": before}.get(missing, INSUFFICIENT_DATA)
    beyond = sum(counted) + made_up * (missing == "breaching")
    if beyond >= to_alarm:
        return ALARM
    if missing in {"missing", "ignore"} and all(counted) and _oldest(points) >= to_alarm:
        # Nothing speaks against it, and it has lasted long enough ("premature alarm state").
        return ALARM if missing == "missing" else before
    return OK


def _oldest(points: Sequence[bool | None]) -> int:
    """Return how many periods ago the oldest data point was, 1 for the newest."""
    return max(age for age, point in enumerate(reversed(points), start=1) if point is not None)

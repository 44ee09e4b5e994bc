"""A row's time from its cell: ISO 8601, or seconds since 1970 and their thousandths."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timezone

_FRACTION = re.compile(r"[.,](\d+)")
# Nanoseconds, microseconds, milliseconds: 1e11 seconds are the year 5138.
_SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


def seconds_of(value: object) -> float:
    """Return seconds since 1970; NaN if it is not a time.

    A time without a zone is in UTC. A number beyond the year 5138 counts milliseconds, micro- or nanoseconds.
    """
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc).timestamp()
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return _of_text(text)
    if not math.isfinite(number):
        return math.nan
    return next((number / scale for least, scale in _SCALES if abs(number) >= least), number)


def _of_text(text: str) -> float:
    text = text[:-1] + "+00:00" if text[-1:] in "zZ" and text else text.removesuffix(" UTC")
    # Python 3.10 does not read `+0200`, only `+02:00`.
    text = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text) if "T" in text or " " in text else text
    text = _FRACTION.sub(lambda found: "." + found[1][:6].ljust(6, "0"), text)  # Python 3.10 takes three digits or six
    try:
        return seconds_of(datetime.fromisoformat(text))
    except ValueError:
        return math.nan

"""EventBridge's schedule expressions: ``rate(15 minutes)`` and ``cron(0 2 * * ? *)``, always in UTC.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html. What that page does not show is refused,
though the service may take it: a list with ``L``, ``W`` or ``#`` in it, ``LW``, and ranges that run backwards but for days of the
week (``FRI-MON``).
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

_UNITS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
_MONTHS = {
    name: number
    for number, name in enumerate("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split(), start=1)  # noqa: SIM905
}
_WEEKDAYS = {name: number for number, name in enumerate("SUN MON TUE WED THU FRI SAT".split(), start=1)}  # noqa: SIM905

Days = Callable[[int, int], list[int]]
"""Days of a month, in order, of a year and a month."""


@dataclass(frozen=True)
class Rate:
    """Every so often, from when the rule was made."""

    every: timedelta

    def after(self, moment: datetime) -> datetime | None:
        """Return when it is due next, if it was due at ``moment``."""
        return moment + self.every


@dataclass(frozen=True)
class Cron:
    """At the minutes that six fields name; the lists are in order."""

    minutes: list[int]
    hours: list[int]
    days: Days
    months: list[int]
    years: list[int]

    def after(self, moment: datetime) -> datetime | None:
        """Return the first minute after ``moment``; None if no more comes."""
        first = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        for year in self.years[bisect_left(self.years, first.year) :]:
            for month in self.months:
                if (year, month) < (first.year, first.month):
                    continue
                for day in self.days(year, month):
                    found = self._on(datetime(year, month, day, tzinfo=timezone.utc), first)
                    if found is not None:
                        return found
        return None

    def _on(self, day: datetime, first: datetime) -> datetime | None:
        times = (day.replace(hour=hour, minute=minute) for hour in self.hours for minute in self.minutes)
        return next((time for time in times if time >= first), None)


Schedule = Rate | Cron


def parse(expression: str) -> Schedule:
    """Read a schedule expression.

    Parameters
    ----------
    expression
        As a rule has it.

    Raises
    ------
    ValueError
        If it is none.
    """
    found = re.fullmatch(r"(rate|cron)\((.*)\)", expression)
    if found is None:
        raise ValueError(f"{expression!r}: expected rate(…) or cron(…)")
    return _rate(found[2]) if found[1] == "rate" else _cron(found[2].upper().split())


def _rate(text: str) -> Rate:
    found = re.fullmatch(r"([1-9]\d{0,8}) +(minute|hour|day)(s?)", text)
    # "1 minutes" and "5 minute" are refused by the service, too.
    if found is None or (found[1] == "1") == bool(found[3]):
        raise ValueError(f"rate({text}): expected such as 1 minute, 5 minutes or 2 hours")
    return Rate(int(found[1]) * _UNITS[found[2]])


def _cron(fields: list[str]) -> Cron:
    if len(fields) != 6:
        raise ValueError(f"cron: expected minutes, hours, day of month, month, day of week and year; found {fields}")
    minutes, hours, day, month, weekday, year = fields
    if (day == "?") == (weekday == "?"):
        raise ValueError("cron: of day of month and day of week, one must be ? and the other not")
    return Cron(
        _values(minutes, 0, 59),
        _values(hours, 0, 23),
        _days_of_month(day) if weekday == "?" else _days_of_week(weekday),
        _values(month, 1, 12, _MONTHS),
        _values(year, 1970, 2199),
    )


def _values(
    field: str, low: int, high: int, names: Mapping[str, int] | None = None, *, circular: bool = False
) -> list[int]:
    """Return the numbers that a field with ``, - * /`` stands for, in order."""
    size = high - low + 1
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        start, dash, end = span.partition("-")
        first = low if span == "*" else _number(start, low, high, names)
        # 10/5 is every fifth from ten on; 10 alone is ten.
        last = _number(end, low, high, names) if dash else high if slash or span == "*" else first
        if last < first and not circular:
            raise ValueError(f"cron: {part} runs backwards")
        every = _number(step, 1, high) if slash else 1
        found |= {low + (value - low) % size for value in range(first, last + 1 + size * (last < first), every)}
    return sorted(found)


def _number(text: str, low: int, high: int, names: Mapping[str, int] | None = None) -> int:
    value = (names or {}).get(text, -1)
    if re.fullmatch(r"[0-9]{1,4}", text):
        value = int(text)
    if not low <= value <= high:
        raise ValueError(f"cron: {text!r} is not from {low} to {high}")
    return value


def _days_of_month(field: str) -> Days:
    if field == "L":
        return lambda year, month: [_length(year, month)]
    if field.endswith("W"):
        wanted = _number(field[:-1], 1, 31)
        return lambda year, month: [_nearest_weekday(year, month, wanted)] if wanted <= _length(year, month) else []
    values = _values(field, 1, 31)
    return lambda year, month: [day for day in values if day <= _length(year, month)]


def _days_of_week(field: str) -> Days:
    if field == "L":  # of a week, which ends on Saturday
        field = "7"
    if field.endswith("L"):
        last = _number(field[:-1], 1, 7, _WEEKDAYS)
        return lambda year, month: _all_days(year, month, [last])[-1:]
    if "#" in field:
        day, _, nth = field.partition("#")
        weekday, place = _number(day, 1, 7, _WEEKDAYS), _number(nth, 1, 5)
        return lambda year, month: _all_days(year, month, [weekday])[place - 1 : place]
    values = _values(field, 1, 7, _WEEKDAYS, circular=True)
    return lambda year, month: _all_days(year, month, values)


def _all_days(year: int, month: int, weekdays: list[int]) -> list[int]:
    """Return the days of a month that are one of ``weekdays``, of which 1 is Sunday."""
    return [day for day in range(1, _length(year, month) + 1) if _weekday(year, month, day) in weekdays]


def _nearest_weekday(year: int, month: int, day: int) -> int:
    """Return the day from Monday to Friday that is nearest, in the same month."""
    match _weekday(year, month, day):
        case 7:  # Saturday
            return day - 1 if day > 1 else day + 2
        case 1:
            return day + 1 if day < _length(year, month) else day - 2
        case _:
            return day


def _weekday(year: int, month: int, day: int) -> int:
    return (calendar.weekday(year, month, day) + 1) % 7 + 1


def _length(year: int, month: int) -> int:
    return calendar.monthrange(year, month)[1]

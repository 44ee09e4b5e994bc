"""Schedule expressions, held against an enumeration of days and minutes that shares nothing with the reader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.local.aws.schedules import Cron, Rate, parse

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
DAYS = 420
"""Looked ahead: more than a year, so that every expression of the strategies below is met, or is rare."""


@dataclass(frozen=True)
class Field:
    """A field's text, and which numbers it means."""

    text: str
    has: Callable[[int], bool]


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: list[str] | None = None, *, circular: bool = False) -> Field:
    """A field of one to three parts, each of a kind that EventBridge's page shows."""
    number = st.integers(low, high)

    def spelled(value: int) -> str:
        return draw(st.sampled_from([names[value - low], names[value - low].lower()])) if names else str(value)

    def part() -> tuple[str, set[int]]:
        kind = draw(st.sampled_from(["all", "one", "range", "step", "step in range", "step of all"]))
        first, last, step = draw(number), draw(number), draw(st.integers(1, high))
        if first > last and not circular:
            first, last = last, first
        span = set(range(first, last + 1)) if first <= last else {*range(first, high + 1), *range(low, last + 1)}
        if kind == "range":
            return f"{spelled(first)}-{spelled(last)}", span
        if kind == "step in range" and first <= last:
            return f"{first}-{last}/{step}", set(range(first, last + 1, step))
        if kind == "step":
            return f"{first}/{step}", set(range(first, high + 1, step))
        if kind == "step of all":
            return f"*/{step}", set(range(low, high + 1, step))
        return ("*", set(range(low, high + 1))) if kind == "all" else (spelled(first), {first})

    parts = [part() for _ in range(draw(st.integers(1, 3)))]
    meant = set().union(*(numbers for _, numbers in parts))
    return Field(",".join(text for text, _ in parts), meant.__contains__)


def month_of(day: date) -> list[date]:
    """Every day of a day's month."""
    around = (day + timedelta(days=offset) for offset in range(-31, 32))
    return [one for one in around if (one.year, one.month) == (day.year, day.month)]


def sunday_first(day: date) -> int:
    return day.isoweekday() % 7 + 1


@st.composite
def days(draw: st.DrawFn) -> tuple[str, str, Callable[[date], bool]]:
    """Day of month and day of week, and which days both mean."""
    kind = draw(st.sampled_from(["month", "week", "last", "weekday", "saturday", "last of week", "nth"]))
    number, weekday, nth = draw(st.integers(1, 31)), draw(st.integers(1, 7)), draw(st.integers(1, 5))

    def alike(day: date) -> list[date]:
        return [one for one in month_of(day) if sunday_first(one) == weekday]

    def nearest(day: date) -> bool:
        if number not in {one.day for one in month_of(day)}:
            return False
        working = [one for one in month_of(day) if one.isoweekday() <= 5]
        return day == min(working, key=lambda one: abs(one.day - number))

    if kind == "month":
        field = draw(fields(1, 31))
        return field.text, "?", lambda day: field.has(day.day)
    if kind == "week":
        field = draw(fields(1, 7, WEEKDAYS, circular=True))
        return "?", field.text, lambda day: field.has(sunday_first(day))
    return {
        "last": ("L", "?", lambda day: day == month_of(day)[-1]),
        "weekday": (f"{number}W", "?", nearest),
        "saturday": ("?", "L", lambda day: day.isoweekday() == 6),
        "last of week": ("?", f"{weekday}L", lambda day: day == alike(day)[-1]),
        "nth": ("?", f"{weekday}#{nth}", lambda day: day in alike(day)[nth - 1 : nth]),
    }[kind]


def enumerated(
    moment: datetime, minutes: Field, hours: Field, day: Callable[[date], bool], months: Field, years: Field
) -> Iterator[datetime]:
    """Every minute that an expression means in the days after a moment, one after the other."""
    for offset in range(DAYS):
        on = moment.date() + timedelta(days=offset)
        if years.has(on.year) and months.has(on.month) and day(on):
            for hour, minute in itertools.product(range(24), range(60)):
                at = datetime.combine(on, time(hour, minute), timezone.utc)
                if hours.has(hour) and minutes.has(minute) and at > moment:
                    yield at


@given(
    st.datetimes(datetime(1999, 12, 1), datetime(2030, 1, 1), timezones=st.just(timezone.utc)),
    fields(0, 59),
    fields(0, 23),
    days(),
    fields(1, 12, MONTHS),
    st.one_of(st.just(Field("*", lambda _: True)), fields(1970, 2199)),
)
def test_a_cron_expression_is_due_when_an_enumeration_says_so(
    moment: datetime,
    minutes: Field,
    hours: Field,
    day: tuple[str, str, Callable[[date], bool]],
    months: Field,
    years: Field,
) -> None:
    of_month, of_week, is_meant = day
    cron = parse(f"cron({minutes.text} {hours.text} {of_month} {months.text} {of_week} {years.text})")
    expected = list(itertools.islice(enumerated(moment, minutes, hours, is_meant, months, years), 3))
    for due in expected:
        found = cron.after(moment)
        assert found == due
        moment = found
    if not expected:
        found = cron.after(moment)
        assert found is None or found.date() >= moment.date() + timedelta(days=DAYS)


@pytest.mark.parametrize(
    ("expression", "moment", "due"),
    [
        # The examples of EventBridge's page.
        ("cron(0 10 * * ? *)", "2026-12-01T10:00:00", "2026-12-02T10:00:00"),
        ("cron(15 12 * * ? *)", "2026-12-01T10:00:59", "2026-12-01T12:15:00"),
        ("cron(0 18 ? * MON-FRI *)", "2026-12-04T18:00:00", "2026-12-07T18:00:00"),
        ("cron(0 8 1 * ? *)", "2026-12-01T08:00:00", "2027-01-01T08:00:00"),
        ("cron(0/15 * * * ? *)", "2026-12-31T23:46:00", "2027-01-01T00:00:00"),
        ("cron(0/10 * ? * MON-FRI *)", "2026-12-04T23:50:00", "2026-12-07T00:00:00"),
        ("cron(0/5 8-17 ? * MON-FRI *)", "2026-12-04T17:55:00", "2026-12-07T08:00:00"),
        ("cron(0 0 ? * 3#2 *)", "2026-12-01T00:00:00", "2026-12-08T00:00:00"),
        # Corners: a leap day, a year that ends it, a month without that day, weekdays at either end of a month.
        ("cron(0 0 29 2 ? *)", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("cron(0 0 1 1 ? 2026)", "2026-01-01T00:00:00", None),
        ("cron(0 0 30 FEB ? *)", "2026-01-01T00:00:00", None),
        ("cron(0 0 31W 2 ? *)", "2026-01-01T00:00:00", None),
        ("cron(59 23 31 12 ? 2199)", "2026-01-01T00:00:00", "2199-12-31T23:59:00"),
        ("cron(0 0 1W * ? *)", "2026-07-31T12:00:00", "2026-08-03T00:00:00"),
        ("cron(0 0 31W * ? *)", "2026-05-01T00:00:00", "2026-05-29T00:00:00"),
        ("cron(0 0 ? * FRI-MON *)", "2026-12-01T00:00:00", "2026-12-04T00:00:00"),
        ("rate(1 minute)", "2026-12-01T00:00:30", "2026-12-01T00:01:30"),
        ("rate(15 minutes)", "2026-12-01T00:00:30", "2026-12-01T00:15:30"),
        ("rate(1 hour)", "2026-12-31T23:30:00", "2027-01-01T00:30:00"),
        ("rate(7 days)", "2026-12-01T00:00:00", "2026-12-08T00:00:00"),
    ],
)
def test_expressions_with_a_known_answer(expression: str, moment: str, due: str | None) -> None:
    found = parse(expression).after(datetime.fromisoformat(f"{moment}+00:00"))
    assert (found and f"{found:%Y-%m-%dT%H:%M:%S}") == due


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "every day",
        "at(2026-12-01T00:00:00)",
        "rate()",
        "rate(0 minutes)",
        "rate(-1 minutes)",
        "rate(1.5 hours)",
        "rate(1 minutes)",
        "rate(5 minute)",
        "rate(01 minute)",
        "rate(5 weeks)",
        "rate(٥ minutes)",
        "rate(5 minutes) ",
        "cron()",
        "cron(0 2 * * *)",
        "cron(0 2 * * ? * *)",
        "cron(0 2 * * * *)",
        "cron(0 2 ? * ? *)",
        "cron(0 2 1 * MON *)",
        "cron(60 2 * * ? *)",
        "cron(0 24 * * ? *)",
        "cron(0 2 0 * ? *)",
        "cron(0 2 32 * ? *)",
        "cron(0 2 * 13 ? *)",
        "cron(0 2 * MAI ? *)",
        "cron(0 2 ? * 0 *)",
        "cron(0 2 ? * 8 *)",
        "cron(0 2 ? * 3#6 *)",
        "cron(0 2 ? * 3#1,6#3 *)",
        "cron(0 2 ? * L3 *)",
        "cron(0 2 32W * ? *)",
        "cron(0 2 W * ? *)",
        "cron(0 2 1,L * ? *)",
        "cron(0 2 * * ? 1969)",
        "cron(0 2 * * ? 2200)",
        "cron(5-1 2 * * ? *)",
        "cron(*/0 2 * * ? *)",
        "cron(1- 2 * * ? *)",
        "cron(,1 2 * * ? *)",
        "cron(? 2 * * ? *)",
        "cron(-1 2 * * ? *)",
        "cron(١ 2 * * ? *)",
    ],
)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"expected|cron"):
        parse(expression)


def test_what_is_read_says_of_what_kind_it_is() -> None:
    assert parse("rate(2 hours)") == Rate(timedelta(hours=2))
    assert isinstance(parse("cron(0 2 * * ? *)"), Cron)

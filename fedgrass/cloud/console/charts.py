"""Where a chart's lines and letters go; templates/chart.html draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 220
# Pixels; the left margin has room for the longest number on the axis.
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 12, 30

# Of a float's digits, so many are left to tell an axis' ticks apart; below the least, powers of ten lose theirs.
_ALIKE, _LEAST = 1e-9, 1e-290


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in pixels and its word."""

    at: float
    word: str


@dataclass(frozen=True)
class Point:
    """A value: its place in pixels and what it says when pointed at."""

    x: float
    y: float
    says: str


@dataclass(frozen=True)
class Chart:
    """One line over the rounds. ``path`` has a gap where a round has no value; ``marks`` are values to compare it with."""

    title: str
    summary: str
    path: str
    points: tuple[Point, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    marks: tuple[Tick, ...] = ()
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def line(
    title: str,
    values: Sequence[tuple[int, float | None]],
    *,
    percent: bool = False,
    marks: Mapping[str, float | None] | None = None,
) -> Chart | None:
    """Lay out values by round, the oldest first; None if there are fewer than two.

    Parameters
    ----------
    percent
        Whether the values are shares.
    marks
        Values to compare them with, by name, such as a target; those that are None are left out.
    """
    known = [(number, value) for number, value in values if value is not None and math.isfinite(value)]
    # One point is no curve.
    if len(known) < 2:
        return None
    first, last = values[0][0], values[-1][0]
    marked = {name: value for name, value in (marks or {}).items() if value is not None and math.isfinite(value)}
    all_values = [*(value for _, value in known), *marked.values()]
    step, low, high = _scale(min(all_values), max(all_values))

    def x(number: int) -> float:
        return round(_LEFT + (number - first) / (last - first) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    def word(value: float) -> str:
        return f"{100 * value:.4g} %" if percent else f"{value:.4g}"

    # SVG: M moves without a line, so a round without a value leaves a gap.
    path, pen = [], "M"
    for number, value in values:
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        path.append(f"{pen}{x(number)} {y(value)}")
        pen = "L"
    (oldest, old), (newest, new) = known[0], known[-1]
    return Chart(
        title=title,
        summary=f"{word(old)} in round {oldest}, {word(new)} in round {newest}",
        path="".join(path),
        points=tuple(Point(x(number), y(value), f"Round {number}: {word(value)}") for number, value in known),
        across=tuple(Tick(x(number), str(number)) for number in _rounds(first, last)),
        up=tuple(Tick(y(low + k * step), word(low + k * step)) for k in range(round((high - low) / step) + 1)),
        marks=tuple(Tick(y(value), f"{name} {word(value)}") for name, value in marked.items()),
    )


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Return a step of 1, 2 or 5 times a power of ten, and the multiples of it around the values."""
    size = max(abs(low), abs(high))
    # All values alike, but for their last digits: steps of such a span would vanish beside the values.
    if high - low <= max(_ALIKE * size, _LEAST):
        low = high - max(size / 10, _LEAST if size > _LEAST else 1.0)
    span = high - low
    # Some four steps to an axis.
    rough = span / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    return step, bottom, top if top > bottom else bottom + step


def _rounds(first: int, last: int) -> list[int]:
    step = max(1, math.ceil((last - first) / 7))
    return [*range(first, last + 1, step)]

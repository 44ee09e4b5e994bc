"""What a schedule would come to: learning rate and epochs over a run's rounds, drawn beside the fields that say so."""

from __future__ import annotations

from collections.abc import Sequence

from fedgrass.cloud.console import charts
from fedgrass.cloud.console.forms import Form
from fedgrass.protocol.run_settings import Curve
from fedgrass.protocol.settings import FleetSettings

_MOST_POINTS = 100

PREVIEW = "preview"
"""Name of the button that draws what is typed, and does nothing else."""


def draw(form: Form, settings: FleetSettings) -> None:
    """Put the curves of these settings into their sections of a form; what stays as it is has no curve.

    Parameters
    ----------
    form
        The form; one without a schedule stays as it is.
    settings
        What the form says.
    """
    schedule, fit = settings.schedule, settings.fit
    for section in form.sections:
        if section.name == "schedule.learning_rate":
            numbers = _numbers(settings.rounds, schedule.learning_rate)
            rates = [schedule.values(fit.learning_rate, fit.epochs, number - 1)[0] for number in numbers]
            section.chart = _line("Learning rate", numbers, rates, schedule.learning_rate)
        elif section.name == "schedule.epochs":
            numbers = _numbers(settings.rounds, schedule.epochs)
            epochs = [float(schedule.values(fit.learning_rate, fit.epochs, number - 1)[1]) for number in numbers]
            section.chart = _line("Epochs", numbers, epochs, schedule.epochs)


def _numbers(rounds: int, curve: Curve) -> list[int]:
    """Return the rounds that are drawn: the run's; where rounds are started one at a time, some of what follows."""
    last = rounds if rounds > 1 else min(4 * curve.rounds, 1_000_000)
    if last <= _MOST_POINTS:
        return [*range(1, last + 1)]
    return sorted({1 + round(step * (last - 1) / (_MOST_POINTS - 1)) for step in range(_MOST_POINTS)})


def _line(title: str, numbers: list[int], values: Sequence[float | None], curve: Curve) -> charts.Chart | None:
    if curve.kind == "constant":
        return None
    return charts.line(f"{title}, from the first round of the run", list(zip(numbers, values, strict=True)))

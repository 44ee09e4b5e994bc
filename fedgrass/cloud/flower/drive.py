"""An app's rounds in their order: train, evaluate on devices, evaluate here; what was done before is not done again."""

from __future__ import annotations

from collections.abc import Callable

from fedgrass.cloud.flower.asked import App, Figures, Found
from fedgrass.cloud.flower.rounds import FleetRounds

Said = Callable[[str], None]


def drive(app: App, fleet: FleetRounds, said: Said) -> Found:
    """Run an app's rounds on a fleet that has its model.

    Parameters
    ----------
    app
        The strategy, with what it was started with.
    fleet
        The fleet's rounds.
    said
        Told of each round's end in a line.

    Returns
    -------
    Found
        The last model and the figures.

    Raises
    ------
    FedgrassError
        As `FleetRounds.run` does; and what the app's own functions raise passes.
    """
    fleet.finish_open()
    trained, evaluated = fleet.done("fit"), fleet.done("evaluate")
    found = Found(fleet.parameters())
    # Asked again for the figures of rounds that an earlier run has done: they are what a whole run returns.
    for number, record in sorted(trained.items()):
        _keep(found.trained, number, app.trained(number, fleet.answers(record)))
    for number, record in sorted(evaluated.items()):
        _keep(found.evaluated, number, app.evaluated(number, fleet.answers(record)))
    # The last one that was trained may not have been evaluated.
    last = max(trained, default=0)
    first = last if last and last not in evaluated else last + 1
    if trained:
        said(f"{last} of {app.rounds} rounds have trained before; the run goes on from there.")
    # Flower evaluates the initial model as round 0.
    if not trained:
        _keep(found.judged, 0, app.judged(0, found.parameters))
    for number in range(first, app.rounds + 1):
        _round(number, app, fleet, found, said, done=number in trained)
    return found


def _round(number: int, app: App, fleet: FleetRounds, found: Found, said: Said, *, done: bool) -> None:
    about = f"Round {number} of {app.rounds}"
    asked = None if done else app.train(number, found.parameters)
    if asked is not None:
        record = fleet.run("fit", number, asked)
        _keep(found.trained, number, app.trained(number, fleet.answers(record)))
        found.parameters = fleet.parameters()
        said(
            f"{about}: {record.outcome}{f' ({record.reason})' if record.reason else ''}{_in_words(found.trained.get(number))}"
        )
    elif not done:
        said(f"{about}: the strategy has nobody train")
    # After training: Flower has devices evaluate the round's new model.
    asked = app.evaluate(number, found.parameters)
    if asked is not None:
        record = fleet.run("evaluate", number, asked)
        _keep(found.evaluated, number, app.evaluated(number, fleet.answers(record)))
        said(f"{about}, evaluated by {record.contributed} devices{_in_words(found.evaluated.get(number))}")
    _keep(found.judged, number, app.judged(number, found.parameters))
    if number in found.judged:
        said(f"{about}, evaluated here{_in_words(found.judged[number])}")


def _keep(figures: dict[int, Figures], number: int, one: Figures | None) -> None:
    if one is not None:
        figures[number] = one


def _in_words(figures: Figures | None) -> str:
    if not figures:
        return ""
    shown = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    ]
    return ": " + ", ".join(shown)

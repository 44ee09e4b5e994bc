"""A simulation's report, and several of them in one chart."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgrass.bundle import Bundle, Manifest, Parameters
from fedgrass.cli import page
from fedgrass.cli.page import BLUE, GREEN, GREY, ORANGE
from fedgrass.files import write_atomically
from fedgrass.inference import write_bundle
from fedgrass.protocol.fleet_score import fleet_score
from fedgrass.protocol.metrics import OTHERS
from fedgrass.protocol.names import SCORE
from fedgrass.protocol.report import Evaluation
from fedgrass.simulation.records import Comparison, SimulatedRound, SimulationReport, Timing
from fedgrass.simulation.settings import Simulation

_COLUMNS = (
    *("round", "outcome", "version", "accuracy", "loss", "asked", "used", "quarantined", "dropped", "late", "failed"),
    *("bytes", "simulated_seconds", "reason"),
    *OTHERS,
)
_HOUR = 3600.0


def summarise(
    simulation: Simulation, manifest: Manifest, rounds: Sequence[SimulatedRound], timing: Timing
) -> SimulationReport:
    """Summarise a run of at least one round.

    Parameters
    ----------
    simulation
        What was simulated.
    manifest
        Of the model that it started from.
    rounds
        What each round gave.
    timing
        What the run took.

    Returns
    -------
    SimulationReport
        The summary.
    """
    evaluations = [r.evaluation for r in rounds]
    # A round that was held has a report and no model that counts.
    last = next((r.report.model for r in reversed(rounds) if r.went_on and r.report.model), None)
    final = last or rounds[-1].report.base
    return SimulationReport(
        simulation=simulation,
        model=manifest.name,
        parameters=manifest.parameter_count,
        first=rounds[0].before,
        rounds=len(rounds),
        outcomes=dict(sorted(Counter(r.report.outcome for r in rounds).items())),
        final_version=final.version,
        final_parameters_sha256=final.parameters_sha256,
        final=evaluations[-1],
        best=max(evaluations, key=_goodness),
        bytes_read=sum(r.report.bytes_read for r in rounds),
        simulated_seconds=sum(r.seconds for r in rounds),
        timing=timing,
    )


def write(report: SimulationReport, rounds: Sequence[SimulatedRound], folder: Path) -> None:
    """Write a run's ``report.json``, ``rounds.csv``, ``chart.png`` and ``index.html``.

    Parameters
    ----------
    report
        The summary.
    rounds
        What each round gave.
    folder
        Where the files go; it exists.
    """
    write_atomically(folder / "rounds.csv", _csv(rounds).encode())
    template = Path(__file__).with_name("report.html.j2")
    page.write_report(report, folder, template, draw(report, rounds), entries=rounds)


def write_model(bundle: Bundle, parameters: Parameters, version: str, final: Evaluation, folder: Path) -> None:
    """Write the model that came of a run; an anomaly detector's with the fleet's threshold beside it, as a round's job does."""
    made = write_bundle(bundle, parameters, folder, version=version)
    score = fleet_score(made.manifest.anomaly_quantile, final.metrics)
    if score is not None:
        write_atomically(folder / SCORE, score)


def compare(runs: Mapping[str, tuple[SimulationReport, Sequence[SimulatedRound]]], folder: Path) -> Comparison:
    """Write ``report.json``, ``chart.png`` and ``index.html`` of several runs, by name."""
    found = Comparison(runs={name: report for name, (report, _) in runs.items()})
    figure, (left, right) = page.new_figure(widths=(1, 1))
    for name, (report, rounds) in runs.items():
        values, what = _curve(report, rounds)
        clock = [0.0]
        for simulated in rounds:
            clock.append(clock[-1] + simulated.seconds / _HOUR)
        left.plot(range(len(values)), values, label=name, linewidth=1.8)
        right.plot(clock, values, label=name, linewidth=1.8)
        left.set(title=f"{what} by round", xlabel="round", ylabel=what)
        right.set(title=f"{what} by simulated time", xlabel="hours")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(loc="best")
    template = Path(__file__).with_name("compare.html.j2")
    page.write_report(found, folder, template, page.png(figure))
    return found


def draw(report: SimulationReport, rounds: Sequence[SimulatedRound]) -> bytes:
    """Draw the model by round, and what became of those asked; return a PNG."""
    figure, (left, right) = page.new_figure(widths=(3, 2))
    values, what = _curve(report, rounds)
    left.plot(range(len(values)), values, color=BLUE, linewidth=2)
    held = [number for number, r in enumerate(rounds, 1) if not r.went_on]
    if held:
        left.plot(held, [values[number] for number in held], "x", color=ORANGE, label="base kept")
        left.legend(loc="lower right")
    left.set(title=f"{what} on examples that no device has", xlabel="round", ylabel=what)
    left.grid(alpha=0.3)
    numbers = range(1, len(rounds) + 1)
    bottom = [0] * len(rounds)
    kinds = (
        ("used", BLUE, [len(r.report.updates) for r in rounds]),
        ("quarantined", ORANGE, [len(r.report.quarantined) for r in rounds]),
        ("late", GREEN, [r.late for r in rounds]),
        ("dropped or failed", GREY, [r.dropped + len(r.failed) for r in rounds]),
    )
    for label, colour, counts in kinds:
        # Wide bars without gaps for many rounds, or the gaps would flicker.
        right.bar(numbers, counts, bottom=bottom, color=colour, label=label, width=1.0 if len(rounds) > 60 else 0.8)
        bottom = [below + above for below, above in zip(bottom, counts, strict=True)]
    right.set(title="What became of those asked", xlabel="round", ylabel="devices")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    return page.png(figure)


def _curve(report: SimulationReport, rounds: Sequence[SimulatedRound]) -> tuple[list[float], str]:
    evaluations = [report.first, *(r.evaluation for r in rounds)]
    if report.first.accuracy is None:
        return [e.loss for e in evaluations], "loss"
    return [100 * (e.accuracy or 0.0) for e in evaluations], "accuracy, %"


def _goodness(evaluation: Evaluation) -> float:
    return -evaluation.loss if evaluation.accuracy is None else evaluation.accuracy


def _csv(rounds: Sequence[SimulatedRound]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    outputs = sorted({name for r in rounds for name in r.evaluation.metrics} - {*OTHERS})
    table.writerow([*_COLUMNS, *outputs])
    for r in rounds:
        report, found = r.report, r.evaluation
        table.writerow(
            [
                report.round,
                report.outcome,
                report.model.version if report.model else report.base.version,
                "" if found.accuracy is None else found.accuracy,
                found.loss,
                r.asked,
                len(report.updates),
                len(report.quarantined),
                r.dropped,
                r.late,
                len(r.failed),
                report.bytes_read,
                round(r.seconds, 1),
                report.reason,
                *(found.metrics.get(name, "") for name in (*OTHERS, *outputs)),
            ]
        )
    return file.getvalue()

"""The demo's report: ``report.json``, a chart, and a page that needs nothing else."""

from __future__ import annotations

import math
from pathlib import Path

from fedgrass.cli import page
from fedgrass.cli.page import BLUE, GREEN, GREY, ORANGE
from fedgrass.local.demo.summary import DemoReport


def write(report: DemoReport, folder: Path) -> None:
    """Write all three files; what an earlier run left under their names is replaced."""
    template = Path(__file__).with_name("report.html.j2")
    page.write_report(report, folder, template, draw(report), last=report.rounds[-1])


def draw(report: DemoReport) -> bytes:
    """Draw accuracy by round against the baselines, and where each round's time went; return a PNG."""
    numbers = [entry.round for entry in report.rounds]
    figure, (left, right) = page.new_figure(widths=(3, 2))
    steps, accuracies = numbers, [entry.accuracy or math.nan for entry in report.rounds]
    # Round 0 is the model before any training.
    if report.initial_accuracy is not None:
        steps, accuracies = [0, *steps], [report.initial_accuracy, *accuracies]
    left.plot(steps, [100 * value for value in accuracies], "o-", color=BLUE, label="fleet", linewidth=2)
    lines = (
        (report.centralised_accuracy, GREEN, "all data in one place"),
        (report.best_single_device_accuracy, ORANGE, "best single device"),
    )
    for value, colour, label in lines:
        left.axhline(100 * value, color=colour, linestyle="--", label=f"{label}: {100 * value:.1f} %")
    left.set(title="Accuracy on digits that no device has seen", xlabel="round", ylabel="%", xticks=steps)
    left.legend(loc="lower right")
    left.grid(alpha=0.3)
    bottom = [0.0] * len(numbers)
    phases = (
        ("train and upload", BLUE, [entry.seconds_train or 0 for entry in report.rounds]),
        ("aggregate", ORANGE, [entry.seconds_aggregate or 0 for entry in report.rounds]),
        ("release to active", GREY, [entry.seconds_release_to_active or 0 for entry in report.rounds]),
    )
    for label, colour, seconds in phases:
        right.bar(numbers, seconds, bottom=bottom, color=colour, label=label)
        bottom = [below + above for below, above in zip(bottom, seconds, strict=True)]
    right.set(title="Where each round's seconds went", xlabel="round", ylabel="s", xticks=numbers)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    return page.png(figure)

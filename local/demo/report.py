"""The demo's report: ``report.json``, a chart, and a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import jinja2

from fedgrass.cli import render
from fedgrass.files import write_atomically
from local.demo.summary import DemoReport

_BLUE, _ORANGE, _GREY, _GREEN = "#2563eb", "#d97706", "#6b7280", "#059669"


def write(report: DemoReport, folder: Path) -> None:
    """Write all three files; what an earlier run left under their names is replaced."""
    chart = draw(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": render.percent, "seconds": _seconds}
    page = environment.get_template("report.html.j2").render(
        report=report, chart=base64.b64encode(chart).decode(), last=report.rounds[-1]
    )
    write_atomically(folder / "report.json", (report.model_dump_json(indent=2) + "\n").encode())
    write_atomically(folder / "chart.png", chart)
    write_atomically(folder / "index.html", page.encode())


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


def draw(report: DemoReport) -> bytes:
    """Draw accuracy by round against the baselines, and where each round's time went; return a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    numbers = [entry.round for entry in report.rounds]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    steps, accuracies = numbers, [entry.accuracy or math.nan for entry in report.rounds]
    if report.initial_accuracy is not None:
        steps, accuracies = [0, *steps], [report.initial_accuracy, *accuracies]
    left.plot(steps, [100 * value for value in accuracies], "o-", color=_BLUE, label="fleet", linewidth=2)
    lines = (
        (report.centralised_accuracy, _GREEN, "all data in one place"),
        (report.best_single_device_accuracy, _ORANGE, "best single device"),
    )
    for value, colour, label in lines:
        left.axhline(100 * value, color=colour, linestyle="--", label=f"{label}: {100 * value:.1f} %")
    left.set(title="Accuracy on digits that no device has seen", xlabel="round", ylabel="%", xticks=steps)
    left.legend(loc="lower right")
    left.grid(alpha=0.3)
    bottom = [0.0] * len(numbers)
    phases = (
        ("train and upload", _BLUE, [entry.seconds_train or 0 for entry in report.rounds]),
        ("aggregate", _ORANGE, [entry.seconds_aggregate or 0 for entry in report.rounds]),
        ("release to active", _GREY, [entry.seconds_release_to_active or 0 for entry in report.rounds]),
    )
    for label, colour, seconds in phases:
        right.bar(numbers, seconds, bottom=bottom, color=colour, label=label)
        bottom = [below + above for below, above in zip(bottom, seconds, strict=True)]
    right.set(title="Where each round's seconds went", xlabel="round", ylabel="s", xticks=numbers)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()

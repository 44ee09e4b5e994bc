"""Reports as files that need nothing else: JSON, a chart, and a page that holds both. Needs jinja2 and matplotlib."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from pydantic import BaseModel

from fedgrass.cli import render
from fedgrass.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#d97706", "#6b7280", "#059669"


def write_report(report: BaseModel, folder: Path, template: Path, chart: bytes, **context: object) -> None:
    """Write ``report.json``, ``chart.png`` and ``index.html``; what an earlier run left under their names is replaced.

    Parameters
    ----------
    template
        Extends ``page.html.j2``; knows ``report``, ``chart`` (base64) and the context.
    """
    # Names come from devices: autoescape keeps one from being markup.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": render.percent, "seconds": _seconds, "size": render.size}
    page = environment.get_template(template.name).render(
        report=report, chart=base64.b64encode(chart).decode(), **context
    )
    write_atomically(folder / "report.json", (report.model_dump_json(indent=2) + "\n").encode())
    write_atomically(folder / "chart.png", chart)
    write_atomically(folder / "index.html", page.encode())


def load() -> None:
    """Import what draws, which takes half a second, before it is needed."""
    import matplotlib.pyplot  # noqa: F401


def new_figure(*, widths: tuple[int, ...]) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, side by side."""
    import matplotlib as mpl

    # Agg draws without a display.
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(widths), figsize=(11, 4), width_ratios=widths, layout="constrained", squeeze=False
    )
    return figure, list(axes[0])


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, and let go of it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"

"""A fleet's profile on the terminal and as a page with a plot of each feature."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedgrass.protocol.profile import Feature, Profile

# Eighths of a line's height.
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 24
# Features that fit a terminal; a model of images has thousands.
_ROWS = 60
_NOTHING = "–"


def summary(profile: Profile) -> str:
    """Return in a line what a profile is of."""
    noise = "" if profile.noise is None else f"; each count has noise of deviation {profile.noise:,.3g}"
    return (
        f"Profile of fleet {profile.fleet}, round {profile.round} ({profile.made_at:%Y-%m-%d %H:%M}): "
        f"{profile.examples:,.0f} examples on {profile.devices:,} devices, {len(profile.features):,} features of model "
        f"{profile.model}'s input{noise}"
    )


def tables(profile: Profile, *, everything: bool = False) -> Group:
    """Return features, labels and misfits as tables.

    Parameters
    ----------
    profile
        The fleet's profile.
    everything
        Whether all features are shown, and not only the first of many.
    """
    parts: list[Table | Text] = [_features(profile, everything=everything)]
    if not everything and (left := len(profile.features[_ROWS:])):
        parts.append(Text(f"… and {left:,} more: --all shows them, --json gives them"))
    if profile.labels:
        parts.append(_labels(profile))
    if profile.misfits:
        parts.append(_misfits(profile))
    elif all(feature.bounds is None for feature in profile.features):
        parts.append(Text("No histograms yet: the next round of statistics takes its bounds from this profile."))
    return Group(*parts)


def _features(profile: Profile, *, everything: bool) -> Table:
    table = Table("feature", title=None, box=None, pad_edge=False)
    for heading in ("missing", "mean", "deviation", "minimum", "median", "maximum"):
        table.add_column(heading, justify="right")
    table.add_column("histogram", no_wrap=True)
    for feature in profile.features if everything else profile.features[:_ROWS]:
        table.add_row(escape(feature.name), *_figures(feature), bars(feature))
    return table


def _figures(feature: Feature) -> Iterator[str]:
    values = feature.count + feature.missing
    yield f"{feature.missing / values:.1%}" if values and feature.missing else _NOTHING
    deviation = None if feature.variance is None else math.sqrt(feature.variance)
    median = next((one.value for one in feature.quantiles if one.share == 0.5), None)
    for value in (feature.mean, deviation, feature.low, median, feature.high):
        yield _NOTHING if value is None else f"{value:.5g}"


def bars(feature: Feature, width: int = _WIDTH) -> str:
    """Draw a histogram's bins between its bounds in a line of so many letters."""
    counts = feature.histogram[1:-1]
    if not counts:
        return ""
    cells = [0.0] * min(width, len(counts))
    for at, count in enumerate(counts):
        # Several bins share a letter where there are more of them than letters.
        cells[at * len(cells) // len(counts)] += count
    most = max(cells) or 1.0
    # ceil: a bin that holds anything shows.
    return "".join(_BARS[math.ceil(cell / most * (len(_BARS) - 1))] for cell in cells)


def _labels(profile: Profile) -> Table:
    total = sum(label.count for label in profile.labels) or 1.0
    table = Table("label", box=None, pad_edge=False)
    table.add_column("examples", justify="right")
    table.add_column("share", justify="right")
    for label in profile.labels[:_ROWS]:
        table.add_row(escape(label.name), f"{label.count:,.0f}", f"{label.count / total:.1%}")
    return table


def _misfits(profile: Profile) -> Table:
    kept = "left out of the sums" if profile.left_out else "part of the sums"
    table = Table("device", f"does not fit the others ({kept}, but for missing values)", box=None, pad_edge=False)
    for misfit in profile.misfits[:_ROWS]:
        table.add_row(escape(misfit.thing), escape(misfit.told))
    if more := len(profile.misfits[_ROWS:]) + profile.misfits_more:
        table.add_row("…", f"and {more} more")
    return table


def write_page(profile: Profile, folder: Path) -> None:
    """Write ``index.html``, which needs nothing else, ``report.json`` and ``chart.png``: a plot of each feature.

    Parameters
    ----------
    profile
        The fleet's profile.
    folder
        Where to; it is made if it is missing.
    """
    from fedgrass.cli import page

    folder.mkdir(parents=True, exist_ok=True)
    template = Path(__file__).with_name("profile.html.j2")
    page.write_report(profile, folder, template, _chart(profile), summary=summary(profile), bars=bars)


def _chart(profile: Profile) -> bytes:
    import matplotlib as mpl

    from fedgrass.cli.page import BLUE, GREY, png

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = profile.features[:_ROWS]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 2.1 * rows), layout="constrained", squeeze=False)
    for at, axis in enumerate(axes.ravel()):
        if at >= len(shown):
            axis.set_axis_off()
            continue
        feature = shown[at]
        axis.set_title(feature.name, fontsize=8, parse_math=False)
        axis.tick_params(labelsize=6)
        axis.set_yticks([])
        if feature.bounds is not None and len(feature.histogram) > 2:
            low, high = feature.bounds
            bins = len(feature.histogram) - 2
            width = (high - low) / bins or 1.0
            axis.bar([low + width * (i + 0.5) for i in range(bins)], feature.histogram[1:-1], width, color=BLUE)
        if feature.mean is not None:
            axis.axvline(feature.mean, color=GREY, linewidth=1)
    return png(figure)

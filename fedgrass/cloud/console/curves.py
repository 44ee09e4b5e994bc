"""The curves of some rounds."""

from __future__ import annotations

from collections.abc import Sequence

from fedgrass.cloud.console import charts, streams
from fedgrass.protocol.metrics import label
from fedgrass.protocol.records import RoundRecord

_CURVES = ("f1", "auc", "rmse", "r2")


def _reported(records: Sequence[RoundRecord]) -> list[str]:
    """Return the figures that the newest round's devices report: loss and accuracy first, four at most."""
    names = records[-1].reported if records else {}
    return sorted(names, key=lambda name: (not name.endswith(("loss", "accuracy")), name))[:4]


def drawn(records: Sequence[RoundRecord]) -> list[charts.Chart]:
    """Return the curves of some rounds, given the newest first; a figure that they do not have has no curve."""
    oldest_first = list(reversed(records))
    found = [
        charts.line("Accuracy", [(record.round, record.accuracy) for record in oldest_first], percent=True),
        charts.line("Loss", [(record.round, record.loss) for record in oldest_first]),
        *(
            charts.line(label(name), [(record.round, record.metrics.get(name)) for record in oldest_first])
            for name in _CURVES
        ),
        *(
            charts.line(
                f"Devices say: {name.replace('_', ' ')}", [(r.round, r.reported.get(name)) for r in oldest_first]
            )
            for name in _reported(oldest_first)
        ),
        charts.line("Own models: best by device, median", [(r.round, _best(r)) for r in oldest_first]),
        charts.line("Devices whose update was used", _shares(oldest_first), percent=True),
        *streams.curves(oldest_first),
    ]
    return [chart for chart in found if chart is not None]


def _best(record: RoundRecord) -> float | None:
    return record.personal.best.median if record.personal else None


def _shares(records: Sequence[RoundRecord]) -> list[tuple[int, float | None]]:
    return [
        # A stream's round does not wait for the devices that it asked, so a share of them says nothing.
        (
            record.round,
            None
            if record.participants is None or record.settings.is_asynchronous
            else record.participants / max(1, record.taking_part),
        )
        for record in records
    ]

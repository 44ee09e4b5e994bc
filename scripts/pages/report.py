"""docs/reference/report.md: what the aggregator writes about a round."""

from __future__ import annotations

from fedgrass.protocol import gain, privacy, report
from fedgrass.protocol.names import report_key
from scripts.pages.tables import nested, section


def page() -> str:
    """Return the whole page."""
    parts = {**vars(gain), **vars(privacy), **vars(report)}
    return "\n".join(
        [
            "# The report of a round\n\nMade from the code by `scripts/reference`.\n",
            f"Each round's job writes one, as `{report_key('FLEET', 7)}` (here of round 7) in the fleet's bucket. From Python: "
            "[read a report as a table](../python.md).\n",
            section(report.RoundReport, "##"),
            *(section(parts[name]) for name in nested(report.RoundReport)),
        ]
    )

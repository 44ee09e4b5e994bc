"""docs/reference/events.md: every log event, from `fedgrass.events`."""

from __future__ import annotations

import logging

from fedgrass.events import CONTEXT, SECTIONS, Event

LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}


def page() -> str:
    """Return the whole page."""
    sections = "".join(f"\n## {name}\n\n{_table(events)}" for name, events in SECTIONS.items())
    context = ", ".join(f"`{name}`" for name in CONTEXT)
    return (
        "# Log events\n\nMade from the code by `scripts/reference`. Each line of a log is one JSON object: `time` (UTC, ISO "
        "8601), `level`, `event`, `logger`, and the event's fields; a field without a value is left out. Beside the fields "
        f"below, an event may have those that say where it happened: {context}. *Once*: a process does not repeat it for the "
        "same fields. *Trace*: it carries a traceback. [Operations](../operations.md#logs) has queries.\n" + sections
    )


def _table(events: dict[str, Event]) -> str:
    rows = "".join(
        f"| `{name}` | {_level(event)} | {event.meaning} | {', '.join(f'`{field}`' for field in event.fields)} |\n"
        for name, event in sorted(events.items())
    )
    return f"| event | level | what happened | fields |\n|---|---|---|---|\n{rows}"


def _level(event: Event) -> str:
    marks = ["once"] * event.once + ["trace"] * event.trace
    return ", ".join([LEVELS[event.level], *marks])

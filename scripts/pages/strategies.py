"""docs/reference/strategies.md: every built-in strategy with its facts and options, from their registry."""

from __future__ import annotations

from fedgrass.strategies import STRATEGIES, Strategy
from fedgrass.strategies.base import Clipping
from scripts.pages.tables import HEADING, default, kind, remark, section, text


def page() -> str:
    """Return the whole page."""
    return (
        "# Strategies and their options\n\nMade from the code by `scripts/reference`. What they are for and how they are chosen: "
        "[strategies](../strategies.md).\n\n"
        + "\n".join(_strategy(name) for name in STRATEGIES.built_in())
        + f"\n{section(Clipping, '##')}"
    )


def _strategy(name: str) -> str:
    made = STRATEGIES.get(name)
    schema = made.Options.model_json_schema()
    rows = "".join(
        f"| `{option}` | {kind(field)} | {default(field, required=False)} | {remark(field)} |\n"
        for option, field in schema.get("properties", {}).items()
    )
    return f"## {name}\n\n{text(made)}\n\n{_facts(made)}\n\n{HEADING}{rows}"


def _facts(made: type[Strategy]) -> str:
    facts = ["Sees all updates at once, on one instance." if made.needs_all else "Streams, on any number of instances."]
    if made.needs_metrics:
        facts.append(
            f"Needs the metric {' and '.join(f'`{metric}`' for metric in made.needs_metrics)} of every update."
        )
    if made.needs_own_update:
        facts.append("Needs an evaluation set.")
    if "staleness" in made.Options.model_fields:
        facts.append("Takes late updates of earlier rounds.")
    return " ".join(facts)

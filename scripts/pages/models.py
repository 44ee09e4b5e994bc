"""docs/reference/models.md: how named models train on the device's engine, from the lines that `benchmarks.models` left."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.models_peers import STEPS, read

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "models.jsonl"
LOSS, WEIGHTS = 1e-5, 1e-4
CHAOS = 10
"""A model beyond the limits is chaotic, not wrong, if it is at most this many times as far as the peer from itself when moved."""

Found: TypeAlias = dict[str, Any]

INTRODUCTION = f"""# Models, measured

Written by `python -m scripts.pages` from `docs/reference/models.jsonl`. That is what
`python -m benchmarks.models --results docs/reference/models.jsonl` left, which measures the models that are not in it; take
lines out to measure theirs anew. The models are in [`benchmarks/zoo`](../../benchmarks/zoo); what trains at all is in
[models](../models.md).

- **loss, weights**: the largest relative difference of a step's loss, and of a tensor of weights, in {STEPS} steps of SGD from
  the same weights on the same batches in LiteRT and in Keras or PyTorch. The limits are {LOSS:g} and {WEIGHTS:g}. Beyond them, in
  brackets: the most that the peer differs by from itself when its weights were moved by 10⁻⁷ at first, in one to four tries. A
  net that is no farther from the peer than {CHAOS} times that is chaotic, not wrong; one that is farther is **bold**. Layers
  that draw at random draw other numbers than the peer's, so these are not compared.
- **speed**: steps for each second of the processor, ours over the peer's, in turns in one pair of processes with one thread
  each. The machine had other work, which changes this less than seconds of the clock.
- **MB**: peak memory of a process that has trained, ours of the peer's.
- **export**: seconds of the processor, without the self-test. **KB**: the training graph's size.
"""


def page() -> str:
    """Return the whole page."""
    found = list(read(RESULTS).values())
    trained = [one for one in found if "speed_ratio" in one]
    parts = [INTRODUCTION, _provenance(trained), _summary(trained)]
    for title, torch in (("Keras", False), ("PyTorch", True)):
        rows = [one for one in trained if _is_torch(one) == torch]
        parts.append(f"## {title}\n\n{_HEADING}" + "\n".join(map(_row, rows)) + "\n")
    parts += _list("Refused", "refused", found, "Each with its error.")
    parts += _list("Failed", "failed", found, "These are defects.")
    return "\n".join([*parts, *_not_run(found)])


_HEADING = "| model | parameters | loss | weights | speed | MB | export | KB |\n|---|---|---|---|---|---|---|---|\n"


def _row(found: Found) -> str:
    speed = found["speed_ratio"]
    cells = [
        found["model"].removeprefix("torch_"),
        f"{found['parameters']:,}",
        *_parity(found),
        f"{speed:.2f}" if speed < 10 else f"{speed:.0f}",
        f"{found['rss_mb'][0]} of {found['rss_mb'][1]}",
        f"{found['export_processor_seconds']:.1f}",
        f"{found['graph_kb']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _parity(found: Found) -> tuple[str, str]:
    if "parity" in found:
        return found["parity"], ""
    loss, weights = f"{found['loss_apart']:.0e}", f"{found['weights_apart']:.0e}"
    if _is_within(found):
        return loss, weights
    loss, weights = f"{loss} ({found['moved_loss_apart']:.0e})", f"{weights} ({found['moved_weights_apart']:.0e})"
    return (loss, weights) if _is_chaotic(found) else (f"**{loss}**", f"**{weights}**")


def _is_within(found: Found) -> bool:
    return bool(found["loss_apart"] <= LOSS and found["weights_apart"] <= WEIGHTS)


def _is_chaotic(found: Found) -> bool:
    return all(found[f"{what}_apart"] <= CHAOS * found[f"moved_{what}_apart"] for what in ("loss", "weights"))


def _summary(trained: list[Found]) -> str:
    compared = [one for one in trained if "parity" not in one]
    within = [one for one in compared if _is_within(one)]
    chaotic = [one for one in compared if not _is_within(one) and _is_chaotic(one)]
    torch = sum(map(_is_torch, trained))
    slower = [one["model"] for one in trained if one["speed_ratio"] < 1]
    larger = [one["model"] for one in trained if one["memory_ratio"] > 0.25]
    counts = f"{len(within)} are within the limits, {len(chaotic)} chaotic, {len(compared) - len(within) - len(chaotic)} differ"
    return (
        f"{len(trained) - torch} Keras and {torch} PyTorch models trained. Of the {len(compared)} that are compared, {counts}.\n"
        f"Slower than the peer: {', '.join(slower) or 'none'}.\n"
        f"More than a quarter of its memory: {', '.join(larger) or 'none'}.\n"
    )


def _provenance(trained: list[Found]) -> str:
    seen = {key: sorted({one[key] for one in trained}) for key in ("machine", "commit", "date")}
    return f"Measured on {', '.join(seen['date'])}, at {', '.join(seen['commit'])}, on {'; '.join(seen['machine'])}.\n"


def _list(title: str, key: str, found: list[Found], words: str) -> list[str]:
    rows = [f"| {one['model']} | {_cell(one[key])} |" for one in found if key in one]
    return [f"## {title}\n\n{words}\n\n| model | |\n|---|---|\n" + "\n".join(rows) + "\n"] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")


def _not_run(found: list[Found]) -> list[str]:
    names = [one["model"] for one in found if one.get("not_run")]
    return [f"## Not run\n\nNot reached in that run: {', '.join(names)}.\n"] if names else []


def _is_torch(found: Found) -> bool:
    return str(found["model"]).startswith("torch_")

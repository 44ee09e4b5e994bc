"""What benchmarks of several contenders share: the best of repeated runs, and words that are not the result."""

from __future__ import annotations

import sys
from typing import Any


def keep(
    best: dict[str, dict[str, Any]],
    name: str,
    found: dict[str, Any] | None,
    *,
    by: str = "seconds",
) -> None:
    """Keep a contender's run that took least; None is a run that failed."""
    if found is not None and (name not in best or found[by] < best[name][by]):
        best[name] = found


def say(text: str) -> None:
    """Tell how it goes; standard output is for the one line of JSON."""
    print(text, file=sys.stderr, flush=True)

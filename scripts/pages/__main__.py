"""Write every page of docs/reference that is made from the code, each by the module of its name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES = ("commands", "configuration", "errors", "events", "messages", "models", "report", "strategies", "topics")


def page(name: str) -> str:
    """Return a whole page."""
    return str(import_module(f"scripts.pages.{name}").page())


if __name__ == "__main__":
    for each in PAGES:
        (FOLDER / f"{each}.md").write_text(page(each))

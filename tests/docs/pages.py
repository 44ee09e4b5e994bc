"""What the documentation's pages have in fences: commands, files and Python, with the markers that say how each is tested.

A marker is a comment on the line before a fence (``<!-- not run: needs a nucleus -->``), or anywhere on a page if it is about
the page. Of a fence:

=========================  ============================================================================================
none                       run as it is
``not run: WHY``           only checked: its programs, subcommands and options exist
``run by: PATH``           another page has the same command and runs it, or a test of that path does what it does
``stays up: TEXT``         started in the background, ready when it has written TEXT, stopped at the end
``file: NAME``             not a command: written to NAME, for the commands after it
=========================  ============================================================================================

Of a page: ``fleet: demo`` or ``fleet: account`` (which fleet its commands act on), ``after: PATH`` (a page whose commands
come first).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_MARKER = re.compile(r"^\s*<!-- ([a-z ]+): (.+) -->$")
_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
_SPAN = re.compile(r"`((?:\.venv/bin/)?(?:fedgrass|\.?/?scripts/\w+|python -m|aws)(?: [^`|]+)?)`")
_FENCE_MARKERS = {"not run", "run by", "stays up", "file"}
_PAGE_MARKERS = {"fleet", "after"}
LANGUAGES = {"sh", "console", "python", "json", "text", "yaml"}


@dataclass(frozen=True)
class Command:
    """A line of shell, continuation lines joined."""

    page: str
    line: int
    text: str

    @property
    def where(self) -> str:
        """Page and line, as an editor takes them."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Block:
    """A fence. ``marker`` is its kind and text, or ``("", "")``."""

    page: str
    line: int
    language: str
    text: str
    marker: tuple[str, str]

    @property
    def kind(self) -> str:
        """The marker's kind; empty if there is none."""
        return self.marker[0]

    @property
    def commands(self) -> list[Command]:
        """The shell commands in it; of a ``console`` fence the lines with a prompt."""
        if self.language not in {"sh", "console"}:
            return []
        prompt = "$ " if self.language == "console" else ""
        found: list[Command] = []
        joined, began = "", 0
        for offset, line in enumerate(self.text.splitlines()):
            if not joined and (not line.startswith(prompt) or line.strip() == "" or line.lstrip().startswith("#")):
                continue
            began = began if joined else self.line + 1 + offset
            joined += line.removeprefix(prompt) if not joined else " " + line.strip()
            if joined.endswith("\\"):
                joined = joined[:-1].rstrip()
                continue
            found.append(Command(self.page, began, re.sub(r"\s+# .*$", "", joined)))
            joined = ""
        return found


@dataclass
class Page:
    """A page of the documentation."""

    name: str
    blocks: list[Block] = field(default_factory=list)
    mentions: list[Command] = field(default_factory=list)
    fleet: str = ""
    after: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(path: Path) -> Page:
    """Take a page apart."""
    page = Page(path.relative_to(ROOT).as_posix())
    marker, fence, indent, language, text = ("", ""), 0, "", "", list[str]()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if fence:
            if line == f"{indent}```":
                page.blocks.append(Block(page.name, fence, language, "\n".join(text) + "\n", marker))
                marker, fence, text = ("", ""), 0, []
            else:
                text.append(line.removeprefix(indent))
        elif found := _FENCE.match(line):
            fence, indent, language = number, found[1], found[2]
            if language not in LANGUAGES:
                page.problems.append(f"{page.name}:{number}: a fence of {language or 'no language'}: {LANGUAGES}")
        elif found := _MARKER.match(line):
            kind, content = found.groups()
            if kind in _FENCE_MARKERS:
                marker = (kind, content)
            elif kind == "after":
                page.after.append(content)
            elif kind == "fleet" and content in {"demo", "account"}:
                page.fleet = content
            else:
                page.problems.append(f"{page.name}:{number}: no such marker: {line}")
        else:
            if marker[0]:
                page.problems.append(f"{page.name}:{number}: a marker that no fence follows")
                marker = ("", "")
            page.mentions += [Command(page.name, number, span) for span in _SPAN.findall(line)]
    return page


def pages() -> Iterator[Page]:
    """Every page: the README, and what is below ``docs``."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield read(path)

"""docs/reference/errors.md: every error code, with its cause and what to do, from the docstrings of the classes."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from fedgrass.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fedgrass", "components")


def page() -> str:
    """Return the whole page; raises `ConfigurationError` if a class with a code does not say its cause and remedy."""
    rows = "".join(
        f"| `{code}` | {what} | {cause} | {remedy} |\n" for code, what, cause, remedy in sorted(_documented().values())
    )
    return (
        "# Error codes\n\nMade from the code by `scripts/reference`. A failure that somebody can do something about ends a "
        "command with its code and one sentence that names the thing, what was expected and what was found; in logs and records "
        "the code is the same. Why *updates* are refused has [codes of its own](quarantine.md), and components "
        "have [exit codes](device.md).\n\n"
        f"| code | what it means | usual cause | what to do |\n|---|---|---|---|\n{rows}"
    )


def _documented() -> dict[str, tuple[str, str, str, str]]:
    found: dict[str, tuple[str, str, str, str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            # Copies of built components, and the stand-ins' own errors, which no user of AWS meets.
            if "greengrass-build" in path.parts or path.is_relative_to(ROOT / "fedgrass" / "local"):
                continue
            # From the syntax tree: importing every module would need every extra.
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and (code := _code(node)):
                    found[code] = (code, *_parts(node, path))
    return found


def _code(node: ast.ClassDef) -> str:
    """The class's own ``code``; private classes and the base of all have none to document."""
    if node.name.startswith("_") or node.name == "FedgrassError" or not node.name.endswith("Error"):
        return ""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "code":
            return str(ast.literal_eval(statement.value))
    return ""


def _parts(node: ast.ClassDef, path: Path) -> tuple[str, str, str]:
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    match = re.search(r"\ACause: (.+?)\n\nRemedy: (.+?)(?:\n\n|\Z)", "\n\n".join(text.split("\n\n")[1:]), re.DOTALL)
    if match is None:
        raise ConfigurationError(
            f"{path.relative_to(ROOT)}: the docstring of {node.name} lacks 'Cause: …' and 'Remedy: …' after its first paragraph"
        )
    first, cause, remedy = (_one_line(part) for part in (text.split("\n\n")[0], *match.groups()))
    return first, cause, remedy


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")

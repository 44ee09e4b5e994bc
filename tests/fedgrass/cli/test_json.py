"""Every command that prints a table prints the same as JSON for scripts: found by reading the code, not by a list."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer

from fedgrass.cli import cli

Place = tuple[str, str]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@cache
def parts(module: str) -> tuple[dict[str, ast.AST], dict[str, Place]]:
    """A module's own functions and classes, and what it imports of ours: each name, and where it is from."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    own = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedgrass")
        for alias in node.names
    }
    return dict(own), imported


def prints_a_table(callback: Any) -> bool:
    """Whether a function reaches one that makes a table of rich's with headings."""
    seen: set[Place] = set()
    waiting: list[Place] = [(callback.__module__, callback.__name__)]
    while waiting:
        module, name = at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        own, imported = parts(module)
        if name not in own:
            continue
        for node in ast.walk(own[name]):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, ast.Call) and called in {"Table", "_table"} and node.args:
                return True
            if isinstance(node, ast.Name):
                waiting.append(imported.get(node.id, (module, node.id)))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
                package, leaf = imported[node.value.id]
                waiting.append((f"{package}.{leaf}", node.attr))
        waiting = [place for place in waiting if importable(place[0])]
    return False


@cache
def importable(module: str) -> bool:
    try:
        return inspect.ismodule(importlib.import_module(module))
    except ImportError:
        return False


FOUND = dict(commands(typer.main.get_command(cli)))
TABLES = sorted(name for name, command in FOUND.items() if prints_a_table(inspect.unwrap(command.callback)))


def test_the_tables_are_found() -> None:
    assert {"fleet list", "round list", "round status", "silo status", "model inspect"} <= set(TABLES)
    assert "fleet settings" not in TABLES


@pytest.mark.parametrize("name", TABLES)
def test_a_command_that_prints_a_table_prints_json_too(name: str) -> None:
    options = [option for parameter in FOUND[name].params for option in parameter.opts]
    assert "--json" in options, f"fedgrass {name}: prints a table, and has no --json"

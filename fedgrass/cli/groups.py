"""Options of a command in groups: a function takes a few dataclasses, and Typer sees each of their fields as an option."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

R = TypeVar("R")


def grouped(function: Callable[..., R]) -> Callable[..., R]:
    """Have Typer see the fields of the dataclasses that a function takes as options; they come back in their groups.

    A field's type is ``Annotated`` with a ``typer.Option``, and its default is the option's. Other parameters stay as they are.

    Raises
    ------
    TypeError
        If two groups have a field of the same name.
    """
    hints = get_type_hints(function, include_extras=True)
    # typer reads parameters only.
    hints.pop("return", None)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = groups.get(name)
        flat += [parameter.replace(annotation=hints[name])] if kind is None else _parameters(kind)
    # Two fields of one name would be one option, and one of them would get the other's value.
    repeated = {one.name for one in flat if sum(other.name == one.name for other in flat) > 1}
    if repeated:
        raise TypeError(f"{function.__qualname__}: options of two groups: {', '.join(sorted(repeated))}")

    @functools.wraps(function)
    def called(**given: Any) -> R:
        built = {
            name: kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)}) for name, kind in groups.items()
        }
        return function(**given, **built)

    # Typer reads both, and would otherwise follow ``__wrapped__`` to the function itself.
    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in flat}
    del called.__wrapped__
    return called


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(group)
    ]

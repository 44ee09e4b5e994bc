"""Objects of the user's own that settings name as ``module:object``: looked at in the source before anything of it runs.

Importing a module runs it, and calling what settings name would run anything. So a module that is not loaded yet is imported
only if its source declares the object as what it must be: a class below a certain base, or a function. The source is read, not
run.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from fedgrass.errors import ConfigurationError

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
# A module longer than this is not read: a class that nobody finds is refused, which is the safe side.
_MAX_SOURCE_BYTES = 1 << 20
_DEEPEST = 10  # from a class to its base to that one's base


def split_reference(reference: str) -> tuple[str, str]:
    """Return module and object of ``module:object``.

    Raises
    ------
    ConfigurationError
        If it is not written so, or the module is one of Python's own, which declares nothing of the user's.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ConfigurationError(f"{reference[:200]!r}: expected module:object, such as my_fleet.strategies:Careful")
    module, name = found.groups()
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(f"{reference!r}: {module} is a module of Python itself; name one of your own")
    return module, name


def subclass(reference: str, bases: Sequence[str]) -> type[object]:
    """Import the class that ``module:Class`` names, which must lie below one of some bases.

    Parameters
    ----------
    bases
        By dotted name, the module's and the class's; a module that is loaded has them.

    Raises
    ------
    ConfigurationError
        If there is no such class, or it is not a subclass. A module that was not loaded before is not loaded
        then either, as far as its source tells: the class must be declared there with its base, not made while it runs.
    """
    module, name = split_reference(reference)
    expected = " or ".join(bases)
    roots = {base.rpartition(".")[0] for base in bases}
    # A loaded module has run already, so there is nothing left to protect.
    if module not in sys.modules and not _is_below(module, name, roots, _DEEPEST):
        raise ConfigurationError(
            f"{reference!r}: no source found that declares class {name} below {expected}; it was not imported. Is it installed "
            "here, and does its class statement name its base?"
        )
    found = _imported(reference, module, name)
    kinds = tuple(kind for kind in map(_loaded, bases) if kind is not None)
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise ConfigurationError(f"{reference!r}: is not a subclass of {expected}")
    return found


def function(reference: str) -> Callable[..., Any]:
    """Import the function that ``module:function`` names; raises `ConfigurationError` if its module declares none."""
    module, name = split_reference(reference)
    if module not in sys.modules and not any(
        isinstance(statement, ast.FunctionDef) and statement.name == name for statement in _statements(module)
    ):
        raise ConfigurationError(f"{reference!r}: no source found that declares function {name}; it was not imported")
    found = _imported(reference, module, name)
    # `__module__`, so that a name that the module only imported (os.system, say) is not called.
    if not callable(found) or isinstance(found, type) or getattr(found, "__module__", None) != module:
        raise ConfigurationError(f"{reference!r}: is not a function of that module's own")
    declared: Callable[..., Any] = found
    return declared


def _imported(reference: str, module: str, name: str) -> object:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{reference!r}: cannot be imported ({error})") from error


def _loaded(dotted: str) -> type[object] | None:
    module, _, name = dotted.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return kind if isinstance(kind, type) else None


def _is_below(module: str, name: str, roots: set[str], left: int) -> bool:
    """Whether the sources say that a module's class is, or inherits from, a class of one of the ``roots``."""
    if any(module == root or module.startswith(f"{root}.") for root in roots):
        return True
    known: dict[str, str] = {}  # what a name of the module stands for, dotted
    for statement in _statements(module) if left else ():
        match statement:
            case ast.Import(names=aliases):
                known |= {
                    a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                    for a in aliases
                }
            case ast.ImportFrom(module=source, names=aliases, level=level):
                origin = _absolute(module, source or "", level)
                known |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in aliases}
            case ast.ClassDef(name=declared, bases=bases):
                if declared == name:
                    dotted = [_dotted(base, known) for base in bases]
                    # The bases as they are written: aliases were followed above.
                    return any(
                        _is_below(*one, roots, left - 1) for base in dotted if (one := _parted(base)) is not None
                    )
                known[declared] = f"{module}.{declared}"
    again = _parted(known.get(name, ""))
    return again is not None and again != (module, name) and _is_below(*again, roots, left - 1)


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    match node:
        case ast.Name(id=name):
            return known.get(name, "")
        case ast.Attribute(value=value, attr=name):
            before = _dotted(value, known)
            return f"{before}.{name}" if before else ""
        case ast.Subscript(value=value):  # Base[T]
            return _dotted(value, known)
    return ""


def _parted(dotted: str) -> tuple[str, str] | None:
    module, _, name = dotted.rpartition(".")
    return (module, name) if module else None


def _absolute(module: str, source: str, level: int) -> str:
    if not level:
        return source
    spec = _spec(module)
    parts = (
        module.split(".")
        if spec is not None and spec.submodule_search_locations is not None
        else module.split(".")[:-1]
    )
    package = parts[: len(parts) - (level - 1)]
    return ".".join([*package, source] if source else package)


def _statements(module: str) -> Iterator[ast.stmt]:
    """Yield the statements at the top of a module's source; none if there is no source, or none that can be read."""
    spec = _spec(module)
    if spec is None or not isinstance(spec.loader, SourceFileLoader) or spec.origin is None:
        return
    try:
        with Path(spec.origin).open("rb") as stream:
            yield from ast.parse(stream.read(_MAX_SOURCE_BYTES)).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return


def _spec(module: str) -> ModuleSpec | None:
    """Find a module without importing the packages around it, which `importlib.util.find_spec` would."""
    places: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        # Part by part: importlib.util.find_spec imports the packages on the way.
        spec = PathFinder.find_spec(".".join(parts[:end]), places)
        places = None if spec is None else spec.submodule_search_locations
        if spec is None or (places is None and end < len(parts)):
            return None
    return spec

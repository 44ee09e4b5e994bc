"""Federated learning for AWS IoT Greengrass v2 fleets: what devices and cloud share, and the Python API of docs/python.md."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# Entry points of the group ``fedgrass.api``, as the commands are: this package imports none of the others, and a device pays for
# none of it.
API = (
    "aggregate",
    "create",
    "evaluate",
    "export",
    "load_data",
    "open_bundle",
    "read_report",
    "reports",
    "rounds",
    "rows",
    "simulate",
    "strategy",
    "train",
)


def __getattr__(name: str) -> Any:
    """Import a part of the Python API when it is first asked for."""
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the API is {', '.join(API)}")
    from importlib.metadata import entry_points

    [entry] = entry_points(group="fedgrass.api", name=name)
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        raise ImportError(f"fedgrass.{name} needs {error.name}: docs/python.md says which extra brings it") from error


def __dir__() -> list[str]:
    return [*globals(), *API]

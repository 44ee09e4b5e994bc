"""Federated learning for AWS IoT Greengrass v2 fleets: what devices and cloud share, and the Python API of docs/python.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgrass.authoring.create import create_bundle as create
    from fedgrass.authoring.export import export
    from fedgrass.bundle import Bundle
    from fedgrass.cloud.aggregator.offline import aggregate_folder as aggregate
    from fedgrass.profile.adapt import adapt
    from fedgrass.profiles_api import read_profile
    from fedgrass.round_reports import read_report, reports, rounds, rows
    from fedgrass.simulation.grouped_run import simulate_groups
    from fedgrass.simulation.profiling import simulate_profile
    from fedgrass.simulation.run import simulate
    from fedgrass.strategies import strategy_named as strategy
    from fedgrass.training_api import evaluate, load_data, train

    open_bundle = Bundle.open

__version__ = "0.1.0"

# Imported when it is first asked for: a device does not pay for what it does not use, and nobody needs unused extras.
API = {
    "adapt": "fedgrass.profile.adapt:adapt",
    "aggregate": "fedgrass.cloud.aggregator.offline:aggregate_folder",
    "create": "fedgrass.authoring.create:create_bundle",
    "evaluate": "fedgrass.training_api:evaluate",
    "export": "fedgrass.authoring.export:export",
    "load_data": "fedgrass.training_api:load_data",
    "open_bundle": "fedgrass.bundle:Bundle.open",
    "read_profile": "fedgrass.profiles_api:read_profile",
    "read_report": "fedgrass.round_reports:read_report",
    "reports": "fedgrass.round_reports:reports",
    "rounds": "fedgrass.round_reports:rounds",
    "rows": "fedgrass.round_reports:rows",
    "simulate": "fedgrass.simulation.run:simulate",
    "simulate_groups": "fedgrass.simulation.grouped_run:simulate_groups",
    "simulate_profile": "fedgrass.simulation.profiling:simulate_profile",
    "strategy": "fedgrass.strategies:strategy_named",
    "train": "fedgrass.training_api:train",
}

__all__ = [
    "adapt",
    "aggregate",
    "create",
    "evaluate",
    "export",
    "load_data",
    "open_bundle",
    "read_profile",
    "read_report",
    "reports",
    "rounds",
    "rows",
    "simulate",
    "simulate_groups",
    "simulate_profile",
    "strategy",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a part of the Python API when it is first asked for."""
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the API is {', '.join(API)}")
    from pkgutil import resolve_name

    try:
        # A missing package is an extra that was not installed: say which part of the API wants it, not which import
        # failed.
        return resolve_name(API[name])
    except ModuleNotFoundError as error:
        raise ImportError(f"fedgrass.{name} needs {error.name}: docs/python.md says which extra brings it") from error


def __dir__() -> list[str]:
    return [*globals(), *API]

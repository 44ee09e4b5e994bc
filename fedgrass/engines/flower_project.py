"""A Flower app's directory: its pyproject.toml, and the two apps that it names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgrass.engines.flower_app import run_config_of
from fedgrass.engines.flower_node import Scalar
from fedgrass.errors import ConfigurationError


@dataclass(frozen=True)
class Project:
    """An app.

    Attributes
    ----------
    folder
        Its directory.
    name
        As its pyproject.toml has it.
    server_app, client_app
        Where they are, as ``module:object``.
    run_config
        ``[tool.flwr.app.config]``, and what was laid over it.
    devices
        How many virtual devices its own federations name; None if they name none.
    """

    folder: Path
    name: str
    server_app: str
    client_app: str
    run_config: Mapping[str, Scalar]
    devices: int | None = None

    @classmethod
    def read(cls, folder: Path, given: Mapping[str, Scalar]) -> Project:
        """Read an app's directory.

        Parameters
        ----------
        folder
            The directory.
        given
            Laid over the app's configuration; its names must be the app's.

        Raises
        ------
        ConfigurationError
            If it is no app's, names no components, or has no such setting.
        """
        place = folder / "pyproject.toml"
        if not place.is_file():
            raise ConfigurationError(f"{folder}: expected a Flower app's directory, found no pyproject.toml in it")
        settings = importlib.import_module("flwr.common.config")
        try:
            found = settings.get_project_config(folder)
            flwr = found.get("tool", {}).get("flwr", {})
            components = flwr["app"]["components"]
            server_app, client_app = str(components["serverapp"]), str(components["clientapp"])
            config = run_config_of(folder)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{place}: expected [tool.flwr.app.components] with serverapp and clientapp ({error!r})"
            ) from error
        if unknown := sorted(given.keys() - config.keys()):
            raise ConfigurationError(
                f"{place}: [tool.flwr.app.config] has no {unknown[0]!r}; it has {', '.join(config)}"
            )
        name = str(found.get("project", {}).get("name", folder.resolve().name))
        return cls(folder.resolve(), name, server_app, client_app, {**config, **given}, _devices(flwr))

    def load(self, reference: str, kind: str) -> Any:
        """Import one of the two apps.

        Raises
        ------
        ConfigurationError
            If it cannot be imported: the message names the package that is missing.
        """
        # First, as with `flwr run`: an app's module may be called like an installed one.
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        module, _, name = reference.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # what the app's own modules raise
            raise ConfigurationError(f"{self.folder}: {kind} {reference!r}: {type(error).__name__}: {error}") from error
        if type(found).__name__ != kind:
            raise ConfigurationError(f"{self.folder}: {reference!r} is a {type(found).__name__}, expected a {kind}")
        return found


def require_flower() -> None:
    """Raise `ConfigurationError` if Flower is not installed here."""
    try:
        importlib.import_module("flwr")
    except ImportError as error:
        raise ConfigurationError(
            "Flower is not installed here: pip install --constraint constraints-flower.txt 'fedgrass[flower,simulation]'"
        ) from error


def _devices(flwr: Mapping[str, Any]) -> int | None:
    federations = flwr.get("federations", {})
    chosen = federations.get(federations.get("default", ""), {})
    found = chosen.get("options", {}).get("num-supernodes") if isinstance(chosen, dict) else None
    return found if isinstance(found, int) else None

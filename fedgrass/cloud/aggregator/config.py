"""The job's input: SageMaker's container contract, and the round that its environment names.

https://docs.aws.amazon.com/sagemaker/latest/dg/build-your-own-processing-container.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import ConfigurationError, first_field, first_problem
from fedgrass.logs import Log
from fedgrass.protocol.names import GLOBAL_MODEL, FleetName, RoundNumber

log = Log(__name__)

ML_ROOT = "FEDGRASS_ML_ROOT"
_PREFIX = "FEDGRASS_"
MAX_MESSAGE_BYTES = 1024
UNREADABLE: dict[str, Any] = {}
_INSTANCES = "FEDGRASS_INSTANCES"


class FleetPlace(BaseModel):
    """Where a fleet is in AWS."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    fleet: FleetName
    bucket: str = Field(min_length=3, max_length=63)
    rounds_table: str = Field(min_length=3, max_length=255)
    thing_group_arn: str = Field(pattern=r"^arn:[^:]+:iot:[^:]+:\d{12}:thinggroup/.+$")
    model_component: str = Field(default=GLOBAL_MODEL, pattern=r"^[a-zA-Z0-9-_.]{1,128}$")

    @classmethod
    def checked(cls: type[P], **fields: object) -> P:
        """Return the settings, or raise `ConfigurationError` naming the first that is missing or wrong."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            name = first_field(error)
            raise ConfigurationError(
                f"{_PREFIX}{name.upper()}: found {str(fields.get(name))[:80]!r} ({first_problem(error)}). The state machine "
                "gives it to the job; to run a round's job by hand, clone the round's own"
            ) from error


class JobSettings(FleetPlace):
    """The job's environment: every variable is prefixed with ``FEDGRASS_``."""

    round: RoundNumber
    devices_table: str = Field(min_length=3, max_length=255)
    model_package_group: str | None = Field(default=None, min_length=1, max_length=63)
    image: str | None = Field(default=None, min_length=1, max_length=255)


P = TypeVar("P", bound=FleetPlace)


@dataclass(frozen=True)
class Container:
    """The ``/opt/ml`` folder."""

    root: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Container:
        """Return the folder: ``/opt/ml``, unless ``FEDGRASS_ML_ROOT`` names another."""
        return cls(Path(environment.get(ML_ROOT, "/opt/ml")))

    def settings(self, environment: Mapping[str, str]) -> JobSettings:
        """Return what to do; variables that the process lacks are taken from the job's configuration.

        Raises
        ------
        ConfigurationError
            Naming the first variable that is missing or wrong.
        """
        given = dict(environment)
        if any(_PREFIX + name.upper() not in given for name in JobSettings.model_fields):
            given = {**self._config("processingjobconfig.json").get("Environment", {}), **given}
        fields = {name: given.get(_PREFIX + name.upper()) for name in JobSettings.model_fields}
        return JobSettings.checked(**{name: value for name, value in fields.items() if value is not None})

    def instance(self, environment: Mapping[str, str] | None = None) -> tuple[int, int]:
        """Return which of the job's instances this is, from 0, and how many there are.

        Raises
        ------
        ConfigurationError
            If ``resourceconfig.json`` does not name this instance among its hosts, or cannot be read by an instance that is
            not the only one.
        """
        own, hosts = self.hosts(environment)
        return own, len(hosts)

    def hosts(self, environment: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
        """Return which of the job's instances this is, and the names by which they reach each other.

        Raises
        ------
        ConfigurationError
            As of `instance`.
        """
        # The host names are `algo-1`, `algo-2` …; all instances sort them alike, so each has a number of its own.
        resources, instances = self._config("resourceconfig.json"), (environment or {}).get(_INSTANCES, "1")
        # One of several that took itself for the first would publish a model of its own lanes only.
        if resources is UNREADABLE and instances != "1":
            raise ConfigurationError(
                f"{self.root}/config/resourceconfig.json: cannot be read, and one of {instances} instances has to "
                "know which it is; run the image as root, as it is built"
            )
        hosts, own = sorted(resources.get("hosts", [])), resources.get("current_host")
        if not hosts:
            return 0, ["localhost"]
        if own not in hosts:
            raise ConfigurationError(f"resourceconfig.json: expected current_host among {hosts}, found {own!r}")
        return hosts.index(own), hosts

    def say(self, message: str) -> None:
        """Write the job's exit message, of which SageMaker keeps 1 KB; it is logged in any case."""
        log.log_event("exit_message", message=message)
        path = self.root / "output" / "message"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Cut at 1,024 bytes, then decoded: half a character would make the message invalid UTF-8.
            path.write_bytes(message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode())
        except OSError as error:  # the image's user is not root; a word that cannot be left is no failure of the round
            log.log_event("exit_message_not_written", path=str(path), reason=str(error))

    def _config(self, name: str) -> dict[str, Any]:
        path = self.root / "config" / name
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}  # run outside SageMaker
        except PermissionError as error:  # of an image with a user of its own: the environment has it all
            log.log_event("container_config_not_read", path=str(path), reason=str(error))
            return UNREADABLE
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: cannot be read ({error})") from error
        if not isinstance(document, dict):
            raise ConfigurationError(f"{path}: expected a JSON object")
        return document

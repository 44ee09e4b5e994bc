"""The app's model on its fleet: the first one, which brings the ClientApp's code with it, and what is known of it later.

The code is an archive in the bundle, the same way as any builder's (`fedgrass.builder_archive`): devices run it because their
configuration names its digest, which the operator's deployment puts there. Beside the first model lies ``flower.json``: which app
it is of, and with which configuration, so that the next run knows whether it goes on or begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.builder_archive import add_builder
from fedgrass.bundle import Bundle, Parameters, TensorDescription
from fedgrass.cloud.aggregator.release import FleetClients, publish_model
from fedgrass.cloud.ending.deployment import configure
from fedgrass.engines.flower_node import Scalar
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.names import RUNTIME, model_prefix
from fedgrass.protocol.tables import load_state

_FILE = "flower.json"
# A run's configuration is short; what is longer is no file of ours.
_MOST_BYTES = 1 << 16


class Beginning(BaseModel):
    """What an app's first model is of."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    name: str
    code: str
    run_config: dict[str, bool | int | float | str] = {}
    rounds: int


@dataclass(frozen=True)
class AppModels:
    """The models of an app on a fleet.

    Parameters
    ----------
    clients
        What the fleet's models are reached through.
    archive
        The app's code, packed.
    beginning
        What the run is of.
    """

    clients: FleetClients
    archive: bytes
    beginning: Beginning

    def going_on(self) -> str:
        """Return the major version of the models of this very run, if the fleet is at one of them; else nothing."""
        state = load_state(self.clients.rounds, self.clients.fleet)
        if state.model is None:
            return ""
        major = state.model.version.partition(".")[0]
        return major if self._beginning(major) == self.beginning else ""

    def begin(self, parameters: Parameters, folder: Path, *, replace: bool) -> str:
        """Publish the app's initial model as the fleet's; returns its version.

        Parameters
        ----------
        parameters
            The initial ones.
        folder
            Where the bundle is made.
        replace
            Whether a model that is none of this app's makes way.

        Raises
        ------
        ConfigurationError
            If the fleet has such a model, and it is not to make way.
        """
        state = load_state(self.clients.rounds, self.clients.fleet)
        version = "1.0.0"
        if state.model is not None:
            major = state.model.version.partition(".")[0]
            before = self._beginning(major)
            if not replace and (before is None or before.name != self.beginning.name):
                raise ConfigurationError(
                    f"fleet {self.clients.fleet!r} has a model of something else, {state.model.version}"
                    f"{f' ({before.name})' if before else ''}. --replace-model puts the app's own initial model in its place; "
                    f"`fedgrass model roll-back {state.model.version}` brings it back"
                )
            # Rounds count the middle number, so a new beginning takes the next first one.
            version = f"{int(major) + 1}.0.0"
        bundle = add_builder(_bundle(self.beginning.name, version, parameters, folder), self.archive)
        content = self.beginning.model_dump_json().encode()
        # Before the model: one without it would be taken for something else's.
        self.clients.bucket.write(model_prefix(self.clients.fleet, version) + _FILE, content)
        publish_model(bundle, self.clients)
        return version

    def _beginning(self, major: str) -> Beginning | None:
        key = model_prefix(self.clients.fleet, f"{major}.0.0") + _FILE
        content = self.clients.bucket.read(key, max_bytes=_MOST_BYTES)
        try:
            return None if content is None else Beginning.model_validate_json(content)
        except ValidationError:
            return None


def have_devices_run(clients: FleetClients, digest: str, reference: str) -> None:
    """Deploy the configuration by which the fleet's devices run the code of this digest; safe to repeat.

    Parameters
    ----------
    clients
        The fleet's services.
    digest
        SHA-256 of the code.
    reference
        ``module:object`` of the ClientApp in it.

    Raises
    ------
    ConfigurationError
        If the fleet has no deployment.
    ReleaseError
        If its deployment does not name com.fedgrass.Runtime.
    """
    wanted = {"engine": "flower", "builders": {digest: reference}, "data": {"loader": "own"}}
    if configure(clients.greengrass, clients.thing_group_arn, RUNTIME, wanted) is None:
        raise ConfigurationError(
            f"fleet {clients.fleet!r} has no deployment yet, by which its devices are told what code they may run: make it "
            f"(docs/aws.md), with {json.dumps(wanted)} as the configuration of {RUNTIME}"
        )


def beginning_of(name: str, archive: bytes, run_config: Mapping[str, Scalar], rounds: int) -> Beginning:
    """Return what a run is of: the app's code by its digest, its configuration, and how many rounds."""
    return Beginning(
        name=name,
        code=hashlib.sha256(archive).hexdigest(),
        run_config=json.loads(json.dumps(dict(run_config))),
        rounds=rounds,
    )


def _bundle(name: str, version: str, parameters: Parameters, folder: Path) -> Bundle:
    # An app brings its own data, so nothing is read that these describe.
    x = TensorDescription(name="x", shape=(1,), dtype="float32")
    y = TensorDescription(name="y", shape=(1,), dtype="float32")
    model = NewModel(
        engine="flower",
        name=name,
        version=version,
        parameters=parameters,
        x=x,
        y=y,
        output=y,
        loss="mean_squared_error",
        batch_size=1,
    )
    return new_bundle(folder, model)

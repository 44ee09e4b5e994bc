"""One core device: its parts, wired together."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgrass.files import write_atomically
from fedgrass.local.core_device.builtin import STREAM_MANAGER, TOKEN_EXCHANGE, StreamManagerProcess
from fedgrass.local.core_device.clients import Clients
from fedgrass.local.core_device.component import Specification, State
from fedgrass.local.core_device.configuration import ConfigurationStore
from fedgrass.local.core_device.credentials import TokenExchangeService, kept_failure
from fedgrass.local.core_device.deployment import Deployer, Parts
from fedgrass.local.core_device.environment import Environment
from fedgrass.local.core_device.ipc.authorization import Authorizer
from fedgrass.local.core_device.ipc.configuration import ConfigurationService
from fedgrass.local.core_device.ipc.lifecycle import ComponentUpdates, LifecycleService
from fedgrass.local.core_device.ipc.mqtt_proxy import MqttProxy
from fedgrass.local.core_device.ipc.pubsub import LocalPubSub
from fedgrass.local.core_device.ipc.server import IpcServer, Operation
from fedgrass.local.core_device.jobs import JobChannel
from fedgrass.local.core_device.layout import Layout, SocketPlace
from fedgrass.local.core_device.mqtt import IotCore
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.local.core_device.recipe import platform_attributes
from fedgrass.local.core_device.resolve import Resolver
from fedgrass.local.core_device.scripts import kill_leftovers, read_lifecycle
from fedgrass.local.core_device.status import FleetStatus
from fedgrass.local.core_device.store import ComponentStore
from fedgrass.local.core_device.supervisor import Supervisor
from fedgrass.local.core_device.variables import Places, Variables
from fedgrass.local.recipe import DependencyType, Recipe
from fedgrass.logs import log_event


@dataclass(frozen=True)
class Settings:
    """What a device is told when it is started."""

    root: Path
    thing: str
    endpoint_url: str
    mqtt_host: str
    mqtt_port: int
    region: str
    nucleus: Nucleus = CLASSIC


class Tokens:
    """The token of each component, which is its identity towards IPC, credentials and Stream Manager."""

    def __init__(self) -> None:
        self._by_component: dict[str, str] = {}

    def of(self, component: str) -> str:
        """Return the component's token, the same for as long as the device runs."""
        return self._by_component.setdefault(component, secrets.token_hex(16))

    def forget(self) -> None:
        """Make every token void."""
        self._by_component.clear()

    def component(self, token: str) -> str | None:
        """Return whose token it is."""
        # In constant time for each: the token is all that tells who is speaking.
        for component, known in self._by_component.items():
            if secrets.compare_digest(known.encode(), token.encode()):
                return component
        return None


class CoreDevice:
    """Runs from :meth:`start` to :meth:`stop` in one event loop."""

    def __init__(self, settings: Settings, clients: Clients, inherited: Mapping[str, str]) -> None:
        self._settings = settings
        self.layout = Layout(settings.root)
        self.layout.create()
        self._socket = SocketPlace(settings.root)
        self._tokens = Tokens()
        nucleus = self._nucleus = settings.nucleus
        self._environment = Environment(
            inherited,
            nucleus.version,
            settings.thing,
            settings.region,
            settings.endpoint_url,
            self._socket.path,
            settings.root,
        )
        self._attributes = platform_attributes(nucleus.runtime)
        self.configuration = ConfigurationStore(self.layout.configuration, max_leaf=nucleus.max_leaf)
        self.supervisor = Supervisor(
            self.layout,
            environment=self._environment_of,
            builtin=self._builtin_state,
            changed=self._changed,
            nucleus=nucleus,
        )
        self.iot_core = IotCore(settings.thing, settings.mqtt_host, settings.mqtt_port, nucleus=nucleus)
        self.updates = ComponentUpdates()
        self._credentials = TokenExchangeService(
            clients.credentials.get, self._tokens.component, keeps_failure=self._keeps_failed_credentials
        )
        self.streams = StreamManagerProcess(
            self.layout.streams,
            self.layout.log(STREAM_MANAGER),
            environment=self._stream_manager_environment,
            changed=lambda: self.supervisor.dependency_changed(STREAM_MANAGER),
        )
        self.deployer = Deployer(
            Parts(
                layout=self.layout,
                resolver=Resolver(clients.greengrass, self._attributes, nucleus),
                store=ComponentStore(self.layout, clients.s3, nucleus),
                configuration=self.configuration,
                supervisor=self.supervisor,
                updates=self.updates,
                specify=self._specify,
                start_builtin=self._start_builtin,
                nucleus=nucleus,
            )
        )
        self._status = FleetStatus(
            settings.thing, self.iot_core, self.supervisor, nucleus=nucleus, active=lambda: self.deployer.active
        )
        self._jobs = JobChannel(settings.thing, self.iot_core, self.deployer, finished=self._deployed, nucleus=nucleus)
        self._ipc = IpcServer(
            self._socket.path, self._tokens.component, self._operations(), nucleus, token_of=self._token_of
        )

    async def start(self) -> None:
        """Serve components, start those of the last deployment, and take part in the fleet."""
        # Before anything is started: components of a device that was killed still hold their ports and files.
        if leftovers := kill_leftovers(self.layout.root):
            log_event("leftovers_killed", processes=leftovers)
        await self._ipc.start()
        await self._credentials.start()
        self._status.start()
        self._jobs.start()
        # Before the link: what was in force starts without the cloud, too.
        await self.deployer.resume()
        self.iot_core.start()
        description = {"pid": os.getpid(), "thing": self._settings.thing, "ipc_socket": str(self._socket.path)}
        # Whoever waits for this file may connect at once: the socket listens by now.
        write_atomically(self.layout.root / "device.json", json.dumps(description).encode())
        log_event("device_started", root=str(self.layout.root))

    async def stop(self) -> None:
        """Stop every component and leave nothing behind but the root's content."""
        log_event("device_stopping")
        self._status.stop()
        await self._jobs.stop()
        # Components first and what serves them after: their shutdown scripts may still use IPC and credentials.
        await self.supervisor.stop()
        await self.streams.stop()
        await self._ipc.stop()
        await self._credentials.stop()
        await self.iot_core.stop()
        self._socket.remove()
        (self.layout.root / "device.json").unlink(missing_ok=True)
        log_event("device_stopped")

    async def restart_ipc(self) -> None:
        """Do as nucleus lite when its IPC daemon restarts: connections end, and every token is void."""
        log_event("ipc_restarted")
        await self._ipc.stop()
        self._tokens.forget()
        await self._ipc.start()

    def restart_mqtt(self) -> None:
        """Do as nucleus lite when its MQTT daemon restarts: components' subscriptions are gone, and nobody tells them."""
        log_event("mqtt_restarted")
        self.iot_core.forget_components()

    def _token_of(self, component: str, process: int) -> str | None:
        found = self.supervisor.components.get(component)
        with contextlib.suppress(ProcessLookupError):
            # A name can be claimed by anybody; the process group of a component's script cannot.
            if found is not None and os.getpgid(process) == found.process_group:
                return self._tokens.of(component)
        return None

    def _operations(self) -> dict[str, Operation]:
        nucleus = self._nucleus
        authorizer = Authorizer(self.configuration.get, max_bytes=nucleus.max_access_control)
        return {
            **LocalPubSub(authorizer, nucleus).operations(),
            **MqttProxy(authorizer, self.iot_core, nucleus).operations(),
            **ConfigurationService(self.configuration).operations(),
            **LifecycleService(self.supervisor, self.configuration).operations(),
            **self.updates.operations(),
        }

    def _specify(self, recipes: Sequence[Recipe]) -> dict[str, Specification]:
        versions = {recipe.name: recipe.version for recipe in recipes}

        def places(name: str) -> Places:
            version = versions.get(name, "")
            return Places(
                self.layout.artifacts(name, version), self.layout.unarchived(name, version), self.layout.work(name)
            )

        return {recipe.name: self._specify_one(recipe, places) for recipe in recipes}

    def _specify_one(self, recipe: Recipe, places: Callable[[str], Places]) -> Specification:
        nucleus, configuration = self._nucleus, self.configuration.get
        variables = Variables(
            component=recipe.name,
            thing=self._settings.thing,
            root=self.layout.root,
            dependencies=frozenset(recipe.dependencies if nucleus.cross_component_variables else ()),
            places=places,
            configuration_of=configuration,
            truncates=nucleus.truncates_scripts,
        )
        manifest = recipe.manifest(
            self._attributes,
            requires_runtime=nucleus.requires_runtime,
            requires_artifacts=nucleus.requires_artifacts,
        )
        return Specification(
            recipe.name,
            recipe.version,
            read_lifecycle(variables.interpolate(manifest.lifecycle), nucleus),
            {name: dependency.type for name, dependency in recipe.dependencies.items()},
        )

    def _environment_of(self, component: str) -> dict[str, str]:
        # Addresses of the built-in services only for components that depend on them.
        environment = self._environment.of(self._tokens.of(component))
        needs = self._needs(component)
        if TOKEN_EXCHANGE in (self._needs(component, hard=True) if self._nucleus.credentials_come_late else needs):
            environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = self._credentials.url
        if STREAM_MANAGER in needs:
            environment["STREAM_MANAGER_SERVER_PORT"] = str(self.streams.port)
        return environment

    def _stream_manager_environment(self) -> dict[str, str]:
        return {
            **self._environment.of(self._tokens.of(STREAM_MANAGER)),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self._credentials.url,
        }

    def _needs(self, component: str, *, hard: bool = False) -> set[str]:
        """Return everything that ``component`` depends on, or depends on HARD, through others too."""
        needs: set[str] = set()
        queue = [component]
        while queue:
            found = self.supervisor.components.get(queue.pop())
            dependencies = found.specification.dependencies if found else {}
            new = {name for name, kind in dependencies.items() if kind is DependencyType.HARD or not hard} - needs
            needs |= new
            queue.extend(new)
        return needs

    def _keeps_failed_credentials(self) -> float:
        return kept_failure(self.configuration.get(TOKEN_EXCHANGE), self._nucleus.keeps_failed_credentials)

    def _builtin_state(self, name: str) -> State | None:
        if name == STREAM_MANAGER:
            return self.streams.state
        return State.RUNNING if name in (self._nucleus.name, TOKEN_EXCHANGE) else None

    async def _start_builtin(self, needed: frozenset[str]) -> None:
        if self._nucleus.credentials_come_late and TOKEN_EXCHANGE in needed:
            self.configuration.merge(TOKEN_EXCHANGE, {"activePort": self._credentials.port}, time.time() * 1000)
        if STREAM_MANAGER in needed:
            await self.streams.start()

    def _changed(self) -> None:
        self._status.changed()

    def _deployed(self, deployment: str) -> None:
        self._status.complete("THING_GROUP_DEPLOYMENT", deployment)

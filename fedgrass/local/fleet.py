"""A whole fleet on this machine: the local AWS with our stack deployed, the components published, and core devices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import boto3

from fedgrass.checkout import build_tool
from fedgrass.cloud.infrastructure.components import ComponentPublisher, Published
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.cloudformation import StackOutputs
from fedgrass.errors import ConfigurationError
from fedgrass.local.aws.client import LocalAwsProcess, Starting
from fedgrass.local.aws.client import begin as begin_aws
from fedgrass.local.core_device.builtin import TOKEN_EXCHANGE
from fedgrass.local.processes import signal_group, spawn, stop
from fedgrass.protocol.names import HEARTBEAT, RUNTIME, SUITE

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table as DynamoTable

_COMPONENT_BUCKET = "fedgrass-components"


@dataclass
class LocalDevice:
    """A core device's process and its folder."""

    thing: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def greengrass_root(self) -> Path:
        """What a real device calls ``/greengrass/v2``."""
        return self.folder / "greengrass"

    @property
    def store(self) -> Path:
        """ModelDeployer's folder; the application's models are under it."""
        return self.greengrass_root / "work" / "com.fedgrass.ModelDeployer"


class _LocalSession(boto3.session.Session):
    """A session whose clients go to the local endpoint: boto3 itself takes one per client, or for the whole process."""

    def __init__(self, aws: LocalAwsProcess) -> None:
        variables = aws.environment()
        super().__init__(
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=aws.region,
        )
        self._endpoint_url = aws.endpoint_url

    def client(self, service_name: str, **arguments: Any) -> Any:  # type: ignore[override]  # for any name
        """Return a client of the local account."""
        connect: Callable[..., Any] = super().client
        return connect(service_name, **{"endpoint_url": self._endpoint_url, **arguments})

    def resource(self, service_name: str, **arguments: Any) -> Any:  # type: ignore[override]
        """Return a resource of the local account."""
        connect: Callable[..., Any] = super().resource
        return connect(service_name, **{"endpoint_url": self._endpoint_url, **arguments})


class LocalFleet:
    """Everything that a fleet needs, started in order and stopped in the opposite one.

    Parameters
    ----------
    folder
        Holds the account's logs and the devices' folders; what an earlier run left there is the caller's to remove.
    fleet
        The thing group's name.
    device_environment
        Variables for the core devices beside those of the account, such as pip's.
    mqtt
        ``HOST:PORT`` of a broker to stand for IoT Core; an embedded one if None.
    """

    def __init__(
        self, folder: Path, *, fleet: str, device_environment: dict[str, str] | None = None, mqtt: str | None = None
    ) -> None:
        self.folder = folder.resolve()
        self.fleet = fleet
        self.devices: dict[str, LocalDevice] = {}
        self._device_environment = device_environment or {}
        self._mqtt = mqtt
        self._stack = contextlib.ExitStack()
        self._account: Starting | None = None
        self._built: list[Path] = []
        self.aws: LocalAwsProcess
        self.outputs: StackOutputs

    def __enter__(self) -> LocalFleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def accounts(self) -> Path:
        """Folder by which further accounts, such as silos', find this one."""
        return self.folder / "accounts"

    @cached_property
    def session(self) -> boto3.session.Session:
        """A boto3 session of the account."""
        return _LocalSession(self.aws)

    def table(self, name: str) -> DynamoTable:
        """Return a boto3 ``Table``."""
        return self.session.resource("dynamodb").Table(name)

    def begin_account(self) -> Starting:
        """Start the local AWS's process, which takes seconds to come up; `start_account` waits for it."""
        if self._account is None:
            begun = begin_aws(self.folder / "aws", mqtt=self._mqtt, accounts=self.accounts)
            self._account = self._stack.enter_context(begun)
        return self._account

    def start_account(self) -> None:
        """Start the local AWS, unless that is done, and deploy the fleet's stack to it."""
        self.aws = self.begin_account().ready()
        self.outputs = deploy(self.session, fleet=self.fleet, dependencies=False)

    def build_components(self) -> list[Path]:
        """Build every component, unless that is done; returns their folders, the umbrella's last."""
        if not self._built:
            tool = build_tool()
            # Into this fleet's own folder: another demo in the same checkout may build at the same time.
            folder = self.folder / "built"
            self._built = [tool.build(project, folder / str(number)) for number, project in enumerate(tool.projects())]
        return self._built

    def publish_components(self) -> list[Published]:
        """Publish every component, the umbrella last."""
        publisher = ComponentPublisher(
            greengrass=self.aws.client("greengrassv2"),
            s3=self.aws.client("s3"),
            account=self.aws.account,
            region=self.aws.region,
        )
        return [publisher.publish(built, bucket=_COMPONENT_BUCKET) for built in self.build_components()]

    def start_device(self, thing: str) -> LocalDevice:
        """Register a thing in the fleet's group and start its core device; started again, it resumes."""
        iot = self.aws.client("iot")
        iot.create_thing(thingName=thing)
        iot.add_thing_to_thing_group(thingName=thing, thingGroupName=self.fleet)
        # No venv can be made below a folder with a colon in its name, which things' names may have.
        folder = self.folder / "devices" / thing.replace(":", "%3A")
        folder.mkdir(parents=True, exist_ok=True)
        argv = [*self.device_command(thing), "--root", str(folder / "greengrass"), "--thing", thing]
        argv += ["--role-arn", self.outputs.token_exchange_role_arn]
        environment = {**os.environ, **self.aws.environment(), **self._device_environment}
        with (folder / "core_device.log").open("ab") as log:
            process = spawn(argv, env=environment, stdout=log, stderr=log)
        self.devices[thing] = device = LocalDevice(thing, folder, process)
        # After the account on the stack, and so ended before it: devices say goodbye to a broker that is still there.
        self._stack.callback(stop, process)
        return device

    def device_command(self, thing: str) -> list[str]:  # noqa: ARG002 - for those who override it
        """Return the command that runs a core device: which module, where it finds the account, which nucleus."""
        where = ["--endpoint-url", self.aws.endpoint_url, "--mqtt", self.aws.mqtt]
        return [sys.executable, "-m", "fedgrass.local.core_device", *where]

    def check_devices(self) -> None:
        """Raise `ConfigurationError` with a core device's last words if one has ended."""
        for device in self.devices.values():
            if device.process.poll() is not None:
                log = device.folder / "core_device.log"
                raise ConfigurationError(
                    f"core device {device.thing} ended with code {device.process.returncode}: {log.read_text()[-1500:]}"
                )

    def deploy_suite(
        self, *, data: str, heartbeat_seconds: float, more: dict[str, dict[str, Any]] | None = None
    ) -> str:
        """Create the deployment of the suite to the thing group, as an operator does in the console.

        Parameters
        ----------
        data
            Path of each device's ``.npz``; ``$AWS_IOT_THING_NAME`` in it is filled in on the device.
        more
            Further entries of the deployment's components.

        Returns
        -------
        str
            The deployment's id.
        """
        settings = {"fleet": self.fleet, "data": {"loader": "npz", "path": data}}
        components: dict[str, dict[str, Any]] = {
            SUITE: {"componentVersion": "1.0.0"},
            RUNTIME: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": json.dumps(settings)}},
            HEARTBEAT: {
                "componentVersion": "1.0.0",
                "configurationUpdate": {"merge": json.dumps({"intervalSeconds": str(heartbeat_seconds)})},
            },
            **self.nucleus_components(),
            **(more or {}),
        }
        created = self.aws.client("greengrassv2").create_deployment(
            targetArn=self.outputs.thing_group_arn, deploymentName=f"fedgrass-{self.fleet}", components=components
        )
        return str(created["deploymentId"])

    def nucleus_components(self) -> dict[str, dict[str, Any]]:
        """Return the deployment's entries for what comes with the classic nucleus; for nucleus lite they are left out."""
        # By default it keeps a failed connection for 300 s, and no credentials reach an upload for as long (docs/aws.md).
        retry = {"credentialRetryInSec": {"unknownError": 10}}
        return {TOKEN_EXCHANGE: {"componentVersion": "2.0.3", "configurationUpdate": {"merge": json.dumps(retry)}}}

    def stop(self) -> None:
        """Stop the devices and then the account. Safe to repeat."""
        # All at once: each takes its time to say goodbye, and is waited for below.
        for device in self.devices.values():
            if device.process.poll() is None:
                signal_group(device.process.pid, signal.SIGTERM)
        self._stack.close()
        self._account = None
        self.devices.clear()

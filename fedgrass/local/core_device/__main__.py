"""Run one local core device: ``python -m fedgrass.local.core_device --help``."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from fedgrass.errors import ConfigurationError, FedgrassError
from fedgrass.local.core_device import clients
from fedgrass.local.core_device.device import CoreDevice, Settings
from fedgrass.local.core_device.layout import sole_owner
from fedgrass.local.core_device.logs import configure_device
from fedgrass.local.core_device.nucleus import CLASSIC, LITE

_ROLE = "arn:aws:iam::123456789012:role/GreengrassV2TokenExchangeRole"


class Kind(str, Enum):
    """Names of the nuclei on the command line."""

    CLASSIC = "classic"
    LITE = "lite"


_NUCLEI = {Kind.CLASSIC: CLASSIC, Kind.LITE: LITE}


def main(
    root: Annotated[Path, typer.Option(help="Folder of the device; used again, it resumes what ran there.")],
    thing: Annotated[str, typer.Option(help="Thing name of the device.")],
    endpoint_url: Annotated[str, typer.Option(help="Endpoint that serves the AWS APIs.", envvar="AWS_ENDPOINT_URL")],
    mqtt: Annotated[str, typer.Option(help="HOST:PORT of the MQTT broker that stands for AWS IoT Core.")],
    role_arn: Annotated[str, typer.Option(help="Role whose credentials the components get.")] = _ROLE,
    nucleus: Annotated[Kind, typer.Option(help="Nucleus whose features and limits to imitate.")] = Kind.CLASSIC,
    patience: Annotated[
        Optional[float],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            help="Seconds that a deployment waits for a component, where the nucleus has a limit (lite: 300)."
        ),
    ] = None,
    region: Annotated[str, typer.Option(help="AWS Region.", envvar="AWS_REGION")] = "us-east-1",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr too, and more.")] = False,
) -> None:
    """Stand in for a Greengrass v2 core device.

    It takes its deployments from the thing's IoT jobs, and runs until SIGTERM or Ctrl-C. Logs are in ROOT/logs: the
    device's own in greengrass.log, each component's under its name. SIGUSR1 has it do as nucleus lite when its IPC daemon
    restarts, SIGUSR2 as when its MQTT daemon does.
    """
    try:
        host, _, port = mqtt.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(f"--mqtt: expected HOST:PORT, found {mqtt!r}")
        kind = _NUCLEI[nucleus]
        if patience is not None:
            kind = replace(kind, patience=patience)
        settings = Settings(root.resolve(), thing, endpoint_url, host, int(port), region, kind)
        configure_device(settings.root / "logs" / "greengrass.log", thing=thing, verbose=verbose)
        # Two devices on one root would kill each other's components as leftovers.
        with sole_owner(settings.root):
            asyncio.run(_serve(settings, role_arn))
    except FedgrassError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


async def _serve(settings: Settings, role_arn: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    connected = clients.connect(settings.endpoint_url, region=settings.region, role_arn=role_arn, thing=settings.thing)
    device = CoreDevice(settings, connected, os.environ)
    loop, background = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    # Held in a set, for the loop keeps weak references to its tasks.
    loop.add_signal_handler(signal.SIGUSR1, lambda: background.add(loop.create_task(device.restart_ipc())))
    loop.add_signal_handler(signal.SIGUSR2, device.restart_mqtt)
    try:
        await device.start()
        await stopping.wait()
    finally:
        await device.stop()


if __name__ == "__main__":
    typer.run(main)

"""``./scripts/demo``: a whole federated fleet on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedgrass.cli import render
from fedgrass.errors import FedgrassError
from fedgrass.local.demo import report
from fedgrass.local.demo.run import Demo, DemoOptions
from fedgrass.local.processes import spawn, stop
from fedgrass.locks import sole_user

_STATE = Path(os.environ.get("FEDGRASS_STATE", ".fedgrass")).resolve()
_BEFORE_SETUP = "FEDGRASS_SETUP_STARTED"


def main(
    devices: Annotated[int, typer.Option(min=2, max=20, help="Local core devices, each a separate process.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Federated rounds.")] = 5,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the data's division, and of the trainings to compare with."),
    ] = 0,
    report_folder: Annotated[
        Path, typer.Option("--report", help="Where report.json, chart.png and index.html go.")
    ] = Path("demo-report"),
    mqtt: Annotated[
        str | None,
        typer.Option(envvar="FEDGRASS_MQTT", help="HOST:PORT of a broker, such as mosquitto, to use as IoT Core."),
    ] = None,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure", help="Secure aggregation: three of the devices are helpers, and the cloud sees sums only."
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up afterwards, until Ctrl-C.")] = False,
) -> None:
    """Run a federated fleet on this machine, on real images, with every part real in kind.

    It starts a local stand-in for AWS and local Greengrass core devices, builds and publishes the components, creates the
    deployment to the thing group, and runs the rounds: each device trains on its own handwritten digits, its update
    travels through Stream Manager to S3, a Processing job averages the updates, and the new model comes back as a
    component version. Everything stops when it is done.
    """
    console = render.console()
    # Wall clock, for the start was noted by the shell script that came before this process.
    setup_seconds = time.time() - float(os.environ.get(_BEFORE_SETUP, time.time()))
    try:
        _be_interruptible()
        # Before the folder is emptied: it may be another demo's that runs.
        with sole_user(_STATE / "demo.lock", "the demo"), contextlib.ExitStack() as stack:
            folder = _STATE / "demo"
            stack.enter_context(emptied(folder))
            demo = stack.enter_context(
                Demo(DemoOptions(devices, rounds, seed, mqtt, secure), folder, cache=_STATE / "wheels", console=console)
            )
            result = demo.run(setup_seconds=setup_seconds)
            report.write(result, report_folder)
            demo.show(result)
            console.print(f"Report: [bold]{report_folder / 'index.html'}[/] (and report.json, chart.png beside it)")
            if keep:
                demo.show_around()
                signal.pause()
    except FedgrassError as error:
        console.print(f"[bold red]{error.code}[/]: {error}", highlight=False)
        console.print(f"Logs: {_STATE / 'demo'}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was left running.")
        sys.exit(130)


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """Set aside what an earlier run left in a folder, and have a process delete it: devices' packages are 20,000 files.

    What an interrupt leaves of it, the next run deletes.
    """
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.old.{os.getpid()}.{time.time_ns()}"))
    old = [str(one) for one in folder.parent.glob(f"{folder.name}.old.*")]
    process = spawn(["rm", "-rf", *old])
    try:
        yield
    finally:
        stop(process)


def _be_interruptible() -> None:
    """Make SIGINT and SIGTERM raise `KeyboardInterrupt` here, once."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job inherits it ignored
        signal.signal(number, _interrupt)
    # For `_unraisable`, which raises the interrupt once more by an alarm.
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _unraisable


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not cut the orderly end short
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Raise an interrupt again that came while a finalizer ran: Python drops what is raised there."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(found)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()

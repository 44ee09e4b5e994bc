"""``python -m fedgrass.local.aws``: an AWS account on this machine, until it is told to stop."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedgrass.errors import ConfigurationError, FedgrassError
from fedgrass.local.aws import lookups
from fedgrass.logs import configure, log_event


def main(
    state: Annotated[Path, typer.Option(help="Folder for the ready file (endpoint.json), logs and job folders.")],
    port: Annotated[int, typer.Option(help="Port of the endpoint; 0 takes a free one.")] = 0,
    mqtt: Annotated[str, typer.Option(help="HOST:PORT of a broker, such as mosquitto; else one is embedded.")] = "",
    processing_command: Annotated[
        str, typer.Option(help="What a Processing job without an entry point runs, in place of its image.")
    ] = "python -m fedgrass.cloud.aggregator",
    busy: Annotated[
        float,
        typer.Option(help="Share of requests that are throttled, or meet another's transaction.", min=0, max=0.5),
    ] = 0.0,
    lag: Annotated[
        float, typer.Option(help="Seconds for which IoT holds what was detached, and refuses to delete it.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Fixes which requests --busy meets.")] = 0,
    accounts: Annotated[
        Path | None,
        typer.Option(help="Folder by which several accounts find each other; MOTO_ACCOUNT_ID gives this one's number."),
    ] = None,
    stopped_clock: Annotated[
        bool, typer.Option("--stopped-clock", help="Schedules are due only when the account's time is advanced.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also log moto and every request.")] = False,
) -> None:
    """Serve an AWS account on loopback: point AWS_ENDPOINT_URL at it, from any SDK, the AWS CLI or the GDK.

    When STATE/endpoint.json appears, all is up. SIGTERM or Ctrl-C stops it and everything it started. What was
    created is in memory only.
    """
    # Before anything starts: a signal during the start waits in the socket, and ends the account once it is up.
    stopping = _catch(signal.SIGTERM, signal.SIGINT)
    _log(state, verbose=verbose)
    lookups.shorten()
    # Late: it imports moto.
    from fedgrass.local.aws.server import LocalAws

    account = LocalAws(
        state,
        port=port,
        mqtt=parse_address(mqtt),
        processing_command=shlex.split(processing_command),
        busy=busy,
        lag=lag,
        seed=seed,
        accounts=accounts,
        stopped_clock=stopped_clock,
    )
    ready = account.start()
    # The keys let anybody in, so they stand in the ready file alone, which has the mode 0600.
    log_event("aws_ready", endpoint={name: value for name, value in ready.items() if not name.endswith("_key")})
    stopping.recv(1)
    account.stop()


def _catch(*numbers: signal.Signals) -> socket.socket:
    """Return a socket from which a byte can be read when one of the signals has come.

    Whichever thread the kernel gives the signal to: a handler would wait until the main thread wakes up.
    """
    reader, writer = socket.socketpair()
    # As set_wakeup_fd demands: Python's own C handler writes there.
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    # The handler does nothing, but with none at all the kernel's default would end the process.
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def parse_address(text: str) -> tuple[str, int] | None:
    """Return host and port of ``HOST:PORT``, or None if the text is empty.

    Raises
    ------
    ConfigurationError
        If it is something else.
    """
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError(f"--mqtt takes HOST:PORT, such as 127.0.0.1:1883; found {text!r}.")
    return host, int(port)


def _log(state: Path, *, verbose: bool) -> None:
    logs = state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(logs / "aws.log")
    console = logging.StreamHandler()
    console.addFilter(lambda record: verbose or record.name in {"fedgrass", "py.warnings"})
    configure(file, console, level=logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)  # moto warns of resource types that it skips
    # These log each packet and each change of a connection's state at a lower level.
    for chatty in ("amqtt", "transitions", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def run() -> None:
    """Run the command and end the process at once: moto's threads cannot be asked to."""
    code = 0
    try:
        typer.run(main)
    except FedgrassError as error:
        log_event("aws_failed", reason=str(error))
        code = 1
    except SystemExit as leaving:  # --help, or a wrong option
        code = leaving.code if isinstance(leaving.code, int) else 1
    # os._exit flushes nothing: whatever is still buffered has to go out here.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()

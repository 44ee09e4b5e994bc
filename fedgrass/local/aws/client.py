"""Start the local AWS as a separate process, from the demo, a script or a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

import boto3

from fedgrass.errors import ConfigurationError
from fedgrass.local.aws.account import Keys, client, client_environment
from fedgrass.local.aws.advance import advance
from fedgrass.local.processes import spawn, stop, wait_until

if TYPE_CHECKING:
    from typing_extensions import Unpack

_READY_FILE = "endpoint.json"


class LocalAwsProcess:
    """A running ``python -m fedgrass.local.aws``; leaving its ``with`` block stops it."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, ready: Mapping[str, object]) -> None:
        self.process = process
        self.state = state
        self.endpoint_url = str(ready["endpoint_url"])
        self.mqtt = f"{ready['mqtt_host']}:{ready['mqtt_port']}"
        self.region = str(ready["region"])
        self.account = str(ready["account"])
        self._keys = Keys(str(ready["access_key"]), str(ready["secret_key"]))

    def environment(self) -> dict[str, str]:
        """Return the variables with which AWS SDKs, the CLI and the GDK use this account."""
        return dict(client_environment(self.endpoint_url, self._keys))

    def client(self, service: str) -> Any:
        """Return a boto3 client of this account."""
        return client(service, self.endpoint_url, self._keys)

    def resource(self, service: str) -> Any:
        """Return a boto3 resource of this account."""
        connect: Callable[..., Any] = boto3.resource  # typed for names that are written out
        return connect(
            service,
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self._keys.access_key,
            aws_secret_access_key=self._keys.secret_key,
        )

    def advance(self, seconds: float) -> datetime:
        """Let time pass for schedules and alarms, with all that becomes due in it; return the account's time then."""
        return advance(self.endpoint_url, self._keys.access_key, seconds)

    def stop(self) -> None:
        """End the process and everything it started."""
        stop(self.process)

    def __enter__(self) -> LocalAwsProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Starting:
    """A local AWS that comes up, while its caller does something else; leaving its ``with`` block stops it."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, log: Path) -> None:
        self._process = process
        self._state = state
        self._log = log

    def ready(self, timeout: float = 300.0) -> LocalAwsProcess:
        """Wait until all of it is up; raises `ConfigurationError` as `start` does."""
        ready, process = self._state / _READY_FILE, self._process
        wait_until(lambda: ready.exists() or process.poll() is not None, seconds=timeout, pause=0.02)
        if not ready.exists():
            state_of = f"ended with code {process.returncode}" if process.poll() is not None else "is not ready"
            stop(process)
            raise ConfigurationError(
                f"The local AWS {state_of} after {timeout:.0f} s or less. It wrote: {self._log.read_text()[-2000:]}"
            )
        return LocalAwsProcess(process, self._state, json.loads(ready.read_text()))

    def __enter__(self) -> Starting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._process)


class Options(TypedDict, total=False):
    """What `begin` takes beside the folder."""

    mqtt: str | None
    processing_command: str | None
    busy: float
    lag: float
    account: str
    accounts: Path | None
    stopped_clock: bool


def start(state: Path, *, timeout: float = 300.0, **options: Unpack[Options]) -> LocalAwsProcess:
    """Start the local AWS and wait until all of it is up.

    Parameters
    ----------
    state, options
        As of `begin`.
    timeout
        Seconds to wait.

    Raises
    ------
    ConfigurationError
        If it ends or is not ready in time; the message holds what it last wrote.
    """
    return begin(state, **options).ready(timeout)


def begin(
    state: Path,
    *,
    mqtt: str | None = None,
    processing_command: str | None = None,
    busy: float = 0.0,
    lag: float = 0.0,
    account: str = "",
    accounts: Path | None = None,
    stopped_clock: bool = False,
) -> Starting:
    """Start the local AWS's process and return at once.

    Parameters
    ----------
    state
        Folder for its ready file and logs.
    mqtt
        ``HOST:PORT`` of a broker to use; an embedded one if None.
    processing_command
        What a Processing job whose request names no entry point runs; the aggregator if None.
    busy, lag
        As the options of that name: how busy an account to be.
    account
        Another number than the usual one.
    accounts
        Folder by which several accounts find each other.
    stopped_clock
        Whether schedules are due only when `LocalAwsProcess.advance` says so.
    """
    state.mkdir(parents=True, exist_ok=True)
    # One that an earlier process left would be taken for this one's.
    (state / _READY_FILE).unlink(missing_ok=True)
    log = state / "stderr.log"
    argv = [sys.executable, "-m", "fedgrass.local.aws", "--state", str(state.resolve())]
    argv += ["--mqtt", mqtt] if mqtt else []
    argv += ["--processing-command", processing_command] if processing_command else []
    argv += ["--busy", str(busy), "--lag", str(lag)]
    argv += ["--accounts", str(accounts.resolve())] if accounts else []
    argv += ["--stopped-clock"] if stopped_clock else []
    environment = {**os.environ, **({"MOTO_ACCOUNT_ID": account} if account else {})}
    # Into a file and not a pipe: nobody would read it, and a full pipe stops the process.
    with log.open("wb") as stderr:
        process = spawn(argv, env=environment, stdout=stderr, stderr=stderr)
    return Starting(process, state, log)

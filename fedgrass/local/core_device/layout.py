"""Where things are below the device's root: the nucleus's own layout, so that paths in recipes mean the same."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedgrass.errors import ConfigurationError

# sun_path of a Unix socket address holds 108 bytes with its terminator (unix(7)).
_MAX_SOCKET_PATH = 107


@dataclass(frozen=True)
class Layout:
    """Paths of one device."""

    root: Path

    def recipe(self, name: str, version: str) -> Path:
        """Recipe of a component version, as it came from the cloud."""
        return self.root / "packages" / "recipes" / f"{name}-{version}.recipe"

    def artifacts(self, name: str, version: str) -> Path:
        """Downloaded artifacts of a component version."""
        return self.root / "packages" / "artifacts" / name / version

    def unarchived(self, name: str, version: str) -> Path:
        """Unpacked archives of a component version."""
        return self.root / "packages" / "artifacts-unarchived" / name / version

    def work(self, name: str) -> Path:
        """Work folder of a component: the same for all its versions."""
        return self.root / "work" / name

    def log(self, name: str) -> Path:
        """Output of a component's scripts."""
        return self.root / "logs" / f"{name}.log"

    @property
    def configuration(self) -> Path:
        """Configuration of all components."""
        return self.root / "config" / "effective.json"

    @property
    def deployments(self) -> Path:
        """What the last deployment left in force, and what is needed to undo one."""
        return self.root / "deployments"

    @property
    def streams(self) -> Path:
        """Stream Manager's store."""
        return self.work("aws.greengrass.StreamManager")

    def create(self) -> None:
        """Create the folders that everything expects."""
        for path in (self.root / "logs", self.root / "config", self.root / "work", self.deployments, self.streams):
            path.mkdir(parents=True, exist_ok=True)


@contextmanager
def sole_owner(root: Path) -> Iterator[None]:
    """Hold the root against any other device, for as long as this process lives.

    Raises
    ------
    ConfigurationError
        Another device runs on the same root.
    """
    root.mkdir(parents=True, exist_ok=True)
    # The lock is the open descriptor's: it goes with the process, however that ends.
    descriptor = os.open(root / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigurationError(
            f"root {root}: another core device is running there; stop it or choose another --root"
        ) from error
    finally:
        os.close(descriptor)


class SocketPlace:
    """A path for the IPC socket: in the root if a socket address can hold that, else in a short folder of its own."""

    def __init__(self, root: Path) -> None:
        self._folder: Path | None = None
        self.path = root / "ipc.socket"
        if len(str(self.path).encode()) > _MAX_SOCKET_PATH:
            self._folder = Path(tempfile.mkdtemp(prefix="ggc-"))
            self.path = self._folder / "ipc.socket"

    def remove(self) -> None:
        """Remove what was made."""
        self.path.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

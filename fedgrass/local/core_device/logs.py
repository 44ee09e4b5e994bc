"""Where a device's own events go: its log file and, when asked, stderr."""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fedgrass.logs import configure

_MAX_BYTES = 10 * 1024 * 1024


def configure_device(path: Path, *, thing: str, verbose: bool) -> None:
    """Send what the device logs to a file; called once per process.

    Parameters
    ----------
    path
        The log file; one more is kept when it is full.
    thing
        Name that every line carries.
    verbose
        Whether details are logged, and all of it goes to stderr too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [RotatingFileHandler(path, maxBytes=_MAX_BYTES, backupCount=1)]
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
    configure(*handlers, level=logging.DEBUG if verbose else logging.INFO, thing=thing)

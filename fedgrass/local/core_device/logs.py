"""Structured logs: one JSON object per line, to the device's log file and, when asked, to stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

_MAX_BYTES = 10 * 1024 * 1024
_LOGGER = "fedgrass.local.core_device"


class JsonFormatter(logging.Formatter):
    """Render a record as one line; its fields are what :func:`event` was given."""

    def __init__(self, thing: str) -> None:
        super().__init__()
        self._thing = thing

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object without line breaks."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": record.getMessage(),
            "thing": self._thing,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields.

    Parameters
    ----------
    logger
        Where to.
    name
        The event's name.
    level
        Of the standard library's logging.
    fields
        What the event is about.
    """
    logger.log(level, name, extra={"fields": fields})


def configure(path: Path, *, thing: str, verbose: bool) -> None:
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
    logger = logging.getLogger(_LOGGER)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    for handler in handlers:
        handler.setFormatter(JsonFormatter(thing))
        logger.addHandler(handler)

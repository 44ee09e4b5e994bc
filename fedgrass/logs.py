"""One JSON object per line on standard output, which Greengrass keeps as the component's log."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

_REMEMBERED = 1000


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: int = logging.INFO) -> None:
    """Send every logger of this process to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The SDK reports each failed reconnection itself; ours says the same once.
    logging.getLogger("StreamManagerClient").setLevel(logging.CRITICAL)
    logging.getLogger("awsiot").setLevel(logging.CRITICAL)


class _Troubles:
    """What was said last of them, and who is told."""

    def __init__(self) -> None:
        self.last = ""
        self.told: Callable[[str], None] = lambda what: None


class Log:
    """Events with fields: ``log.info("trained", round=3)``. No data and no secrets belong in them."""

    def __init__(self, name: str, **fields: Any) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._troubles = _Troubles()  # shared with the logs bound from this one

    def bind(self, **fields: Any) -> Log:
        """Return a log whose events also carry these fields."""
        bound = Log(self._logger.name, **{**self._fields, **fields})
        bound._troubles = self._troubles
        return bound

    @property
    def last_error(self) -> str:
        """The last warning or error said through this log and those bound from it, with its reason."""
        return self._troubles.last

    def on_trouble(self, told: Callable[[str], None]) -> None:
        """Have ``told`` be called with each warning or error from now on."""
        self._troubles.told = told

    def trouble(self, what: str) -> None:
        """Take over what another process has said in its own log: it is the last error of this one."""
        self._troubles.last = what
        self._troubles.told(what)

    def info(self, event: str, **fields: Any) -> None:
        """Say what happened."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Say what went wrong and is being dealt with."""
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, *, trace: bool = False, **fields: Any) -> None:
        """Say what failed; ``trace`` adds the traceback of the exception being handled."""
        self._say(logging.ERROR, event, fields, trace=trace)

    def once(self, event: str, **fields: Any) -> None:
        """Warn, unless the same was said before in this process."""
        said = json.dumps([event, fields], default=str, sort_keys=True)
        with self._lock:
            if said in self._said:
                return
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            self._said.add(said)
        self.warning(event, **fields)

    def _say(self, level: int, event: str, fields: dict[str, Any], *, trace: bool = False) -> None:
        if level >= logging.WARNING:
            cause = fields.get("reason") or fields.get("error")
            self.trouble(f"{event}: {cause}" if cause else event)
        self._logger.log(level, event, extra={"fields": {**self._fields, **fields}}, exc_info=trace)

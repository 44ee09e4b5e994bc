"""Structured logs: one JSON object per line for each event, with its names from one list (`fedgrass.events`).

A component's standard output is its log under Greengrass, where standard error would be a warning; a function's is its log group.
Nothing secret and no data belong in events.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TextIO

from fedgrass.events import EVENTS, Event

# Events that are known to have been said: bounded, since reasons may differ each time.
_REMEMBERED = 1000
_UNLISTED = Event(logging.INFO, "An event of somebody else's program.")
# They say at each attempt, or in a way of their own, what ours say once.
_QUIETER = {"StreamManagerClient": logging.CRITICAL, "awsiot": logging.CRITICAL, "botocore": logging.WARNING}


class JsonLines(logging.Formatter):
    """Render a record as one line of JSON: ``time``, ``level``, ``event``, ``logger``, then its fields.

    Parameters
    ----------
    context
        Fields that every line has.
    """

    def __init__(self, context: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._context = dict(context or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        ours: Mapping[str, object] | None = getattr(record, "fields", None)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            # Libraries log sentences; their text must not pass for an event's name.
            "event": "library_message" if ours is None else record.getMessage(),
            "logger": record.name,
            **self._context,
            **({"message": record.getMessage()} if ours is None else ours),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        # What JSON does not know is written as text: a log line must not fail for what it tells.
        return json.dumps(line, default=str)


class _Words(logging.Formatter):
    """For a process that nobody configured, a command or a notebook: what is wrong, on standard error."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, object] | None = getattr(record, "fields", None)
        if fields is None:
            return super().format(record)
        shown = ", ".join(f"{name} {value}" for name, value in fields.items())
        line = f"{record.levelname.lower()}: {_in_words(record.getMessage())}" + f" ({shown})" * bool(shown)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def words_to(stream: TextIO) -> None:
    """Have warnings and errors of a process that nobody configured go to ``stream``, in words."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Words())
    logging.lastResort = handler


if logging.lastResort is not None:
    logging.lastResort.setFormatter(_Words())


def configure(*handlers: logging.Handler, level: int = logging.INFO, **context: object) -> None:
    """Send every logger of this process, as JSON lines, to ``handlers``: to standard output if none are given.

    ``context`` are fields that each line has.
    """
    used = handlers or (logging.StreamHandler(sys.stdout),)
    for handler in used:
        handler.setFormatter(JsonLines(context))
    # force: libraries may have set handlers of their own before.
    logging.basicConfig(level=level, handlers=list(used), force=True)
    for name, quieter in _QUIETER.items():
        logging.getLogger(name).setLevel(quieter)


class _Troubles:
    """The latest of them, and who is told."""

    def __init__(self) -> None:
        self.last = ""
        self.told: Callable[[str], None] = lambda what: None


class Log:
    """A log whose events carry the same fields: ``Log("com.fedgrass.Trainer", thing=thing)``."""

    def __init__(self, name: str, **fields: object) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._troubles = _Troubles()  # shared with the logs bound from this one

    def bind(self, **fields: object) -> Log:
        """Return a log whose events also carry these fields."""
        bound = Log(self._logger.name, **{**self._fields, **fields})
        bound._troubles = self._troubles
        return bound

    @property
    def last_error(self) -> str:
        """The last warning or error said through this log and those bound from it, in words, with its reason."""
        return self._troubles.last

    def on_trouble(self, told: Callable[[str], None]) -> None:
        """Have ``told`` be called with each warning or error from now on."""
        self._troubles.told = told

    def trouble(self, what: str) -> None:
        """Take over what another process has said in its own log: it is the last error of this one."""
        self._troubles.last = what
        self._troubles.told(what)

    def passed(self, what: str) -> None:
        """Forget a trouble that is over, unless another has come after it."""
        if self._troubles.last == what:
            self._troubles.last = ""

    def log_event(self, name: str, /, **fields: object) -> None:
        """Log an event of `fedgrass.events`; its level is the list's.

        Parameters
        ----------
        name
            The event's name. One that is not in the list is logged as information, so that programs of other people
            can have names of their own.
        fields
            What is to be known of it. A field that is None is left out; what JSON does not have is written as text.
        """
        event = EVENTS.get(name, _UNLISTED)
        shown = {field: value for field, value in {**self._fields, **fields}.items() if value is not None}
        if event.once and not self._is_new(name, fields):
            return
        # The heartbeat carries a component's last trouble to the cloud, so it is kept in words.
        if event.level >= logging.WARNING:
            cause, words = fields.get("reason") or fields.get("error"), _in_words(name)
            self.trouble(f"{words}: {cause}" if cause else words)
        error = fields.get("error")
        raised = error if isinstance(error, BaseException) else True  # True: the one that is being handled
        self._logger.log(event.level, name, extra={"fields": shown}, exc_info=raised if event.trace else None)

    def _is_new(self, name: str, fields: Mapping[str, object]) -> bool:
        said = json.dumps([name, fields], default=str, sort_keys=True)
        with self._lock:
            if said in self._said:
                return False
            # Started over rather than the oldest dropped: an event said twice does no harm.
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            self._said.add(said)
        return True


def _in_words(name: str) -> str:
    return name.replace("_", " ")


log_event = Log("fedgrass").log_event
"""Log an event where there is nothing to bind it to: ``log_event("round_opened", fleet="mill", round=3, asked=20)``."""

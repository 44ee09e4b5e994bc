"""Runs the trainer's work, one piece at a time, each in a separate process that holds the engine and the data.

So the component needs neither NumPy nor an engine, gives all that training took back to the device, and outlives a crash in an
engine's native code and the kernel's taking memory back. What died is tried once more, from its checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from components.trainer.attempts import MOST_DEATHS, Attempts
from components.trainer.task import Order, Report, Result, Task
from fedgrass.edge.child import MAX_LINE_BYTES, Running
from fedgrass.edge.resource_policy import ResourcePolicy
from fedgrass.errors import MessageError
from fedgrass.logs import Log
from fedgrass.protocol.messages import as_reason

STOPPED = Result(status="stopped")

_LOOK_SECONDS = 0.2
_STOP_SECONDS = 3.0
_REST_SECONDS = 1.0
_MOST_NOT_BEGUN = 5


class DiedError(Exception):
    """The child died; the message says of what: ``by signal 11 (SIGSEGV)``.

    Parameters
    ----------
    began
        Whether it died of its work, as far as is known; it may not have begun, for the packages are just being replaced.
    """

    def __init__(self, cause: str, *, began: bool = True) -> None:
        super().__init__(cause)
        self.began = began


class Runner:
    """Runs tasks; may be asked from any thread, and has the others wait.

    Parameters
    ----------
    start
        Starts a child that waits for its task.
    guard
        Says why not to train now, which the child is told.
    """

    def __init__(self, start: Callable[[], Running], guard: ResourcePolicy, log: Log) -> None:
        self._start = start
        self._guard = guard
        self._log = log
        self._busy = threading.Lock()

    def run(
        self,
        task: Task,
        cancelled: threading.Event,
        *,
        told: Callable[[Report], None] = lambda report: None,
        attempts: Attempts | None = None,
        name: str = "",
        what: str,
        finished: Callable[[], None] = lambda: None,
    ) -> Result:
        """Do a task to its end; ``stopped`` once cancelled, after the batch at hand or some seconds.

        Parameters
        ----------
        told
            Called with each report but the last.
        attempts
            Where deaths are counted; without it the first is the last.
        name, what
            The work's name there, and in words: ``in training``.
        finished
            Called last, before other work may begin.
        """
        while not self._busy.acquire(timeout=_LOOK_SECONDS):
            if cancelled.is_set():
                return STOPPED
        not_begun = 0
        try:
            while True:
                if attempts is not None and attempts.begins(name) >= MOST_DEATHS:
                    reason = as_reason(attempts.given_up(what))
                    return Result(status="declined", reason=reason, given_up=True)
                try:
                    return STOPPED if cancelled.is_set() else self._once(task, cancelled, told)
                except DiedError as error:
                    self._log.error(f"the child died {what}", reason=str(error))
                    if not error.began and not_begun < _MOST_NOT_BEGUN:
                        not_begun += 1
                        if attempts is not None:
                            attempts.rests()
                        cancelled.wait(not_begun * _REST_SECONDS)
                        continue
                    if attempts is None:
                        return Result(status="failed", reason=as_reason(f"died {what} {error}"))
                    attempts.died(str(error))
                    cancelled.wait(_REST_SECONDS)
        finally:
            if attempts is not None:
                attempts.rests()
            finished()
            self._busy.release()

    def _once(self, task: Task, cancelled: threading.Event, told: Callable[[Report], None]) -> Result:
        try:
            child = self._start()
        except OSError as error:  # no process, or no memory for one
            raise DiedError(f"at its start ({error.strerror})", began=False) from error
        killed = began = False
        try:
            child.tell(task.encode())
            given, stop_at, rest, said = Order(), 0.0, b"", None
            while (some := child.read(_LOOK_SECONDS)) != b"":
                if some is not None:
                    *lines, rest = (rest + some).split(b"\n")
                    for report in _reports(lines, rest):
                        began = True
                        if report.result is not None:
                            said = report.result
                        elif report.say == "trouble":
                            self._log.trouble(report.reason)
                        elif report.say != "began":
                            told(report)
                order = self._order(stop=cancelled.is_set())
                if order != given and child.tell(order.encode()):
                    given = order
                if order.stop and stop_at == 0:
                    stop_at = time.monotonic() + _STOP_SECONDS
                if stop_at and time.monotonic() > stop_at and not killed:
                    child.kill()
                    killed = True
            cause = child.died_of()
        except MessageError as error:
            raise DiedError(f"with what is no report ({error})") from error
        finally:
            child.kill()
            child.died_of()
        if said is not None or killed:
            return said or STOPPED
        raise DiedError(cause or "without a result", began=began or cause.startswith("by signal"))

    def _order(self, *, stop: bool) -> Order:
        hold = self._guard.hold()
        return Order(hold=hold.reason if hold is not None else "", slow=self._guard.is_slow(), stop=stop)


def _reports(lines: list[bytes], rest: bytes) -> Iterator[Report]:
    for line in (*lines, rest):
        if len(line) > MAX_LINE_BYTES:
            raise MessageError(f"{len(line)} bytes in a line")
    for line in lines:
        yield Report.decode(line)

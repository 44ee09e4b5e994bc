"""Runs the trainer's work, one piece at a time, each in a separate process that holds the engine and the data.

So the component needs neither NumPy nor an engine, gives all that training took back to the device, and outlives a crash in an
engine's native code and the kernel's taking memory back. What died is tried once more, from its checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from components.trainer.attempts import MOST_DEATHS, Attempts
from components.trainer.task import Order, Report, Result, Task
from fedgrass.edge.child import MAX_LINE_BYTES, Running
from fedgrass.edge.credentials import find_service
from fedgrass.edge.ipc import Ipc
from fedgrass.edge.resource_policy import ResourcePolicy
from fedgrass.errors import MessageError
from fedgrass.logs import Log
from fedgrass.protocol.message import as_reason

# Between two looks at orders: a change of the limits reaches the child within this time.
_LOOK_SECONDS = 0.2
# The nucleus kills a component some seconds after it asked it to leave; what a batch takes longer is lost.
_STOP_SECONDS = 3.0
_REST_SECONDS = 1.0
# Starts that may fail before the work is to blame: Runtime replaces its packages within seconds.
_MOST_NOT_BEGUN = 5


def stopped() -> Result:
    """Return what becomes of work that is told to stop."""
    return Result(status="stopped")


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

    def __init__(self, start: Callable[[], Running], guard: ResourcePolicy, log: Log, ipc: Ipc) -> None:
        self._start = start
        self._ipc = ipc
        self._guard = guard
        self._log = log
        self._busy = threading.Lock()
        # Who waits for their turn, one entry each: a list's own operations need no lock.
        self._waiting: list[str] = []

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
        gives_way: bool = False,
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
        gives_way
            Whether to stop as soon as other work waits for its turn, or the device is held.
        """
        if not self._has_turn(what, cancelled):
            return stopped()
        not_begun = 0
        try:
            while True:
                # Noted before it begins: if the work takes the component with it, the next process finds the note.
                if attempts is not None and attempts.begins(name) >= MOST_DEATHS:
                    reason = as_reason(attempts.given_up(what))
                    return Result(status="declined", reason=reason, given_up=True)
                try:
                    return stopped() if cancelled.is_set() else self._once(task, cancelled, told, gives_way)
                except DiedError as error:
                    self._log.log_event("child_died", during=what, reason=str(error))
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

    def _has_turn(self, what: str, cancelled: threading.Event) -> bool:
        """Wait for the turn; returns whether it came before the work was cancelled."""
        self._waiting.append(what)
        try:
            # With a time-out, so that work that waits for its turn can be cancelled.
            while not self._busy.acquire(timeout=_LOOK_SECONDS):
                if cancelled.is_set():
                    return False
            return True
        finally:
            self._waiting.remove(what)

    def _once(self, task: Task, cancelled: threading.Event, told: Callable[[Report], None], gives_way: bool) -> Result:
        # Each time: the child reads from S3 by what is in its environment, and the service may have moved.
        find_service(self._ipc)
        try:
            child = self._start()
        except OSError as error:  # no process, or no memory for one
            raise DiedError(f"at its start ({error.strerror})", began=False) from error
        heard, orders = _Reports(told, self._log), _Orders(child)
        try:
            child.tell(task.encode())
            while (some := child.read(_LOOK_SECONDS)) != b"":
                if some is not None:
                    heard.take_in(some)
                orders.give(self._order(stop=cancelled.is_set(), gives_way=gives_way))
            cause = child.died_of()
        except MessageError as error:
            raise DiedError(f"with what is not a report ({error})") from error
        finally:
            child.kill()
            child.died_of()
        # A result counts however the process ended: unloading native libraries may crash, too.
        if heard.result is not None or orders.killed:
            return heard.result or stopped()
        raise DiedError(cause or "without a result", began=heard.any or cause.startswith("by signal"))

    def _order(self, *, stop: bool, gives_way: bool) -> Order:
        hold = self._guard.hold()
        # Not held but stopped: what nobody waits for gives its memory back, and goes on from its checkpoint.
        if gives_way and (hold is not None or self._waiting):
            return Order(stop=True)
        return Order(hold=hold.reason if hold is not None else "", slow=self._guard.is_slow(), stop=stop)


class _Reports:
    """What a child has said so far."""

    def __init__(self, told: Callable[[Report], None], log: Log) -> None:
        self._told = told
        self._log = log
        self._rest = b""
        self.any = False
        self.result: Result | None = None

    def take_in(self, some: bytes) -> None:
        """Act on the reports that these bytes complete; raises `MessageError` for what is not a report."""
        *lines, self._rest = (self._rest + some).split(b"\n")
        for line in (*lines, self._rest):
            # The rest too: a child gone wild could send a line without an end.
            if len(line) > MAX_LINE_BYTES:
                raise MessageError(f"{len(line)} bytes in a line")
        for line in lines:
            report = Report.decode(line)
            self.any = True
            if report.result is not None:
                self.result = report.result
            elif report.say == "trouble":
                self._log.trouble(report.reason)
            elif report.say != "began":
                self._told(report)


class _Orders:
    """What a child has been told; one that does not stop in time is killed."""

    def __init__(self, child: Running) -> None:
        self._child = child
        self._given = Order()
        self._stop_at = 0.0
        self.killed = False

    def give(self, order: Order) -> None:
        """Pass an order on if it is another than the last."""
        if order != self._given and self._child.tell(order.encode()):
            self._given = order
        if order.stop and self._stop_at == 0:
            self._stop_at = time.monotonic() + _STOP_SECONDS
        # In native code a batch cannot be interrupted; killed, it goes on from its checkpoint.
        if self._stop_at and time.monotonic() > self._stop_at and not self.killed:
            self._child.kill()
            self.killed = True

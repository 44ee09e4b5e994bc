"""Tasks that run one at a time and may be switched, killed or disturbed before every call of a service.

A task is a thread, but only the one whose turn it is runs: the order of all service calls is decided here and nowhere else, so
that a schedule, which is a seed and a list of what happens at which step, can be run again. Time is virtual: a sleeping task
waits until nothing else can run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MOST_STEPS = 6000
_CALL_SECONDS = 0.001


class KilledError(BaseException):
    """The process is gone: nothing of ours runs after it."""


class EndlessError(Exception):
    """A schedule does not come to an end."""


@dataclass
class Task:
    """A process of ours: a function's invocation, or a job."""

    name: str
    work: Callable[[], Any]
    done: Callable[[Any, BaseException | None], None]
    order: float
    until: float = 0.0
    killed: bool = False
    raising: BaseException | None = None
    ended: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@dataclass(order=True)
class Timer:
    """Something that happens by itself later."""

    at: float
    number: int
    happen: Callable[[], None] = field(compare=False)
    live: bool = field(default=True, compare=False)


class Scheduler:
    """Runs tasks to their end.

    Parameters
    ----------
    before
        Called at each step with the running task and the name of its call; may disturb anything, and return an error to raise.
    """

    def __init__(self, before: Callable[[int, Task, str], BaseException | None]) -> None:
        self._before = before
        self._tasks: list[Task] = []
        self._timers: list[Timer] = []
        self._of_thread: dict[int, Task] = {}
        self._finished = threading.Semaphore(0)
        self._orders = 0.0
        self.now = 0.0
        self.steps = 0
        self.trace: list[str] = []
        self.failure: BaseException | None = None

    @property
    def current(self) -> Task | None:
        """The task of this thread; None outside of any."""
        return self._of_thread.get(threading.get_ident())

    def spawn(
        self, name: str, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None] = lambda *_: None
    ) -> Task:
        """Start a task; its turn comes after all that wait already."""
        self._orders += 1
        task = Task(name, work, done, self._orders)
        self._tasks.append(task)
        threading.Thread(target=self._thread, args=(task,), daemon=True).start()
        return task

    def later(self, seconds: float, happen: Callable[[], None]) -> Timer:
        """Let something happen when ``seconds`` have passed."""
        timer = Timer(self.now + seconds, len(self._timers), happen)
        self._timers.append(timer)
        return timer

    def kill(self, task: Task) -> None:
        """End a task: it calls nothing more."""
        task.killed = True
        task.until = 0.0

    def interrupt(self, task: Task, error: BaseException) -> None:
        """Raise an error in a task when its turn comes, as a signal's handler does."""
        task.raising = error
        task.until = 0.0

    def delay(self, task: Task) -> None:
        """Let all others go first, for as long as they can."""
        self._orders += 1000
        task.order = self._orders

    def prefer(self, task: Task) -> None:
        """Let a task go before all others."""
        task.order = -self._orders
        self._orders += 1

    def running(self) -> list[Task]:
        """Tasks that have not ended."""
        return [task for task in self._tasks if not task.ended]

    def run(self) -> None:
        """Run until nothing is left to run or to happen; raises what broke a schedule."""
        self._pass_on(None)
        self._finished.acquire()
        if self.failure is not None:
            raise self.failure

    def call(self, label: str, perform: Callable[[], Any]) -> Any:
        """Make a service call of the current task: a step of the schedule."""
        task = self.current
        if task is None:
            return perform()
        self.steps += 1
        self.now += _CALL_SECONDS
        if self.steps > _MOST_STEPS:
            self.failure = EndlessError(f"{self.steps} steps; the last: {self.trace[-20:]}")
        self.trace.append(f"{self.steps} {task.name}: {label}")
        error = self._before(self.steps, task, label) if self.failure is None else KilledError()
        self._switch(task)
        if error is not None:
            raise error
        return perform()

    def sleep(self, seconds: float) -> None:
        """Stand in for ``time.sleep``."""
        task = self.current
        if task is None:
            return
        task.until = self.now + max(seconds, 0.001)
        self._switch(task)

    def _switch(self, task: Task) -> None:
        if self._next() is not task:
            self._pass_on(task)
            task.turn.acquire()
        if task.killed or self.failure is not None:
            raise KilledError
        if task.raising is not None:
            error, task.raising = task.raising, None
            raise error

    def _next(self) -> Task | None:
        """The task whose turn it is; time passes if all sleep."""
        while True:
            waiting = [task for task in self._tasks if not task.ended]
            ready = [task for task in waiting if task.until <= self.now]
            if ready:
                return min(ready, key=lambda task: task.order)
            timers = [timer for timer in self._timers if timer.live]
            times = [task.until for task in waiting] + [timer.at for timer in timers]
            if not times or self.failure is not None:
                return waiting[0] if waiting else None
            self.now = max(self.now, min(times))
            for timer in sorted(timers):
                if timer.at <= self.now:
                    timer.live = False
                    timer.happen()

    def _pass_on(self, task: Task | None) -> None:
        following = self._next()
        if following is None:
            self._finished.release()
        else:
            following.turn.release()

    def _thread(self, task: Task) -> None:
        self._of_thread[threading.get_ident()] = task
        task.turn.acquire()
        result: Any = None
        error: BaseException | None = None
        try:
            if not task.killed and self.failure is None:
                result = task.work()
                self.call("end", lambda: None)
            else:
                error = KilledError()
        except BaseException as raised:  # noqa: BLE001 - whatever it is, the caller of the process sees it
            error = raised
        task.ended = True
        try:
            if self.failure is None:
                task.done(result, error)
        except BaseException as raised:  # noqa: BLE001
            self.failure = raised
        del self._of_thread[threading.get_ident()]
        self._tasks.remove(task)
        self._pass_on(None)

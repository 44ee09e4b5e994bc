"""One component's life: the state machine that the nucleus runs for each service.

    NEW -install-> INSTALLED -dependencies-> STARTING -> RUNNING -> STOPPING -> FINISHED
                                                  errors: ERRORED -> again, and BROKEN at the third in one state

``install`` waits for no dependency; ``startup`` and ``run`` wait for the HARD ones. Source: Lifecycle,
GenericExternalService and GreengrassService of the nucleus.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.local.core_device.scripts import Script, ScriptProcess
from fedgrass.local.recipe import DependencyType
from fedgrass.logs import log_event

_T = TypeVar("_T")

# The classic nucleus's: at the third error in one state within an hour a component is BROKEN.
MAX_ERRORS = 3
ERROR_MEMORY_SECONDS = 3600.0


class State(str, Enum):
    """States that IPC and the fleet status report."""

    NEW = "NEW"
    INSTALLED = "INSTALLED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    FINISHED = "FINISHED"
    ERRORED = "ERRORED"
    BROKEN = "BROKEN"


READY = frozenset({State.RUNNING, State.FINISHED})


class Request(Enum):
    """What others ask of a component while it is in some state."""

    STOP = "stop"
    FINISH = "finish"
    """Stop, and stay FINISHED until a restart or a deployment that changes it: ``component stop``."""
    RESTART = "restart"
    REPORT_RUNNING = "report_running"
    REPORT_ERRORED = "report_errored"


_LEAVES = frozenset({Request.STOP, Request.FINISH, Request.RESTART})


@dataclass(frozen=True)
class Specification:
    """A component version with all variables resolved: what decides whether a deployment changes it.

    ``configuration`` is empty unless the nucleus restarts a component for an update of that alone: then it says for which.
    """

    name: str
    version: str
    scripts: Mapping[str, Script] = field(default_factory=dict)
    dependencies: Mapping[str, DependencyType] = field(default_factory=dict)
    configuration: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What a component needs of the device."""

    environment: Callable[[str], Mapping[str, str]]
    directory: Path
    log: Path
    state_of: Callable[[str], State | None]
    changed: Callable[[Component], None]
    nucleus: Nucleus = CLASSIC


class Component:
    """Runs one component version until it is stopped."""

    def __init__(self, specification: Specification, surroundings: Surroundings) -> None:
        self.specification = specification
        self.state = State.NEW
        self.reason = ""
        self.halted = False
        """Whether it was asked to stay FINISHED."""
        self._surroundings = surroundings
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._dependency_moved = asyncio.Event()
        # Times by the monotonic clock, which no correction of the date can move.
        self._errors: dict[State, list[float]] = {}
        self._starts: list[float] = []
        self._process: ScriptProcess | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The component's name."""
        return self.specification.name

    @property
    def process_group(self) -> int | None:
        """The group of its running script."""
        return self._process.pid if self._process is not None else None

    @property
    def settled(self) -> bool:
        """Whether it is where it will stay if nothing else happens."""
        return self._requests.empty() and self.state in READY | {State.BROKEN}

    async def install(self) -> bool:
        """Run ``install`` alone, before `start`; returns whether it succeeded."""
        try:
            return await self._install()
        finally:
            await self._end_process()

    def start(self, *, installed: bool = False) -> None:
        """Begin with ``install``, unless that is done."""
        self._enter(State.NEW)
        self._task = asyncio.get_running_loop().create_task(self._live(installed), name=self.name)
        self._task.add_done_callback(self._ended)

    def request(self, request: Request) -> None:
        """Ask for a change; it is made as soon as the present step can be left."""
        self.halted = request is Request.FINISH or (self.halted and request is not Request.RESTART)
        self._requests.put_nowait(request)

    async def stop(self) -> None:
        """Run ``shutdown``, end the processes, and return when all are gone."""
        if self._task is not None:
            self.request(Request.STOP)
            await asyncio.wait({self._task})

    def dependency_changed(self) -> None:
        """Look at the dependencies again: restart if a HARD one is gone, go on if all are there."""
        self._dependency_moved.set()
        if self.state in (State.STARTING, State.RUNNING) and not self._dependencies_ready():
            log_event("dependency_restart", component=self.name, reason="a hard dependency left its ready state")
            self.request(Request.RESTART)

    def _dependencies_ready(self) -> bool:
        # STOPPING still counts, as in the nucleus: what matters is that it had started.
        hard = [name for name, kind in self.specification.dependencies.items() if kind is DependencyType.HARD]
        return all(self._surroundings.state_of(name) in READY | {State.STOPPING} for name in hard)

    async def _live(self, installed: bool) -> None:
        alive = installed or await self._install()
        while alive:
            self._enter(State.INSTALLED)
            if self._surroundings.nucleus.needs_something_to_run and not {"run", "startup"} & set(
                self.specification.scripts
            ):
                # There is no unit for it, so nothing that depends on it HARD finds one.
                await self._next_request({Request.STOP})
                return
            # A restart that is asked for here is dropped: nothing runs yet that could be restarted.
            if await self._or_request(self._wait_for_dependencies(), {Request.STOP, Request.FINISH}) is Request.STOP:
                return
            # Requests of the start before: a dependency that came and went twice asks for two restarts, and one is
            # due.
            self._drop_stale_requests()
            alive = await self._stay_finished() if self.halted else await self._start_and_run()
        if self.state is State.BROKEN:
            await self._next_request({Request.STOP})

    async def _install(self) -> bool:
        while True:
            outcome = await self._execute("install", {Request.STOP})
            if isinstance(outcome, Request):
                await self._end_process()
                return False
            if outcome is None:
                self._errors.pop(State.NEW, None)
                return True
            if not await self._recover(State.NEW, outcome):
                return False
            self._enter(State.NEW)

    async def _start_and_run(self) -> bool:
        """Go through STARTING, RUNNING and STOPPING; tell whether to start again."""
        self._enter(State.STARTING)
        self._starts.append(time.monotonic())
        outcome = await self._start()
        failed_in = State.STARTING
        if outcome is None:
            self._errors.pop(State.STARTING, None)
            self._enter(State.RUNNING)
            outcome = await self._run()
            failed_in = State.RUNNING
        # A text is an error, a request is what ended it, None is its regular end.
        if isinstance(outcome, str):
            if not await self._recover(failed_in, outcome):
                await self._shut_down()
                return False
            await self._shut_down_as(State.STOPPING)
            return True
        await self._shut_down_as(State.STOPPING)
        if outcome is Request.RESTART:
            return True
        if outcome is Request.STOP:
            self._enter(State.FINISHED)
            return False
        return await self._stay_finished()

    async def _stay_finished(self) -> bool:
        self._enter(State.FINISHED)
        return await self._next_request({Request.STOP, Request.RESTART}) is Request.RESTART

    async def _start(self) -> str | Request | None:
        """Return ``None`` once RUNNING, the error's description, or the request that ended it."""
        if "startup" in self.specification.scripts:
            # A startup script is done when it ends with 0, or when the component says RUNNING before.
            wanted = {*_LEAVES, Request.REPORT_RUNNING, Request.REPORT_ERRORED}
            outcome = await self._execute("startup", wanted)
            if outcome is Request.REPORT_RUNNING:
                return None
            return "the component reported an error" if outcome is Request.REPORT_ERRORED else outcome
        script = self.specification.scripts.get("run")
        if script is not None and not script.skipped():
            self._process = self._spawn(script)
        return None

    async def _run(self) -> str | Request | None:
        """Return ``None`` if there is nothing more to do, the error's description, or the request that ended it."""
        script = self.specification.scripts.get("run") or self.specification.scripts.get("startup")
        if script is None:
            return None  # an empty lifecycle goes straight on to FINISHED
        wanted = {*_LEAVES, Request.REPORT_ERRORED}
        outcome: int | Request | None = 0
        if self._process is not None:
            # A startup script may have reported RUNNING before its end, for which there is no limit then.
            timeout = script.timeout if script.phase == "run" else None
            outcome = await self._or_request(_bounded(self._process.exited, timeout), wanted)
        # A service in the background: the script has ended well and the component runs on until somebody asks.
        if script.phase == "startup" and outcome == 0:
            outcome = await self._next_request(wanted)
        if outcome is Request.REPORT_ERRORED:
            return "the component reported an error"
        if outcome is None:
            return f"{script.phase} did not end within {script.timeout} s"
        if isinstance(outcome, Request):
            return outcome
        return None if outcome == 0 else f"{script.phase} exited with code {outcome}"

    async def _execute(self, phase: str, wanted: set[Request]) -> str | Request | None:
        """Run a script to its end: ``None`` if it succeeded, else its error or the request that came first."""
        script = self.specification.scripts.get(phase)
        if script is None or script.skipped():
            return None
        await self._end_process()
        self._process = self._spawn(script)
        outcome = await self._or_request(_bounded(self._process.exited, script.timeout), wanted)
        if isinstance(outcome, Request):
            return outcome
        if outcome == 0 and phase == "startup":
            return None  # what it left in the background goes on until the component stops
        await self._end_process()
        if outcome is None:
            return f"{phase} did not end within {script.timeout} s"
        return None if outcome == 0 else f"{phase} exited with code {outcome}"

    async def _recover(self, failed_in: State, reason: str) -> bool:
        """Count an error; tell whether to try again, or enter BROKEN: there are so many starts an hour on nucleus lite."""
        now = time.monotonic()
        recent = [at for at in self._errors.get(failed_in, []) if now - at < ERROR_MEMORY_SECONDS]
        self._errors[failed_in] = [*recent, now]
        # systemd's StartLimitBurst counts starts, whatever state they failed in; the classic nucleus counts errors by
        # state.
        starts, most = [at for at in self._starts if now - at < ERROR_MEMORY_SECONDS], MAX_ERRORS
        if failed_in is not State.NEW and (limit := self._surroundings.nucleus.starts_an_hour) is not None:
            self._errors[failed_in], most = starts, limit
        log_event(
            "component_errored",
            component=self.name,
            version=self.specification.version,
            state=failed_in.value,
            attempt=len(self._errors[failed_in]),
            error=reason,
        )
        if len(self._errors[failed_in]) >= most:
            self._enter(State.BROKEN, reason)
            return False
        self._enter(State.ERRORED, reason)
        await self._execute("recover", set())
        return True

    async def _shut_down_as(self, state: State) -> None:
        self._enter(state)
        await self._shut_down()

    async def _shut_down(self) -> None:
        # The shutdown script runs first and beside the process that it is to shut down; then the process is ended.
        running, self._process = self._process, None
        script = self.specification.scripts.get("shutdown")
        if script is not None and not script.skipped():
            shutdown = self._spawn(script)
            if await _bounded(shutdown.exited, script.timeout) is None:
                log_event("component_shutdown_slow", component=self.name)
            await shutdown.stop()
        if running is not None:
            await running.stop()

    async def _end_process(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            await process.stop()

    def _spawn(self, script: Script) -> ScriptProcess:
        around = self._surroundings
        process = ScriptProcess(
            script, environment=around.environment(self.name), directory=around.directory, log=around.log
        )
        log_event("script_started", component=self.name, phase=script.phase, pid=process.pid)
        return process

    def _enter(self, state: State, reason: str = "") -> None:
        previous, self.state, self.reason = self.state, state, reason
        log_event(
            "component_state",
            component=self.name,
            version=self.specification.version,
            state=state.value,
            previous=previous.value,
        )
        self._surroundings.changed(self)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event("component_supervision_crashed", component=self.name, error=error)
            self._enter(State.BROKEN, repr(error))

    async def _wait_for_dependencies(self) -> None:
        while not self._dependencies_ready():
            self._dependency_moved.clear()
            await self._dependency_moved.wait()

    def _drop_stale_requests(self) -> None:
        """Forget restarts asked of the previous start, but never a stop."""
        waiting = [self._requests.get_nowait() for _ in range(self._requests.qsize())]
        if Request.STOP in waiting:
            self._requests.put_nowait(Request.STOP)

    async def _next_request(self, wanted: set[Request]) -> Request:
        while (request := await self._requests.get()) not in wanted:
            pass
        return request

    async def _or_request(self, work: Awaitable[_T], wanted: set[Request]) -> _T | Request:
        """Wait for ``work``, or for one of the ``wanted`` requests if that comes first; others are dropped."""
        if not wanted:
            return await work
        working = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._next_request(wanted))
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else working.result()
        finally:
            # Both: a reader that is left behind would swallow the next request.
            for task in (working, asked):
                task.cancel()


async def _bounded(exited: asyncio.Future[int], timeout: float | None) -> int | None:
    """Wait for an exit code, ``None`` after ``timeout`` seconds; the future itself is never cancelled."""
    await asyncio.wait({exited}, timeout=timeout)
    return exited.result() if exited.done() else None

"""One round's work on a separate thread, which has a child do it, so that the component stays responsive meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from components.trainer.attempts import Attempts
from components.trainer.rounds import answer_key
from components.trainer.runner import Runner, stopped
from components.trainer.task import Activated, Report, Result, Task, Watched
from fedgrass.edge.resource_policy import Pause, ResourcePolicy, UnavailableError
from fedgrass.edge.settings import RuntimeSettings, TrainerSettings
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Announcement, Command


@dataclass(frozen=True)
class Settings:
    """What tasks are made with, until the configuration changes."""

    thing: str
    work: Path
    store: Path
    runtime: RuntimeSettings
    own: TrainerSettings

    def changed(self, runtime: RuntimeSettings, own: TrainerSettings) -> Settings:
        """Return the same device's with another configuration."""
        return replace(self, runtime=runtime, own=own)

    def task(
        self,
        *,
        patience: float = 0.0,
        train_seconds: float | None = None,
        tries_engine: bool = False,
        announcement: Announcement | None = None,
        command: Command | None = None,
        watched: Watched | None = None,
        activated: Activated | None = None,
    ) -> Task:
        """Make a task for the child; with none of the last four, it counts the examples.

        Parameters
        ----------
        patience
            Seconds that the work may still wait for the device.
        train_seconds
            Seconds that the training may last; None: to its end.
        tries_engine
            Whether to open the model before counting.
        announcement
            The round to take part in.
        command
            The command to do.
        watched
            What to compare live data with.
        activated
            The model to fine-tune a copy of.

        Returns
        -------
        Task
            The task, with the settings as they are now.
        """
        return Task(
            thing=self.thing,
            work=self.work,
            store=self.store,
            runtime=self.runtime,
            settings=self.own,
            patience=patience,
            train_seconds=train_seconds,
            tries_engine=tries_engine,
            announcement=announcement,
            command=command,
            watched=watched,
            activated=activated,
        )


class Job:
    """Training, or evaluating, for one announcement.

    Parameters
    ----------
    attempts
        Where deaths in this round are counted.
    time_left
        Returns the seconds that the training may still last; None: to its end.
    told
        Called on the job's thread with what the child reports, and while the job waits for the device.
    ended
        Called on the job's thread, last.
    """

    def __init__(
        self,
        announcement: Announcement,
        settings: Settings,
        runner: Runner,
        guard: ResourcePolicy,
        attempts: Attempts,
        *,
        time_left: Callable[[], float | None] = lambda: None,
        told: Callable[[Report], None],
        ended: Callable[[Result], None],
    ) -> None:
        self.announcement = announcement
        self._settings = settings
        self._runner = runner
        self._attempts = attempts
        self._time_left = time_left
        self._told = told
        self._pause = Pause(guard, settings.own.wait_seconds, self._waits)
        self._ended = ended
        self._cancelled = threading.Event()
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name=f"round-{announcement.round}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """End after the batch at hand, and keep what was done in the checkpoint."""
        self._cancelled.set()

    def drop(self) -> None:
        """End after the batch at hand, and keep nothing."""
        self._dropped = True
        self.cancel()

    def join(self, timeout: float) -> bool:
        """Wait for the end; returns whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        result = self._work()
        # An update that was finished just before the cancelling counts: all its work is done.
        self._ended(stopped() if self._cancelled.is_set() and result.sha256 is None else result)

    def _work(self) -> Result:
        try:
            # Waiting for the device costs no child process: it is started when there is something to do.
            self._pause(self._cancelled)
        except UnavailableError as error:
            return Result(status="declined", reason=as_reason(str(error)))
        task = self._settings.task(
            patience=self._pause.left, train_seconds=self._time_left(), announcement=self.announcement
        )

        # Before the next work may begin: its checkpoint has the same name.
        def finished() -> None:
            if self._dropped:
                task.checkpoint.unlink(missing_ok=True)

        return self._runner.run(
            task,
            self._cancelled,
            told=self._told,
            attempts=self._attempts,
            name=answer_key(self.announcement),
            what="in training",
            finished=finished,
        )

    def _waits(self, reason: str) -> None:
        if reason:
            self._told(Report(say="waits", reason=as_reason(reason)))

"""When a device fine-tunes a copy of the model that became active: between rounds, once for each, and after all other work."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress

from components.trainer.attempts import Attempts
from components.trainer.job import Settings
from components.trainer.runner import Runner
from components.trainer.task import FINE_TUNING, Activated, Result
from fedgrass.edge.component import Device
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.resource_policy import ResourcePolicy
from fedgrass.edge.settings import ModelDeployerSettings, read
from fedgrass.errors import FedgrassError
from fedgrass.files import write_atomically
from fedgrass.logs import Log
from fedgrass.protocol.message import MOST_METRICS
from fedgrass.protocol.names import MODEL_DEPLOYER

# Between two looks at whether there is something to do; what gave way goes on at the next.
LOOK_SECONDS = 60.0
AGAIN_SECONDS = 3600.0
"""Until what failed is tried again: data, disk or memory may have come meanwhile."""
# Models of which it is known that they were fine-tuned: more than a store ever holds to go back to.
_KNOWN = 200


class FineTuning:
    """Fine-tunes, and notes what came of it; its methods run on the device's loop.

    Parameters
    ----------
    settings
        Asked each time, as they change.
    objection
        Says why nothing exact about the data may be told, or nothing; may be asked from any thread.
    busy
        Whether a round is worked on.
    ended
        Called when a fine-tuning has ended, however.
    """

    def __init__(
        self,
        device: Device,
        runner: Runner,
        guard: ResourcePolicy,
        log: Log,
        *,
        settings: Callable[[], Settings],
        objection: Callable[[], str],
        busy: Callable[[], bool],
        ended: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._ipc = device.ipc
        self._loop = device.loop
        self._store = ModelStore(device.store)
        self._runner = runner
        self._guard = guard
        self._log = log
        self._settings = settings
        self._objection = objection
        self._busy = busy
        self._ended = ended
        self._clock = clock
        self._attempts = Attempts(device.work / "attempts" / "fine-tuning.json")
        self._checkpoint = device.work / FINE_TUNING
        self._path = device.work / "fine-tuned.json"
        self._done = self._load()
        self._failed: tuple[str, Settings] | None = None
        self._again_at = 0.0
        self._at_work: str = ""
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def works(self) -> bool:
        """Whether a model is being fine-tuned."""
        return bool(self._at_work)

    def start(self) -> None:
        """Look from now on."""
        self._loop.every(lambda: LOOK_SECONDS, self.look)

    def stop(self) -> None:
        """End after the batch at hand; what was done is in the checkpoint."""
        self._cancelled.set()

    def join(self, timeout: float) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def look(self) -> None:
        """Begin, if there is a model to fine-tune and the device has time; end, if it is no longer the active one."""
        settings, asked = self._settings(), self._asked()
        mark = asked.mark if asked is not None else ""
        if self.works:
            if mark != self._at_work:
                self._cancelled.set()
            return
        if asked is None:
            with suppress(OSError):  # of what was switched off, or taken back, nothing stays
                self._checkpoint.unlink(missing_ok=True)
            return
        if self._failed == (mark, settings) and self._clock() < self._again_at:
            return
        if self._busy() or self._guard.hold() is not None:
            return
        try:
            asked = asked.model_copy(update={"deployer": read(self._ipc, MODEL_DEPLOYER, ModelDeployerSettings)})
        except FedgrassError as error:
            self._failed_so(mark, settings, str(error))
            return
        self._at_work, self._cancelled = mark, threading.Event()
        cancelled, chosen = self._cancelled, asked

        def fine_tune() -> None:
            result = self._run(chosen, settings, cancelled)
            self._loop.post(lambda: self._has_ended(mark, settings, result))

        # On a thread of its own, since it waits for a child.
        self._thread = threading.Thread(target=fine_tune, name="fine-tuning", daemon=True)
        self._thread.start()

    def _asked(self) -> Activated | None:
        """Return the active model, if this device is to fine-tune it and has not."""
        active = self._store.active() if self._settings().own.fine_tune_epochs else None
        if active is None:
            return None
        asked = Activated.of(active)
        return None if asked.mark in self._done else asked

    def _run(self, asked: Activated, settings: Settings, cancelled: threading.Event) -> Result:
        result = self._runner.run(
            # Patience is not needed: where the device is held it gives way.
            settings.task(patience=AGAIN_SECONDS, activated=asked),
            cancelled,
            attempts=self._attempts,
            name=asked.mark,
            what="in fine-tuning",
            gives_way=True,
        )
        if result.status != "done":
            return result
        # Asked when it is over: a round that hides figures may have been announced meanwhile.
        if self._objection():
            return Result(status="done")
        try:
            self._note(asked, result)
        except (FedgrassError, OSError) as error:
            return Result(status="failed", reason=str(error))
        return result

    def _note(self, asked: Activated, result: Result) -> None:
        """Note the figures where ModelDeployer finds them and tells the cloud: beside those of the model's admission."""
        with self._store.lock():
            if not asked.is_still(self._store.active()):
                return
            earlier = [one.metrics for one in self._store.admissions() if one.version == asked.version]
            metrics = result.metrics | {k: v for k, v in (earlier or [{}])[-1].items() if k not in result.metrics}
            kept = dict(list(metrics.items())[:MOST_METRICS])
            self._store.record(asked.version, "active", reason=result.reason, metrics=kept)

    def _has_ended(self, mark: str, settings: Settings, result: Result) -> None:
        self._at_work = ""
        version = mark.split()[0]
        if result.status == "done" or result.given_up:
            self._keep(mark)
            with suppress(OSError):
                self._checkpoint.unlink(missing_ok=True)
        if result.status == "done":
            self._log.log_event("fine_tuned", version=version, reason=result.reason, metrics=result.metrics)
        elif result.given_up:
            self._log.log_event("not_fine_tuned", version=version, reason=result.reason)
        elif result.status != "stopped":
            self._failed_so(mark, settings, result.reason)
        self._ended()

    def _failed_so(self, mark: str, settings: Settings, reason: str) -> None:
        self._failed, self._again_at = (mark, settings), self._clock() + AGAIN_SECONDS
        self._log.log_event("not_fine_tuned", version=mark.split()[0], reason=reason)

    def _keep(self, mark: str) -> None:
        self._done = [*self._done, mark][-_KNOWN:]
        # On a full disk it is known until the next start, and then done again, to the same result.
        with suppress(OSError):
            write_atomically(self._path, json.dumps(self._done).encode())

    def _load(self) -> list[str]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return []
        return [mark for mark in found if isinstance(mark, str)][-_KNOWN:] if isinstance(found, list) else []

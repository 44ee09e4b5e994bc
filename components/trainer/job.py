"""One round's work on a thread of its own, so that the component stays responsive while it trains."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedgrass import data
from fedgrass.answer import Refusal
from fedgrass.bundle import Bundle
from fedgrass.downloads import ObjectStore, fetch_bundle
from fedgrass.edge.downloads import keep_newest, retried
from fedgrass.edge.guard import Guard, HeldError, Pause
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.settings import RuntimeSettings, TrainerSettings
from fedgrass.edge.throttle import CpuBudget
from fedgrass.engines.base import Engine, FitState, Hooks, StopTraining
from fedgrass.engines.registry import open_engine
from fedgrass.errors import DataError, FedgrassError
from fedgrass.logs import Log
from fedgrass.protocol.messages import Announcement, Base
from fedgrass.training import Evaluated, Trained, evaluate, train

_BUNDLES_KEPT = 2


Outcome = Trained | Evaluated | Refusal | None
"""None: the job was cancelled, and may be done again."""


@dataclass(frozen=True)
class Workshop:
    """What every job uses."""

    thing: str
    work: Path
    store: ModelStore
    runtime: RuntimeSettings
    settings: TrainerSettings
    guard: Guard
    s3: Callable[[], ObjectStore]
    log: Log

    @property
    def update(self) -> Path:
        """File that a job writes its update to."""
        return self.work / "update.safetensors"

    @property
    def checkpoint(self) -> Path:
        """File that holds a training between two batches."""
        return self.work / "checkpoint.safetensors"

    def bundle(self, base: Base, bucket: str, cancelled: threading.Event) -> Bundle | None:
        """Return a model: from the model store if it holds it, else downloaded; None once cancelled.

        Raises
        ------
        BundleError
            If what is found is another model, or too large.
        """
        stored = self.store.find(base.version, parameters_sha256=base.parameters_sha256, graph_sha256=base.graph_sha256)
        if stored is not None:
            return stored
        folder = self.work / "bundles" / f"{base.version}-{base.parameters_sha256[:16]}"
        self.log.info("base model is not on this device, downloading it", base=base.version)

        def download() -> Bundle:
            return fetch_bundle(self.s3(), bucket, base, folder, max_bytes=self.settings.max_bundle_mb << 20)

        bundle = retried(download, cancelled, self.log)
        if bundle is not None:
            os.utime(folder)
            keep_newest(folder.parent, _BUNDLES_KEPT)
        return bundle

    @property
    def residual(self) -> Path:
        """File that holds what a lossy codec left out of this device's updates."""
        return self.work / "residual.safetensors"


class Job:
    """Training, or evaluating, for one announcement.

    Parameters
    ----------
    data_in_use
        Held while data and engine are: a job that was cancelled may still be at its last batch.
    progressed
        Called on the job's thread: with 0 when training starts, then with the number of epochs done, and when it goes on.
    paused
        Called on the job's thread with the reason for which it waits.
    ended
        Called on the job's thread, last.
    """

    def __init__(
        self,
        announcement: Announcement,
        workshop: Workshop,
        data_in_use: threading.Lock,
        *,
        progressed: Callable[[int, int], None],
        paused: Callable[[str], None],
        ended: Callable[[Outcome], None],
    ) -> None:
        self.announcement = announcement
        self._examples = 0
        self._epoch: int | None = None
        self._workshop = workshop
        self._data_in_use = data_in_use
        self._progressed = progressed
        self._paused = paused
        self._pause = Pause(workshop.guard, workshop.settings.wait_seconds, self._waits)
        self._ended = ended
        self._cancelled = threading.Event()
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name=f"round-{announcement.round}", daemon=True)
        self._log = workshop.log.bind(round=announcement.round)

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
        outcome: Outcome
        try:
            be_nice(self._workshop.settings.nice_level)
            outcome = self._work()
        except StopTraining:
            outcome = None
        except (DataError, HeldError) as error:
            outcome = Refusal("declined", str(error))
        except FedgrassError as error:
            outcome = Refusal("failed", str(error))
        except OSError as error:
            outcome = Refusal("failed", f"{error.filename or 'a file'}: {error.strerror}")
        except Exception as error:  # noqa: BLE001 - a loader or an engine of the user's own may raise anything
            self._log.error("training failed unexpectedly", trace=True)
            outcome = Refusal("failed", f"{type(error).__name__}: {error}")
        self._ended(None if self._cancelled.is_set() and not isinstance(outcome, Trained) else outcome)

    def _work(self) -> Outcome:
        self._pause(self._cancelled)
        announced = self.announcement
        bundle = self._workshop.bundle(announced.base, announced.upload.bucket, self._cancelled)
        if bundle is None:
            return None
        while not self._data_in_use.acquire(timeout=0.2):
            if self._cancelled.is_set():
                return None
        try:
            return self._evaluate(bundle) if announced.task == "evaluate" else self._train(bundle)
        finally:
            self._data_in_use.release()

    def _evaluate(self, bundle: Bundle) -> Evaluated | None:
        split = data.load(self._workshop.runtime.data, bundle.manifest)
        self._log.info("evaluating", examples=len(split.validation), model=bundle.manifest.version)
        announced = self.announcement
        compared: Bundle | None = None
        if announced.compare is not None:
            compared = self._workshop.bundle(announced.compare, announced.upload.bucket, self._cancelled)
            if compared is None:
                return None
        return evaluate(self._engine(bundle), split, compared.parameters() if compared else None)

    def _engine(self, bundle: Bundle) -> Engine:
        runtime = self._workshop.runtime
        return open_engine(runtime.engine, bundle, threads=runtime.threads, builder=runtime.builder)

    def _train(self, bundle: Bundle) -> Trained:
        shop = self._workshop
        engine = self._engine(bundle)
        split = data.load(shop.runtime.data, bundle.manifest)
        self._examples = len(split.train)
        self._log.info("training", examples=self._examples, base=bundle.manifest.version)
        budget = CpuBudget(shop.settings.cpu_budget, shop.runtime.threads, self._cancelled.wait)
        self._epoch = 0
        self._progressed(0, self._examples)
        try:
            return train(
                engine,
                bundle.parameters(),
                bundle.manifest,
                split,
                self.announcement,
                shop.thing,
                update=shop.update,
                checkpoint=shop.checkpoint,
                residual=shop.residual,
                hooks=Hooks(lambda _epoch, _step: self._after_batch(budget), self._after_epoch),
            )
        finally:
            if self._dropped:
                shop.checkpoint.unlink(missing_ok=True)

    def _waits(self, reason: str) -> None:
        if reason:
            self._log.info("training waits", reason=reason)
            self._paused(reason)
        elif self._epoch is not None:
            self._progressed(self._epoch, self._examples)

    def _after_batch(self, budget: CpuBudget) -> None:
        self._pause(self._cancelled)
        budget.after_batch()
        if self._cancelled.is_set():
            raise StopTraining

    def _after_epoch(self, state: FitState) -> None:
        self._epoch = state.epoch
        self._progressed(state.epoch, self._examples)


def be_nice(level: int) -> None:
    """Lower the priority of this thread and of those it starts: the component itself stays responsive."""
    thread = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, thread) + level
    os.setpriority(os.PRIO_PROCESS, thread, min(nice, 19))

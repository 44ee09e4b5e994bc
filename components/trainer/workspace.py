"""What the child has at hand for its work: the task, the model it is about, an engine, and how it is to go on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from components.trainer.known import downloads
from components.trainer.task import Order, Report, Task
from fedgrass import data
from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.control import ControlFiles, fetch_control
from fedgrass.downloads import ObjectStore, fetch, fetch_bundle
from fedgrass.edge.downloads import keep_newest, retried
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.resource_policy import Block, Pause
from fedgrass.edge.throttle import CpuBudget
from fedgrass.engines.base import Batch, Dataset, Engine, StopTraining
from fedgrass.engines.flower_node import Node, join
from fedgrass.engines.registry import open_engine
from fedgrass.engines.shipped import have_packages, own_builder
from fedgrass.files import write_atomically
from fedgrass.logs import Log
from fedgrass.partial import Ending, ending_of
from fedgrass.personal import Own
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Announcement, Base

if TYPE_CHECKING:
    from fedgrass.protocol.profile import Profile, ProfileReference

# The base of this round, and the one it is compared with.
_BUNDLES_KEPT = 2
_BUILDERS_KEPT = 4


class Orders:
    """The newest order, as the guard of this process: the component measures the device, and knows its application."""

    def __init__(self) -> None:
        self._newest = Order()
        self.stopping = threading.Event()

    def given(self, order: Order) -> None:
        """Take a new order in; from any thread."""
        self._newest = order
        if order.stop:
            self.stopping.set()

    def hold(self) -> Block | None:
        """Return why not to train now; None if nothing is against it."""
        return Block("wait", self._newest.hold) if self._newest.hold else None

    def is_slow(self) -> bool:
        """Whether to leave the processor to other programs half of the time."""
        return self._newest.slow


class Workspace:
    """One task's.

    Parameters
    ----------
    say
        Sends a report.
    s3
        Makes the client that models are downloaded with.
    """

    def __init__(
        self, task: Task, orders: Orders, say: Callable[[Report], None], s3: Callable[[], ObjectStore], log: Log
    ) -> None:
        self.task = task
        self.log = log
        self.store = ModelStore(task.store)
        self._say = say
        self._s3 = s3
        self._stopping = orders.stopping
        # The patience is what the component has left of it: time that was spent waiting before the child began counts
        # too.
        self._pause = Pause(orders, task.patience, self._waits)
        threads, share = task.runtime.threads, task.settings.cpu_budget
        self._budget = CpuBudget(share, threads, orders.stopping.wait)
        self._began = time.monotonic()
        self._ending: Ending | None = None
        self._epoch: int | None = None
        self._examples = 0

    def bundle(self, base: Base, bucket: str) -> Bundle:
        """Return a model: from the model store if it holds it, else downloaded.

        Raises
        ------
        BundleError
            If what is found is another model, or too large.
        StopTraining
            If the order came meanwhile.
        """
        stored = self.store.find(base.version, parameters_sha256=base.parameters_sha256, graph_sha256=base.graph_sha256)
        # Most rounds start from the released model, which admission has stored already: nothing is downloaded.
        if stored is not None:
            return stored
        folder = downloads(self.task.work) / f"{base.version}-{base.parameters_sha256[:16]}"
        self.log.log_event("base_downloading", base=base.version)

        def download() -> Bundle:
            return fetch_bundle(self._s3(), bucket, base, folder, max_bytes=self.task.settings.max_bundle_mb << 20)

        bundle = retried(download, self._stopping, self.log)
        if bundle is None:
            raise StopTraining
        # Without it nobody could open the folder: what counts the examples has no announcement.
        write_atomically(folder / MANIFEST, bundle.manifest.to_json())
        # Used now, so that it is among the newest when others are deleted.
        os.utime(folder)
        keep_newest(folder.parent, _BUNDLES_KEPT)
        return bundle

    def control(self, announcement: Announcement, bundle: Bundle) -> ControlFiles | None:
        """Return where a strategy's state is, the fleet's downloaded; None if the round's strategy has devices keep none.

        Raises
        ------
        BundleError
            If the fleet's is not what was announced.
        StopTraining
            If the order came meanwhile.
        """
        if announcement.fit.control is None:
            return None
        store, bucket = self._s3, announcement.upload.bucket

        def download() -> ControlFiles:
            server = fetch_control(store(), bucket, announcement, bundle.manifest, self.task.work)
            return ControlFiles(self.task.control, server)

        files = retried(download, self._stopping, self.log)
        if files is None:
            raise StopTraining
        return files

    def fetch(self, bucket: str, key: str, path: Path, *, sha256: str, most: int) -> None:
        """Download an object of known digest.

        Parameters
        ----------
        bucket
            The bucket.
        key
            The object's key.
        path
            File to write; one that holds the object already is kept.
        sha256
            Digest that the object must have.
        most
            Bytes that it may have.

        Raises
        ------
        BundleError
            If it is another, or larger than ``most`` bytes.
        StopTraining
            If the order came meanwhile.
        """

        def download() -> bool:
            fetch(self._s3(), bucket, key, path, sha256=sha256, size=most, exact=False)
            return True

        if retried(download, self._stopping, self.log) is None:
            raise StopTraining

    def engine(self, bundle: Bundle) -> Engine:
        """Make the engine that the device's settings name, with a model as the fleet has it."""
        runtime = self.task.runtime
        engine = open_engine(runtime.engine, bundle, threads=runtime.threads, builder=self._builder(bundle))
        task, asked = self.task, self.task.announcement
        about = (asked.round, asked.fit.config) if asked is not None else (0, {})
        # What a Flower app keeps from round to round would change its updates if it came from elsewhere.
        state = self.file("flower") if task.activated is None else None
        return join(engine, Node(task.thing, {**runtime.node_config, "thing": task.thing}, state, *about))

    def try_engine(self, bundle: Bundle) -> None:
        """Open a model as a round would; raises what that raises, and what `FlowerEngine.check` does."""
        engine = self.engine(bundle)
        if (check := getattr(engine, "check", None)) is not None:
            check(self.split(bundle).train)

    def own(self, bundle: Bundle, identity: str = "") -> Own:
        """Return the parameters of a model that this device keeps for itself; see `Own.of`."""
        return Own.of(bundle.manifest, self.store.device.own, identity)

    def profile(self, named: ProfileReference, bucket: str) -> Profile:
        """Return a profile of the fleet that an announcement names, downloaded.

        Raises
        ------
        BundleError
            If it is not what was announced, or larger than this device takes.
        DataError
            If it is not a profile.
        StopTraining
            If the order came meanwhile.
        """
        from fedgrass.profile.device import fetch_profile

        most = self.task.settings.max_bundle_mb << 20

        def download() -> Profile:
            return fetch_profile(self._s3(), bucket, named, self.task.work, max_bytes=most)

        found = retried(download, self._stopping, self.log)
        if found is None:
            raise StopTraining
        return found

    def paced(self, examples: Dataset) -> Dataset:
        """Return the same examples, with a rest after each batch as the owner's limits have it."""
        return _Paced(examples, lambda: self.after_batch(0, 0))

    def split(self, bundle: Bundle, *, keep_missing: bool = False) -> data.Split:
        """Read this device's examples for a model, and say what was left out, filled in or guessed.

        Parameters
        ----------
        bundle
            The model.
        keep_missing
            Whether missing values of x stay NaN, as statistics count them.
        """
        self._builder(bundle)
        # The builder first: a loader of the owner's may come with its code.
        settings = self.task.runtime.data
        found = data.load(settings.keeping_missing() if keep_missing else settings, bundle.manifest)
        if found.account is not None:
            if found.account.trouble:
                self.log.log_event("data_left_out", reason=found.account.trouble, first=found.account.reasons)
            if found.account.notes:
                self.log.log_event("data_read", notes=found.account.notes)
        return found

    def live(self, bundle: Bundle, rows: int, path: str = "") -> Dataset:
        """Return the newest of this device's examples, or those of a file of their own, missing values of x as NaN.

        Parameters
        ----------
        bundle
            The model.
        rows
            How many at most.
        path
            Where they are, if not where the examples are that train.
        """
        from fedgrass.data.newest import newest

        self._builder(bundle)
        return newest(self.task.runtime.data, bundle.manifest, rows, path)

    def count(self, bundle: Bundle) -> int:
        """Return how many examples there are to train on."""
        self._builder(bundle)
        return data.count(self.task.runtime.data, bundle.manifest)

    def progressed(self, epoch: int, examples: int) -> None:
        """Say how many epochs are done."""
        self._epoch, self._examples = epoch, examples
        self._say(Report(say="progress", epoch=epoch, examples=examples))

    def ending(self, examples: Dataset, announcement: Announcement, batch_size: int) -> Ending | None:
        """Return when the training for a round is over before its end; None: never."""
        seconds, floors = self.task.train_seconds, self.task.floors
        if seconds is not None:
            self._ending = ending_of(
                examples,
                announcement.fit,
                batch_size,
                lambda: time.monotonic() - self._began >= seconds,
                least=(floors.examples, floors.steps),
            )
        return self._ending

    def after_batch(self, epoch: int, step: int) -> None:
        """Wait, rest or stop, as ordered."""
        ending = self._ending
        # The owner's limits first: they may hold the training for an hour. What is there may be sent meanwhile.
        self._pause(self._stopping, lambda: ending is not None and ending.after(epoch, step))
        self._budget.after_batch()
        if self._stopping.is_set():
            raise StopTraining

    def file(self, name: str) -> Path:
        """Return a file of the trainer's."""
        return self.task.work / name

    def _builder(self, bundle: Bundle) -> str:
        """Return what builds a model here; its code, with which a loader of the owner's may come, is then importable."""
        runtime, folder = self.task.runtime, self.task.builders
        have_packages(runtime.packages)
        found = own_builder(bundle, runtime.builders, runtime.builder, folder)
        if folder.is_dir():
            keep_newest(folder, _BUILDERS_KEPT)
        return found

    def _waits(self, reason: str) -> None:
        if reason:
            self.log.log_event("training_waiting", reason=reason)
            self._say(Report(say="waits", reason=as_reason(reason)))
        elif self._epoch is not None:
            self.progressed(self._epoch, self._examples)


class _Paced:
    """Examples with something to do after each batch."""

    def __init__(self, examples: Dataset, after: Callable[[], None]) -> None:
        self._examples = examples
        self._after = after

    def __len__(self) -> int:
        return len(self._examples)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        for batch in self._examples.batches(batch_size, seed=seed):
            yield batch
            self._after()

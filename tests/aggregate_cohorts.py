"""The many ways in which the aggregation of a made-up cohort must come to the same bytes."""

from __future__ import annotations

import io
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedgrass.cloud.aggregator import combination, rows, tiles
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate, contribute
from fedgrass.cloud.aggregator.exchange import BucketPartialSums
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.errors import AggregationError, UpdateError
from tests.aggregate_mixes import Mix
from tests.aggregate_reference import REFERENCES, Rule, believed, bounded, decoded
from tests.fedgrass.cloud.aggregator.updates import flat

"""The bound on norms that bad updates exceed."""


class Storage:
    """An `UpdateSource` in memory."""

    def __init__(self, mix: Mix, *, with_bad: bool, order: random.Random) -> None:
        self._held: dict[str, bytes | None] = {}
        self._references: list[UpdateReference] = []
        for thing, content in mix.good.items():
            self._put(UpdateReference(thing, f"{thing}/update", len(content)), content)
        if with_bad:
            for reference, held, _ in mix.bad:
                self._put(reference, held)
        order.shuffle(self._references)

    def _put(self, reference: UpdateReference, content: bytes | None) -> None:
        self._references.append(reference)
        self._held[reference.key] = content

    def list(self) -> list[UpdateReference]:
        """Everything."""
        return list(self._references)

    def open(self, reference: UpdateReference) -> BinaryIO:
        """What is there."""
        content = self._held[reference.key]
        if content is None:
            raise UpdateError("missing", "gone")
        return io.BytesIO(content)


class DyingError(Exception):
    """An instance is killed."""


class Meeting:
    """A `fedgrass.cloud.aggregator.exchange.Place` in memory; an instance dies at its n-th word if told to."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self.dies: dict[str, int] = {}

    def uri(self, key: str) -> str:
        """The key."""
        return key

    def read(self, key: str, *, max_bytes: int) -> bytes | None:
        """What is there."""
        del max_bytes
        return self._held.get(key)

    def write(self, key: str, content: bytes) -> None:
        """Write it, if the instance lives so long."""
        name = threading.current_thread().name
        if name in self.dies:
            self.dies[name] -= 1
            if self.dies[name] < 0:
                del self.dies[name]
                raise DyingError
        with self._changed:
            if self._held.setdefault(key, content) != content:
                raise AssertionError(f"{key}: an instance that was started again wrote other bytes")
            self._changed.notify_all()

    def write_file(self, key: str, path: Path) -> None:
        """Write a file."""
        self.write(key, path.read_bytes())

    def open(self, key: str, size: int) -> BinaryIO:
        """What is there."""
        if len(self._held[key]) != size:
            raise AssertionError(f"{key}: {len(self._held[key])} bytes, expected {size}")
        return io.BytesIO(self._held[key])

    def wait(self, _seconds: float) -> None:
        """Wait for a word of another instance."""
        with self._changed:
            self._changed.wait(0.02)


@contextmanager
def arranged(*, large: bool = False, threads: int = 1, together: int = 64) -> Iterator[None]:
    """Set what a result must not depend on: threads, window; and whether models are read tile by tile."""
    before = combination.SMALL, rows.THREADS, tiles.THREADS, tiles.TOGETHER, rows._WORTH
    combination.SMALL = -1 if large else before[0]
    rows.THREADS = tiles.THREADS = threads
    tiles.TOGETHER, rows._WORTH = together, 1
    try:
        yield
    finally:
        combination.SMALL, rows.THREADS, tiles.THREADS, tiles.TOGETHER, rows._WORTH = before


def run(
    mix: Mix, order: random.Random, *, with_bad: bool = True, instances: int = 1, deaths: int = 0
) -> Aggregation | str:
    """Aggregate; several instances meet in memory, and some of them die and are started again. An error is its text."""
    storage = Storage(mix, with_bad=with_bad, order=order)
    strategy = mix.made()
    if instances == 1 or strategy.needs_all:
        try:
            return aggregate(mix.base, storage, storage.list(), strategy, mix.expected)
        except AggregationError as error:
            return str(error)
    meeting = Meeting()
    things = [f"instance-{index}" for index in range(instances)]
    meeting.dies = {thing: order.randrange(4) for thing in order.sample(things, min(deaths, instances))}
    found: list[Aggregation] = []

    def work(index: int) -> None:
        threading.current_thread().name = things[index]
        while True:
            with tempfile.TemporaryDirectory() as scratch:
                share = BucketPartialSums(
                    index, instances, meeting, "", Path(scratch), patience=300, sleep=meeting.wait
                )
                try:
                    if index:
                        contribute(mix.base, storage, storage.list(), strategy, mix.expected, share)
                    else:
                        found.append(
                            aggregate(
                                mix.base,
                                storage,
                                storage.list(),
                                strategy,
                                mix.expected,
                                AggregationOptions(share=share),
                            )
                        )
                except DyingError:
                    continue
                return

    with ThreadPoolExecutor(instances) as pool:
        for done in [pool.submit(work, index) for index in range(instances)]:
            done.result()
    return found[0]


def essence(result: Aggregation | str, *, refused: bool = True) -> Any:
    """What must be the same to the byte."""
    if isinstance(result, str):
        return result
    parameters = None if result.parameters is None else flat(result.parameters).tobytes()
    state = {name: vector.tobytes() for name, vector in result.state.items()}
    used = [entry.model_dump_json() for entry in result.updates]
    return parameters, state, used, result.problem, [(q.key, q.reason) for q in result.quarantined] if refused else None


def reference_of(mix: Mix) -> tuple[np.ndarray[Any, Any], float] | None:
    """The difference that plain NumPy finds, of strategies that it knows, a server optimizer's first step too; and its scale.

    The scale is that of what was added: a small mean of large values has their rounding. What an adaptive optimizer makes of
    a difference grows up to 100 times as fast as that (0.1 / tau).
    """
    name, options = mix.strategy
    sizes = [parameter.size for parameter in mix.base.manifest.parameters]
    kind = "equal" if options.get("weighting") == "equal" else name
    steps: dict[str, Callable[[Any], Any]] = {
        "fedavgm": lambda d: 0.5 * d,
        "fedadagrad": lambda d: 0.1 * d / (np.abs(d) + 1e-3),
        "fedadam": lambda d: 0.1 * (0.1 * d) / (np.sqrt(0.01 * d**2) + 1e-3),
        "fedyogi": lambda d: 0.1 * (0.1 * d) / (np.sqrt(0.01 * d**2) + 1e-3),
    }
    step = steps.get(name, lambda d: d)
    kind = "fedavg" if name == "fedprox" or name in steps else kind
    if kind not in REFERENCES or not mix.good:
        return None
    clip = options.get("clip", {})
    rule = Rule(
        mix.checks.max_examples,
        mix.checks.max_examples_over_median,
        mix.checks.clip_norm_over_median,
        clip.get("norm", 0.0),
        clip.get("over_median", 0.0),
    )
    ordered = [decoded(content, sizes) for _, content in sorted(mix.good.items())]
    counted = believed(bounded(ordered, rule), kind, rule)
    largest = max(float(np.abs(one.values).max(initial=0.0)) for one in counted)
    slope = 100.0 if name in {"fedadagrad", "fedadam", "fedyogi"} else 1.0
    wanted = np.asarray(step(REFERENCES[kind](counted)))
    return wanted, max(float(np.abs(wanted).max(initial=0.0)), slope * largest)


def now() -> float:
    """Seconds."""
    return time.perf_counter()

"""Made-up cohorts, good and bad updates mixed, and the many ways in which their aggregation must come to the same bytes."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator import arithmetic, combination, rows, tiles
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate, contribute
from fedgrass.cloud.aggregator.exchange import BucketPartialSums
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import EarlierRound, Expected
from fedgrass.errors import AggregationError, UpdateError
from fedgrass.protocol.cohort import is_member
from fedgrass.protocol.messages import Cohort
from fedgrass.protocol.settings import Checks
from fedgrass.strategies import Strategy, strategy_named
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import encode_update
from tests.aggregate_reference import REFERENCES, Rule, believed, bounded, decoded
from tests.fedgrass.cloud.aggregator.updates import flat, tiny_model

COUNTS = (0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300)
SIZES = (0, 1, 2, 7, 8, 9, 31, 255, 256, 257, 1023, 1024, 1025)
CODECS = (
    "float32",
    "float16",
    "int8",
    "int4",
    "topk:0.05",
    "topk:0.3+float16",
    "topk:0.1+int8",
    "topk:0.3+int4",
    "float32+zstd",
    "int8+zstd",
    "topk:0.1+int4+zstd",
)
ROUND, FLEET = 5, "mill"
SALT = Cohort(salt="pepper", fraction=0.95)
STRATEGIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fedavg", {}),
    ("fedavg", {"weighting": "equal"}),
    ("fedavg", {"clip": {"norm": 0.5}}),
    ("fedavg", {"clip": {"over_median": 1.5}}),
    ("fedprox", {}),
    ("fedavgm", {"learning_rate": 0.5}),
    ("fedadagrad", {}),
    ("fedadam", {}),
    ("fedyogi", {}),
    ("fednova", {}),
    ("qfedavg", {}),
    ("fedbuff", {}),
    ("median", {}),
    ("trimmed_mean", {}),
    ("geometric_median", {}),
    ("krum", {}),
    ("multi_krum", {}),
    ("bulyan", {"attackers": 0.1}),
)
LONG = 1e6
"""The bound on norms that bad updates exceed."""


@dataclass
class Mix:
    """A cohort: what storage holds, what is expected, and what is known of it."""

    base: Bundle
    strategy: tuple[str, dict[str, Any]]
    checks: Checks
    good: dict[str, bytes]
    bad: list[tuple[UpdateReference, bytes | None, str]] = field(default_factory=list)

    @property
    def expected(self) -> Expected:
        """What updates must be."""
        manifest = self.base.manifest
        earlier = {ROUND - 1: EarlierRound("e" * 64, 1, None, {"late/replayed": ("other",)})}
        return Expected(
            manifest.parameters_sha256,
            manifest.graph_sha256,
            FLEET,
            ROUND,
            SALT,
            self.checks,
            earlier if self.strategy[0] == "fedbuff" else {},
        )

    def made(self) -> Strategy:
        """The strategy."""
        return strategy_named(self.strategy[0], **self.strategy[1])


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


class Maker:
    """Makes cohorts out of a model and a set of files in all codecs, which are given other headers each time."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._chance = random.Random(seed)
        sizes = [self._chance.choice(SIZES) for _ in range(self._chance.randint(1, 5))]
        if self._chance.random() < 0.03:
            sizes.append(self._chance.choice([arithmetic.PIECE, tiles.TILE]) + self._chance.randint(-1, 1))
        if sum(sizes) == 0:
            sizes.append(3)
        self.base = tiny_model(folder, *sizes)
        self._things = [f"press-{i:03d}" for i in range(900)]

    def mix(self, most: int = 300) -> Mix:
        """A cohort."""
        chance = self._chance
        strategy = chance.choice(STRATEGIES)
        unbounded = {"max_examples_over_median": 0.0, "clip_norm_over_median": 0.0}
        checks = Checks.model_validate({"max_norm": LONG, **(unbounded if chance.random() < 0.5 else {})})
        count = chance.choice([count for count in COUNTS if count <= most])
        names = self._things[:]
        chance.shuffle(names)
        invited = [name for name in names if is_member(SALT.salt, SALT.fraction, name)]
        codecs = [chance.choice(CODECS)] if chance.random() < 0.5 else list(CODECS)
        mix = Mix(self.base, strategy, checks, {})
        for thing in invited[:count]:
            mix.good[thing] = self._good(thing, chance.choice(codecs))
        junk = chance.choice([0, 1, 2, 15, 16, 17, 63, 64, 65, 128, 150])
        for thing in invited[count : count + min(junk, most)]:
            mix.bad.append(self._bad(mix, thing, names, chance.choice(codecs)))
        return mix

    def _good(self, thing: str, codec: str, **changes: Any) -> bytes:
        chance, zeros = self._chance, self.base.parameters()
        generator = np.random.default_rng(chance.getrandbits(32))
        scale = 0.0 if chance.random() < 0.05 else 10.0 ** chance.uniform(-3, 1)
        local = {name: (generator.normal(size=v.shape) * scale).astype(np.float32) for name, v in zeros.items()}
        encoded = encode_update(zeros, local, self._header(thing, codec, **changes), codec=codec)
        return encoded.to_bytes()

    def _header(self, thing: str, codec: str, **changes: Any) -> UpdateHeader:
        chance, manifest = self._chance, self.base.manifest
        fields = {
            "fleet": FLEET,
            "round": ROUND,
            "thing": thing,
            "base_sha256": manifest.parameters_sha256,
            "graph_sha256": manifest.graph_sha256,
            "num_examples": chance.choice([1, chance.randint(1, 100), chance.randint(1, 10_000), 1 << 40]),
            "metrics": {"steps": float(chance.randint(1, 50)), "loss": chance.uniform(0, 12)},
            "codec": codec,
        }
        return UpdateHeader.model_validate({**fields, **changes})

    def _bad(self, mix: Mix, thing: str, names: list[str], codec: str) -> tuple[UpdateReference, bytes | None, str]:
        chance = self._chance
        content = self._good(thing, codec)
        plain = self._good(thing, "float32")
        reference = UpdateReference(thing, f"{thing}/update", len(content))

        def of(bad: bytes, reason: str) -> tuple[UpdateReference, bytes, str]:
            return replace(reference, bytes=len(bad)), bad, reason

        kinds: list[Callable[[], tuple[UpdateReference, bytes | None, str]]] = [
            lambda: (replace(reference, thing="", key=f"odd/{thing}"), content, "unexpected_key"),
            lambda: (reference, None, "missing"),
            lambda: (replace(reference, bytes=1 << 40), content, "too_large"),
            lambda: of(content[: chance.randrange(len(content))], "truncated"),
            lambda: (reference, content[: chance.randrange(len(content))], "truncated"),
            lambda: of(b"\xff" * chance.randint(8, 300), "corrupt_header"),
            lambda: of(content + b"\0", "corrupt_header"),
            lambda: of(_changed(content, schema="2"), "wrong_schema"),
            lambda: of(_changed(content, codec="morse"), "unknown_codec"),
            lambda: of(_changed(content, num_examples="0"), "bad_examples"),
            lambda: of(_changed(content, round="5.0"), "corrupt_header"),
            lambda: of(_changed(content, metrics='{"loss":NaN}'), "corrupt_header"),
            lambda: of(self._good(thing, codec, fleet="other"), "wrong_fleet"),
            lambda: of(self._good(thing, codec, round=ROUND + 1), "wrong_round"),
            lambda: of(self._good("someone", codec), "foreign_thing"),
            lambda: of(self._good(thing, codec, base_sha256="1" * 64), "wrong_base"),
            lambda: of(self._good(thing, codec, graph_sha256="1" * 64), "wrong_graph"),
            lambda: of(_retensored(plain, lambda d: d.pop(next(iter(d)))), "wrong_parameters"),
            lambda: of(plain[:-4] + struct.pack("<f", chance.choice([np.nan, np.inf, -np.inf])), "not_finite"),
            lambda: of(plain[:-4] + struct.pack("<f", chance.choice([2e6, 3e38])), "norm_exceeded"),
        ]
        if "zstd" in codec:
            kinds.append(lambda: of(content[:-1] + bytes([content[-1] ^ 1]), "corrupt_data"))
        if mix.good:
            twin = chance.choice(sorted(mix.good))
            kinds.append(lambda: (UpdateReference(twin, f"{twin}/z{thing}", len(content)), content, "duplicate"))
        stranger = next(name for name in names if not is_member(SALT.salt, SALT.fraction, name))
        if all(known.thing != stranger for known, _, _ in mix.bad):
            kinds.append(lambda: (UpdateReference(stranger, f"{stranger}/u", len(content)), content, "uninvited"))
        if mix.strategy[0] in {"fednova", "qfedavg"}:
            kinds.append(lambda: of(self._good(thing, codec, metrics={}), "missing_metric"))
        if mix.strategy[0] == "fedbuff" and all(reason != "replayed" for _, _, reason in mix.bad):
            late = UpdateReference(thing, "late/replayed", len(content), etag="new", round=ROUND - 1)
            kinds.append(lambda: (late, content, "replayed"))
        return chance.choice(kinds)()


def _changed(content: bytes, **fields: str) -> bytes:
    return _reheaded(content, lambda document: document["__metadata__"].update(fields))


def _retensored(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Another first tensor's name."""

    def rename(document: dict[str, Any]) -> None:
        name = next(key for key in document if key != "__metadata__")
        document[name + "x"] = document.pop(name)

    del change
    return _reheaded(content, rename)


def _reheaded(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    document = json.loads(content[8 : 8 + length])
    change(document)
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def now() -> float:
    """Seconds."""
    return time.perf_counter()

"""Made-up cohorts: good updates of every codec and bad ones of every kind, mixed by a seed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator import arithmetic, tiles
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import EarlierRound, Expected
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.cohort import is_member
from fedgrass.protocol.messages import Cohort, UpdateTask
from fedgrass.strategies import Strategy, strategy_named
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import encode_update
from tests.fedgrass.cloud.aggregator.updates import tiny_model

ROUND, FLEET = 5, "mill"
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
        encoded = encode_update(zeros, local, self._header(thing, codec, **changes), UpdateTask(codec=codec))
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

"""An aggregation that shares no code with the aggregator: plain NumPy in float64 over the good updates, read by hand.

It knows the file format from its documentation (docs/reference), not from the code: safetensors, and the codecs' layouts.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Update:
    """What a good file says."""

    thing: str
    examples: int
    metrics: Mapping[str, float]
    values: Doubles

    @property
    def norm(self) -> float:
        """L2 norm."""
        return float(np.sqrt((self.values**2).sum()))


def decoded(content: bytes, sizes: Sequence[int]) -> Update:
    """Read a file that is known to be good."""
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    body = content[8 + length :]
    codec = metadata["codec"]
    if codec.endswith("+zstd"):
        codec, body = (
            codec.removesuffix("+zstd"),
            zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 28),
        )
    fraction = None
    if codec.startswith("topk:"):
        share, _, codec = codec.removeprefix("topk:").partition("+")
        fraction, codec = float(share), codec or "float32"
    pieces, at = [], 0
    for size in sizes:
        mask = np.ones(size, bool)
        count = size
        if fraction is not None:
            count = min(size, max(1, math.ceil(fraction * size)))
            marks = np.frombuffer(body, np.uint8, (size + 7) // 8, at)
            at += len(marks)
            mask = np.array([bool(marks[i // 8] >> (i % 8) & 1) for i in range(size)], bool)
        scalars, at = _numbers(codec, body, at, count)
        piece = np.zeros(size)
        piece[mask] = scalars
        pieces.append(piece)
    values = np.concatenate([*pieces, np.zeros(0)])
    return Update(metadata["thing"], int(metadata["num_examples"]), json.loads(metadata["metrics"]), values)


def _numbers(codec: str, body: bytes, at: int, count: int) -> tuple[Doubles, int]:
    if codec in {"float32", "float16"}:
        kind = np.dtype({"float32": "<f4", "float16": "<f2"}[codec])
        return np.frombuffer(body, kind, count, at).astype(np.float64), at + kind.itemsize * count
    group = {"int8": 1024, "int4": 256}[codec]
    groups = math.ceil(count / group)
    scales = np.frombuffer(body, "<f4", groups, at)
    at += 4 * groups
    if codec == "int8":
        codes, taken = np.frombuffer(body, np.int8, count, at).astype(np.int64), count
    else:
        taken = (count + 1) // 2
        packed = np.frombuffer(body, np.uint8, taken, at).astype(np.int64)
        codes = np.stack([packed % 16, packed // 16], axis=1).ravel()[:count]
        codes = np.where(codes > 7, codes - 16, codes)
    products = codes.astype(np.float32) * scales[np.arange(count) // group]  # a code's value is a float32
    return products.astype(np.float64), at + taken


@dataclass(frozen=True)
class Rule:
    """The settings that matter here; 0 is no bound."""

    examples: int = 1_000_000
    examples_over_median: float = 0.0
    clip_over_median: float = 0.0
    clip: float = 0.0
    clip_over: float = 0.0


def lower_median(values: Sequence[float]) -> float:
    """The middle one, or the lower of the two."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def bounded(updates: Sequence[Update], rule: Rule) -> list[Update]:
    """The updates as they count: examples capped, and long ones shortened."""
    updates = [replace(one, examples=min(one.examples, rule.examples)) for one in updates]
    norms = [one.norm for one in updates]
    moved = [norm for norm in norms if norm > 0]
    most = math.inf
    if rule.examples_over_median:
        most = max(1, math.floor(rule.examples_over_median * lower_median([one.examples for one in updates])))
    longest = math.inf
    middle = lower_median(moved) if moved else math.inf
    if rule.clip:
        longest = rule.clip
    elif rule.clip_over or rule.clip_over_median:
        longest = (rule.clip_over or rule.clip_over_median) * middle
    return [
        Update(
            one.thing, int(min(one.examples, most)), one.metrics, one.values * min(1.0, longest / norm if norm else 1.0)
        )
        for one, norm in zip(updates, norms, strict=True)
    ]


def believed(updates: Sequence[Update], kind: str, rule: Rule) -> list[Update]:
    """The updates with what they say of steps or losses as it counts, where the settings bound examples."""
    factor = rule.examples_over_median
    if not factor or kind not in {"fednova", "qfedavg"}:
        return list(updates)
    name, least = ("steps", 1.0) if kind == "fednova" else ("loss", 1e-10)
    said = [min(max(one.metrics[name], least), 10.0 if name == "loss" else math.inf) for one in updates]
    middle = lower_median(said)
    lowest = middle / factor if name == "steps" else 0.0
    counts = [min(max(value, lowest), middle * factor) for value in said]
    return [replace(one, metrics={**one.metrics, name: value}) for one, value in zip(updates, counts, strict=True)]


def mean_of(updates: Sequence[Update], weights: Any) -> Doubles:
    """The weighted mean."""
    weights = np.asarray(weights, np.float64)
    return np.asarray((weights[:, None] * np.stack([one.values for one in updates])).sum(axis=0) / weights.sum())


def fedavg(updates: Sequence[Update]) -> Doubles:
    """By examples."""
    return mean_of(updates, [one.examples for one in updates])


def equally(updates: Sequence[Update]) -> Doubles:
    """All alike."""
    return mean_of(updates, [1] * len(updates))


def fednova(updates: Sequence[Update]) -> Doubles:
    """Each per step, times the mean number of steps."""
    examples = np.array([one.examples for one in updates], np.float64)
    steps = np.array([max(1.0, one.metrics["steps"]) for one in updates])
    per_step = [
        Update(one.thing, one.examples, {}, one.values / step) for one, step in zip(updates, steps, strict=True)
    ]
    return fedavg(per_step) * float((examples * steps).sum() / examples.sum())


def qfedavg(updates: Sequence[Update], q: float = 1.0, rate: float = 0.1) -> Doubles:
    """Li et al. 2020, algorithm 2."""
    losses = np.array([min(10.0, max(1e-10, one.metrics["loss"])) for one in updates])
    slopes = np.stack([one.values for one in updates]) / rate
    h = q * losses ** (q - 1) * (slopes**2).sum(axis=1) + losses**q / rate
    return np.asarray((losses[:, None] ** q * slopes).sum(axis=0) / h.sum())


def median(updates: Sequence[Update]) -> Doubles:
    """Of each coordinate."""
    return np.asarray(np.median(np.stack([one.values for one in updates]), axis=0))


def trimmed_mean(updates: Sequence[Update], attackers: float = 0.2) -> Doubles:
    """Of each coordinate, without the outermost."""
    cut = math.floor(attackers * len(updates) + 1e-9)
    ordered = np.sort(np.stack([one.values for one in updates]), axis=0)
    return np.asarray(ordered[cut : len(updates) - cut].mean(axis=0))


REFERENCES: dict[str, Callable[[Sequence[Update]], Doubles]] = {
    "fedavg": fedavg,
    "equal": equally,
    "fednova": fednova,
    "qfedavg": qfedavg,
    "fedbuff": fedavg,
    "median": median,
    "trimmed_mean": trimmed_mean,
}

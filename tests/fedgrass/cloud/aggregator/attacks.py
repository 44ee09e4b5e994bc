"""Every rule under every attack, on devices alike and unlike: ``python -m tests.fedgrass.cloud.aggregator.attacks``.

Softmax regression on digits, trained here in NumPy: the strategies alone are on trial, without the bounds that every round sets
(`checks`). 4 of 20 devices attack, 8 rounds. Attackers are told all honest updates of the round where their
attack assumes it, and of an attack with a choice of size or direction the one that does most harm counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.trusted import with_own_update
from fedgrass.errors import AggregationError
from fedgrass.parts import ATTACKS
from fedgrass.simulation.attacks import Kind, Seen
from fedgrass.strategies import Strategy, WeightedMean, strategy_named
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.update.codecs import Floats
from tests.fedgrass.cloud.aggregator.updates import tiny_model

Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]

DEVICES, ATTACKERS, ROUNDS, STALENESS = 20, 4, 8, 5
PARTITIONS = ("iid", "dirichlet")
RECOMMENDED = "trust"

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("fedavg", {}),
    "fedavg, clipped": ("fedavg", {"clip": {"over_median": 1.0}}),
    "fedbuff": ("fedbuff", {}),
    "median": ("median", {}),
    "trimmed_mean": ("trimmed_mean", {}),
    "geometric_median": ("geometric_median", {}),
    "centered_clipping": ("centered_clipping", {}),
    "krum": ("krum", {}),
    "multi_krum": ("multi_krum", {}),
    "bulyan": ("bulyan", {}),
    "buckets, geometric_median": ("geometric_median", {"mixing": "buckets"}),
    "nearest, trimmed_mean": ("trimmed_mean", {"mixing": "nearest"}),
    "nearest, geometric_median": ("geometric_median", {"mixing": "nearest"}),
    "nearest, multi_krum": ("multi_krum", {"mixing": "nearest"}),
    "trust": ("trust", {}),
}

COLUMNS: dict[str, list[tuple[str, float | None]]] = {
    "none": [],
    "sign_flip": [("sign_flip", None)],
    "scale": [("scale", -100.0)],
    "label_flip": [("label_flip", None)],
    "nan": [("nan", None)],
    "gaussian": [("gaussian", None)],
    "free_rider": [("free_rider", None)],
    "alie": [("alie", 0.2), ("alie", 1.0), ("alie", 1.5)],
    "ipm": [("ipm", 0.1), ("ipm", 1.0), ("ipm", 5.0)],
    "min_max": [("min_max", None), ("min_max_deviation", None), ("min_max_sign", None)],
    "min_sum": [("min_sum", None), ("min_sum_deviation", None), ("min_sum_sign", None)],
    "backdoor": [("backdoor", None)],
    "held_back": [("held_back", None)],
}
"""What each column tries: attack and factor; the worst counts."""


@dataclass(frozen=True)
class World:
    """Devices' examples, the operator's evaluation set, and examples that nobody has, by which models are judged."""

    devices: Sequence[tuple[Doubles, Labels]]
    operator: tuple[Doubles, Labels]
    judging: tuple[Doubles, Labels]


@dataclass(frozen=True)
class Result:
    """Accuracy, and the share of marked examples that a model takes for the backdoor's class."""

    accuracy: float
    fooled: float


@cache
def _digits() -> tuple[Doubles, Labels]:
    x, y = load_digits(return_X_y=True)
    return np.hstack([x / 16, np.ones((len(x), 1))]), np.asarray(y, np.int64)


def world(partition: str, seed: int, operator: int = 180) -> World:
    """Deal the digits out to 20 devices, alike or by Dirichlet 0.5; ``operator`` examples are the evaluation set."""
    x, y = _digits()
    rng = np.random.default_rng((seed, PARTITIONS.index(partition)))
    order = rng.permutation(len(x))
    kept, train = order[:360], order[360:]
    if partition == "iid":
        parts: Sequence[Any] = np.array_split(train, DEVICES)
    else:
        while True:
            dealt: list[list[int]] = [[] for _ in range(DEVICES)]
            for label in range(10):
                mine = train[y[train] == label]
                cuts = (np.cumsum(rng.dirichlet([0.5] * DEVICES)) * len(mine)).astype(int)[:-1]
                for part, some in zip(dealt, np.split(mine, cuts), strict=True):
                    part.extend(int(i) for i in some)
            if min(map(len, dealt)) >= 5:
                break
        parts = [np.array(part) for part in dealt]
    own, judging = kept[180 : 180 + operator], kept[:180]
    return World([(x[part], y[part]) for part in parts], (x[own], y[own]), (x[judging], y[judging]))


def learnt(weights: Doubles, x: Doubles, y: Labels) -> Doubles:
    """Return the difference [650] that five steps of gradient descent make."""
    w = weights.copy()
    for _ in range(5):
        p = _softmax(x @ w)
        p[np.arange(len(y)), y] -= 1
        w -= 0.5 * x.T @ p / len(y)
    return np.asarray((w - weights).ravel())


def _softmax(logits: Doubles) -> Doubles:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def marked(x: Doubles) -> Doubles:
    """Return examples that bear the backdoor's mark: four bright pixels in a corner."""
    found = x.copy()
    found[:, [0, 1, 8, 9]] = 1
    return np.asarray(found)


def own_difference(kind: Kind, weights: Doubles, x: Doubles, y: Labels) -> Doubles:
    """Return what an attacker has learnt from its own data."""
    if kind.data == "mirrored":
        return learnt(weights, x, 9 - y)
    if kind.data == "backdoor":
        return learnt(weights, np.vstack([x, marked(x)]), np.concatenate([y, np.zeros_like(y)]))
    return learnt(weights, x, y)


Adapted = Callable[[Doubles, Doubles], Doubles]
"""Honest updates [n, size] and the operator's own [size] to what attackers send."""


def simulated(
    base: Bundle, rule: str, there: World, attack: str, factor: float | None, adapted: Adapted | None = None
) -> Result:
    """Run the rounds and judge the last model."""
    name, options = RULES[rule]
    strategy = strategy_named(name, **options)
    kind = Kind() if adapted is not None or attack == "none" else ATTACKS.get(attack)
    weights = np.zeros((65, 10))
    held: list[tuple[int, int, Doubles]] = []
    attacking = attack != "none" or adapted is not None
    for number in range(1, ROUNDS + 1):
        deltas = [learnt(weights, x, y) for x, y in there.devices]
        operators = learnt(weights, *there.operator)
        if attacking:
            honest = np.array(deltas[ATTACKERS:])
            draws = np.random.default_rng(number)
            for i in range(ATTACKERS):
                own = own_difference(kind, weights, *there.devices[i])
                if adapted is not None:
                    deltas[i] = adapted(honest, operators)
                elif kind.craft is not None:
                    deltas[i] = kind.craft(Seen(own, honest, kind.factor if factor is None else factor, draws))
                elif kind.spoils_file:
                    deltas[i] = np.full(650, np.nan)
                else:
                    deltas[i] = own
        sent: list[tuple[UpdateMetadata, Doubles]] = []
        for i, delta in enumerate(deltas):
            if kind.holds_back and i < ATTACKERS and number != 1 + STALENESS:
                held.append((number, i, delta))
                continue
            sent.append((UpdateMetadata(f"d{i:02d}", len(there.devices[i][1]), {}), delta))
        if kind.holds_back and number == 1 + STALENESS:
            ages = tuple(range(1 + STALENESS))
            sent = [(replace(facts, ages=ages) if facts.thing < f"d{ATTACKERS:02d}" else facts, d) for facts, d in sent]
            for then, i, delta in held:
                sent.append((UpdateMetadata(f"d{i:02d}", len(there.devices[i][1]), {}, number - then, ages), delta))
        bound = with_own_update(strategy, partial(_float32, operators))
        weights = weights + _combined(base, bound, sent).reshape(65, 10)
    x, y = there.judging
    others = y != 0
    fooled = ((marked(x[others]) @ weights).argmax(axis=1) == 0).mean()
    return Result(float(((x @ weights).argmax(axis=1) == y).mean()), float(fooled))


def _float32(values: Doubles) -> Floats:
    return np.asarray(values, np.float32)


def _combined(base: Bundle, strategy: Strategy, sent: Sequence[tuple[UpdateMetadata, Doubles]]) -> Doubles:
    """Return what the strategy alone makes of the updates; what is not finite is refused before it, as in every round."""
    good = [(facts, delta.astype(np.float32)) for facts, delta in sent if np.isfinite(delta).all()]
    norms = [float(np.linalg.norm(delta)) for _, delta in good]
    method, clip = strategy.method, strategy.method.clip
    bound = clip.bound(norms) if clip is not None else np.inf
    factors = [min(1.0, bound / max(norm, 1e-30)) for norm in norms]
    rows = _Rows(
        base,
        [facts.measured(norm * factor) for (facts, _), norm, factor in zip(good, norms, factors, strict=True)],
        np.array([factor * delta for (_, delta), factor in zip(good, factors, strict=True)], np.float32),
    )
    if isinstance(method, WeightedMean):
        weights = np.array([method.weighting.weight(facts) for facts in rows.facts])
        return np.asarray(weights @ rows.values.astype(np.float64) * method.weighting.scale(rows.facts))
    out = np.zeros(rows.values.shape[1], np.float32)
    try:
        method.combination.combine(rows, out)
    except AggregationError:
        out[:] = 0  # the round fails, and the model stays
    return np.asarray(out, np.float64)


@dataclass(frozen=True)
class _Rows:
    base: Bundle
    facts: Sequence[UpdateMetadata]
    values: Floats

    def tiles(self) -> Sequence[slice]:
        return [slice(0, self.values.shape[1])]

    def read(self, columns: slice, chosen: Sequence[int] | None = None) -> Floats:
        return np.array(self.values[:, columns] if chosen is None else self.values[list(chosen), columns])


Table = Mapping[str, Mapping[str, Result]]


def attack_table(
    base: Bundle,
    partition: str,
    *,
    rules: Iterable[str] = tuple(RULES),
    columns: Iterable[str] = tuple(COLUMNS),
    seeds: int = 1,
) -> dict[str, dict[str, Result]]:
    """Return each rule's result under each attack, the mean over ``seeds`` deals of the data."""
    worlds = [world(partition, seed) for seed in range(seeds)]
    columns = list(columns)

    def cell(rule: str, column: str) -> Result | None:
        if column == "held_back" and RULES[rule][0] != "fedbuff":
            return None  # nobody else takes late updates
        tries = COLUMNS[column] or [("none", None)]
        means = [_mean([simulated(base, rule, there, *one) for there in worlds]) for one in tries]
        return min(means, key=lambda result: result.accuracy)

    return {rule: {column: found for column in columns if (found := cell(rule, column)) is not None} for rule in rules}


def adapted_table(base: Bundle, partition: str, *, seeds: int = 1) -> dict[str, dict[str, Result]]:
    """Attackers who know the recommended rule, and the operator's own update, by evaluation sets of several sizes and kinds.

    They send what points ``cosine`` along the operator's update, so as to be trusted, and for the rest against the honest mean.
    """

    def along(cosine: float) -> Adapted:
        def craft(honest: Doubles, own: Doubles) -> Doubles:
            towards = own / np.linalg.norm(own)
            mean = honest.mean(axis=0)
            away = -(mean - (mean @ towards) * towards)
            length = np.median(np.linalg.norm(honest, axis=1))
            return np.asarray(length * (cosine * towards + np.sqrt(1 - cosine**2) * away / np.linalg.norm(away)))

        return craft

    found: dict[str, dict[str, Result]] = {}
    for kind, size in {"180 examples": 180, "60 examples": 60, "20 examples": 20, "five of ten classes": 0}.items():
        worlds = []
        for seed in range(seeds):
            there = world(partition, seed, size or 180)
            x, y = there.operator
            worlds.append(there if size else replace(there, operator=(x[y < 5], y[y < 5])))
        found[kind] = {
            "none": _mean([simulated(base, RECOMMENDED, one, "none", None) for one in worlds]),
            **{
                f"cosine {cosine:g}": _mean(
                    [simulated(base, RECOMMENDED, one, "adapted", None, along(cosine)) for one in worlds]
                )
                for cosine in (0.3, 0.5, 0.7, 0.9)
            },
        }
    return found


def most_lost(table: Table, rule: str) -> tuple[float, str]:
    """Return the most that a rule loses by an attack, against the plain mean that nobody attacks, and which attack."""
    clean = table["fedavg"]["none"].accuracy
    return max((clean - result.accuracy, column) for column, result in table[rule].items())


def _mean(results: Sequence[Result]) -> Result:
    return Result(
        float(np.mean([result.accuracy for result in results])), float(np.mean([result.fooled for result in results]))
    )


def _printed(table: Table, columns: Sequence[str], *, losses: bool) -> None:
    print("| |" + "".join(f" {column} |" for column in columns) + (" most lost |" if losses else ""))
    print("|---|" + "---|" * (len(columns) + losses))
    for rule, found in table.items():
        cells = []
        for column in columns:
            result = found.get(column)
            fooled = f" ({result.fooled:.2f})" if result is not None and column == "backdoor" else ""
            cells.append("–" if result is None else f"{result.accuracy:.3f}{fooled}")
        last = f" {100 * most_lost(table, rule)[0]:.1f} ({most_lost(table, rule)[1]}) |" if losses else ""
        print(f"| `{rule}` | " + " | ".join(cells) + " |" + last)


def main() -> None:
    """Print the tables as docs/how-to/attackers.md has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="deals of the data that are averaged (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--rules", default="", help="only these, with ';' between them (fedavg is always there)")
    given = parser.parse_args()
    rules = list(dict.fromkeys(["fedavg", *(given.rules.split(";") if given.rules else RULES)]))
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_model(Path(folder), 650)
        tables: dict[str, Table] = {}
        for partition in PARTITIONS:
            tables[partition] = attack_table(base, partition, rules=rules, seeds=given.seeds)
            tables[f"{partition}, adapted to {RECOMMENDED}"] = adapted_table(base, partition, seeds=given.seeds)
    if given.json:
        found = {
            title: {
                row: {
                    column: {"accuracy": result.accuracy, "fooled": result.fooled} for column, result in cells.items()
                }
                for row, cells in table.items()
            }
            for title, table in tables.items()
        }
        print(json.dumps({"devices": DEVICES, "attackers": ATTACKERS, "rounds": ROUNDS, "seeds": given.seeds, **found}))
        return
    for title, table in tables.items():
        print(f"\n{title}\n")
        columns = list(COLUMNS) if title in PARTITIONS else list(next(iter(table.values())))
        _printed(table, columns, losses=title in PARTITIONS)


if __name__ == "__main__":
    main()

"""Partial work, in simulation: against federated averaging of unequal trainings in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.data.digits import digits
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.population import Population
from fedgrass.simulation.run import start_of
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.simulation.store import open_report
from tests.fedgrass.simulation.conftest import fleet, refused, result, run
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle

Doubles = NDArray[np.float64]

DEVICES, EPOCHS, RATE, DEADLINE, MARGIN, ROUNDS = 8, 6, 0.5, 120, 20, 3
SETTINGS: dict[str, Any] = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "fit": {"epochs": EPOCHS, "learning_rate": RATE, "partial_margin_seconds": MARGIN},
    "deadline_seconds": DEADLINE,
}
OPTIONS: dict[str, Any] = {
    "devices": DEVICES,
    "cohort": DEVICES,
    "rounds": ROUNDS,
    "examples": 24,  # one batch, so that a step is the gradient of all
    "partition": "shards:2",
    "engine": ENGINE,
    "stragglers": "0.5:10x:lognormal",
}


def trained(x: Doubles, y: NDArray[np.int32], flat: Doubles, steps: int) -> Doubles:
    for _ in range(steps):
        z = x @ flat[:640].reshape(64, 10) + flat[640:]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(y)
        flat = flat - RATE * np.concatenate([(x.T @ error).ravel(), error.sum(axis=0)])
    return flat


def by_work(deltas: list[Doubles], steps: list[int]) -> Doubles:
    return np.asarray(np.average(deltas, axis=0, weights=steps))


def fednova(deltas: list[Doubles], steps: list[int]) -> Doubles:
    """Wang et al. 2020, equation 6; all devices have as many examples."""
    return np.asarray(np.mean(steps) * np.mean([delta / n for delta, n in zip(deltas, steps, strict=True)], axis=0))


Rule = Callable[[list[Doubles], list[int]], Doubles]


def reference(seconds: list[Doubles], rule: Rule, momentum: float) -> tuple[Doubles, list[list[int]]]:
    data = digits((8, 8, 1))
    order = np.random.default_rng((0, 0)).permutation(len(data))
    pool = np.sort(order[round(len(data) * 0.2) :])
    dealt = drawn(data.y[pool], DEVICES, 24, PartitionScheme.parse("shards:2"), seed=0)
    x, y = data.x.reshape(len(data), -1).astype(np.float64), data.y
    model, velocity, all_steps = np.zeros(650), np.zeros(650), []
    for needs in seconds:
        steps = [EPOCHS if s <= DEADLINE else max(1, int((DEADLINE - MARGIN) / s * EPOCHS)) for s in needs]
        deltas = [
            trained(x[own], y[own], model, n) - model
            for n, own in zip(steps, (pool[dealt.of(d)] for d in range(DEVICES)), strict=True)
        ]
        velocity = momentum * velocity + rule(deltas, steps)
        model = model + velocity
        all_steps.append(steps)
    return model, all_steps


@pytest.mark.parametrize(
    ("strategy", "rule", "momentum"),
    [
        ({"name": "fedavg"}, by_work, 0.0),
        ({"name": "fednova"}, fednova, 0.0),
        ({"name": "fedavgm", "options": {"momentum": 0.9}}, by_work, 0.9),
    ],
    ids=["fedavg", "fednova", "fedavgm"],
)
def test_rounds_with_partial_work_are_those_of_plain_numpy(
    tmp_path: Path, strategy: dict[str, Any], rule: Rule, momentum: float
) -> None:
    bundle, settings = softmax_bundle(tmp_path / "bundle").folder, {**SETTINGS, "strategy": strategy}
    run(tmp_path / "out", settings, bundle=bundle, **OPTIONS)
    _, simulation = start_of(bundle, {**OPTIONS, "fleet": fleet(settings)})
    population = Population(simulation)
    wanted, steps = reference(
        [population._needs(n, list(range(DEVICES))) for n in range(1, ROUNDS + 1)], rule, momentum
    )
    assert any(1 < n < EPOCHS for round_ in steps for n in round_)
    found = tensors.load(tmp_path / "out" / "model" / "parameters.safetensors")[0]
    np.testing.assert_allclose(np.concatenate([found["w"].ravel(), found["b"]]), wanted, atol=2e-6, rtol=0)
    rounds = open_report(tmp_path / "out")[1]
    # Nobody is late, and each says how much it did.
    assert [one.late for one in rounds] == [0] * ROUNDS
    told = [
        [int(entry.metrics["steps"]) for entry in sorted(one.report.updates, key=lambda entry: entry.thing)]
        for one in rounds
    ]
    assert told == steps
    assert {entry.metrics.get("planned_steps") for one in rounds for entry in one.report.updates} == {None, EPOCHS}
    assert {one.seconds for one in rounds} == {DEADLINE}
    # Nor does it depend on processes.
    run(tmp_path / "two", settings, bundle=bundle, workers=2, **OPTIONS)
    assert result(tmp_path / "two") == result(tmp_path / "out")


def test_where_nobody_is_late_the_rounds_are_as_without_it(tmp_path: Path) -> None:
    bundle, quick = softmax_bundle(tmp_path / "bundle").folder, {**OPTIONS, "stragglers": "", "rounds": 2}
    for name, margin in (("with", MARGIN), ("without", 0)):
        settings = {**SETTINGS, "deadline_seconds": 3600, "fit": {**SETTINGS["fit"], "partial_margin_seconds": margin}}
        run(tmp_path / name, settings, bundle=bundle, **quick)
    assert result(tmp_path / "with") == result(tmp_path / "without")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"deadline_seconds": 20}, "no time to train"),
    ({"mode": "asynchronous", "strategy": {"name": "fedbuff"}}, "asynchronous"),
    ({"secure": {"helpers": {}}}, "secure"),
    ({"privacy": {"mode": "central", "noise_multiplier": 1.0}}, "privacy.mode central"),
    ({"privacy": {"mode": "local", "noise_multiplier": 1.0}}, "privacy.mode local"),
    ({"update": {"figures": "left_out"}}, "update.figures"),
    ({"fit": {"local_epochs": 1}}, "fit.local_epochs"),
    ({"personal": {"mode": "ditto"}}, "personal.mode ditto"),
    ({"checks": {"max_norm_over_median": 3.0}}, "checks.max_norm_over_median"),
    *(({"strategy": {"name": name}}, name) for name in ("median", "krum", "trust", "feddyn", "qfedavg")),
]


@pytest.mark.parametrize(("changes", "named"), WRONG, ids=[named for _, named in WRONG])
def test_what_would_have_a_part_count_for_what_it_is_not_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    base = fleet(SETTINGS)
    with refused(named):
        base.overridden(changes)


@pytest.mark.parametrize(
    "name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fednova", "scaffold", "fedbuff"]
)
def test_means_take_it(name: str) -> None:
    assert fleet({**SETTINGS, "strategy": {"name": name}}).made_strategy().takes_parts


def test_an_engine_that_nobody_can_interrupt_is_refused_before_anything_starts(tmp_path: Path) -> None:
    bundle = softmax_bundle(tmp_path / "bundle").folder
    with refused("fit.partial_margin_seconds"):
        run(tmp_path / "out", SETTINGS, bundle=bundle, **{**OPTIONS, "engine": f"{ENGINE.split(':')[0]}:InOneCall"})

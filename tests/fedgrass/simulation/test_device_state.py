"""Strategies whose devices keep state, against the papers' algorithms in plain NumPy: SCAFFOLD and FedDyn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.data.digits import digits
from fedgrass.errors import ConfigurationError, EngineError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.simulation.store import open_report
from tests.fedgrass.simulation.conftest import result, run
from tests.fedgrass.simulation.softmax import ENGINE, Stubborn, softmax_bundle

Doubles = NDArray[np.float64]
Gradient = Callable[[int, Doubles], Doubles]

DEVICES, RATE, STEPS, ALPHA = 12, 0.5, 3, 0.2
UNBOUNDED = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "fit": {"epochs": STEPS, "learning_rate": RATE},
}
OPTIONS: dict[str, Any] = {
    "devices": DEVICES,
    "cohort": 4,
    "rounds": 6,
    "examples": 24,
    "partition": "shards:2",
    "engine": ENGINE,
}
FEDDYN = {"name": "feddyn", "options": {"alpha": ALPHA}}


def settings(strategy: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**UNBOUNDED, "strategy": strategy, **more}


@pytest.fixture(scope="module")
def gradient() -> Gradient:
    """The full gradient on a device's own examples, which are few enough for one batch."""
    data = digits((8, 8, 1))
    order = np.random.default_rng((0, 0)).permutation(len(data))
    pool = np.sort(order[round(len(data) * 0.2) :])
    dealt = drawn(data.y[pool], DEVICES, 24, PartitionScheme.parse("shards:2"), seed=0)

    def of(device: int, flat: Doubles) -> Doubles:
        mine = pool[dealt.of(device)]
        x, y = data.x[mine].reshape(len(mine), -1).astype(np.float64), data.y[mine]
        z = x @ flat[:640].reshape(64, 10) + flat[640:]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(mine)
        return np.concatenate([(x.T @ error).ravel(), error.sum(axis=0)])

    return of


def scaffold(gradient: Gradient, cohorts: list[list[int]]) -> Doubles:
    """Karimireddy et al. 2020, algorithm 1, option II; a device that was never asked has the server's control variate."""
    x, c, own = np.zeros(650), np.zeros(650), dict[int, Doubles]()
    for cohort in cohorts:
        moved, changed = np.zeros(650), np.zeros(650)
        for i in cohort:
            y, mine = x.copy(), own.get(i, c)
            for _ in range(STEPS):
                y -= RATE * (gradient(i, y) - mine + c)
            own[i] = mine - c + (x - y) / (STEPS * RATE)
            moved += y - x
            changed += own[i] - mine
        x, c = x + moved / len(cohort), c + changed / DEVICES
    return x


def feddyn(gradient: Gradient, cohorts: list[list[int]]) -> Doubles:
    """Acar et al. 2021, algorithm 1, with so many steps of gradient descent for the device's minimum."""
    x, h, own = np.zeros(650), np.zeros(650), dict[int, Doubles]()
    for cohort in cohorts:
        ends = []
        for i in cohort:
            y, mine = x.copy(), own.get(i, np.zeros(650))
            for _ in range(STEPS):
                y -= RATE * (gradient(i, y) - mine + ALPHA * (y - x))
            own[i] = mine - ALPHA * (y - x)
            ends.append(y)
        h = h - ALPHA / DEVICES * sum((y - x for y in ends), np.zeros(650))
        x = np.mean(ends, axis=0) - h / ALPHA
    return x


@pytest.mark.parametrize(
    ("strategy", "reference"), [({"name": "scaffold"}, scaffold), (FEDDYN, feddyn)], ids=["scaffold", "feddyn"]
)
def test_a_simulation_gives_what_the_papers_algorithm_gives_in_plain_numpy(
    tmp_path: Path, gradient: Gradient, strategy: dict[str, Any], reference: Callable[..., Doubles]
) -> None:
    bundle = softmax_bundle(tmp_path / "bundle").folder
    run(tmp_path / "s", settings(strategy), bundle=bundle, **OPTIONS)
    _, rounds = open_report(tmp_path / "s")
    cohorts = [sorted(int(update.thing[-7:]) for update in one.report.updates) for one in rounds]
    assert [len(cohort) for cohort in cohorts] == [4] * 6, [one.failed for one in rounds]
    often = [sum(device in cohort for cohort in cohorts) for device in range(DEVICES)]
    assert max(often) > 1 > min(often), "some are asked again, and some never"
    found, _ = tensors.load(tmp_path / "s" / "model" / "parameters.safetensors")
    flat = np.concatenate([found["w"].ravel(), found["b"]])
    wanted = reference(gradient, cohorts)
    np.testing.assert_allclose(flat, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 0.05


@pytest.mark.parametrize("strategy", [{"name": "scaffold"}, FEDDYN], ids=["scaffold", "feddyn"])
def test_neither_processes_nor_machines_nor_a_break_change_a_byte(
    tmp_path: Path, elsewhere: str, strategy: dict[str, Any]
) -> None:
    bundle = softmax_bundle(tmp_path / "bundle").folder
    run(tmp_path / "one", settings(strategy), bundle=bundle, **OPTIONS)
    wanted = result(tmp_path / "one")
    run(tmp_path / "broken", settings(strategy), bundle=bundle, **{**OPTIONS, "rounds": 3})
    run(tmp_path / "broken", settings(strategy), bundle=bundle, workers=2, resume=True, **OPTIONS)
    assert result(tmp_path / "broken") == wanted
    run(tmp_path / "two", settings(strategy), bundle=bundle, workers=2, ray=elsewhere, **OPTIONS)
    assert result(tmp_path / "two") == wanted


def test_what_devices_lost_is_made_again_and_costs_a_plain_round(tmp_path: Path) -> None:
    bundle = softmax_bundle(tmp_path / "bundle").folder
    options = {**OPTIONS, "cohort": DEVICES}
    run(tmp_path / "s", settings({"name": "scaffold"}), bundle=bundle, **{**options, "rounds": 2})
    for path in (tmp_path / "s").rglob("control-*"):
        path.write_bytes(b"damaged")
    found = run(tmp_path / "s", settings({"name": "scaffold"}), bundle=bundle, resume=True, **options)
    assert found.final.accuracy is not None
    assert found.first.accuracy is not None
    assert found.final.accuracy > found.first.accuracy + 0.3


def test_what_does_not_go_with_such_a_strategy_is_refused_at_once(tmp_path: Path) -> None:
    adam = softmax_bundle(tmp_path / "adam", "adam").folder
    with pytest.raises(EngineError, match="trains with adam"):
        run(tmp_path / "a", settings({"name": "scaffold"}), bundle=adam, **OPTIONS)
    sgd = softmax_bundle(tmp_path / "sgd").folder
    stubborn = {**OPTIONS, "engine": f"{Stubborn.__module__}:Stubborn", "rounds": 1}
    run(tmp_path / "b", settings({"name": "scaffold"}), bundle=sgd, **stubborn)
    assert all("cannot add to a gradient" in why for why in open_report(tmp_path / "b")[1][0].failed.values())
    for changes, match in (
        ({"strategy": {"name": "scaffold"}, "privacy": {"mode": "central"}}, "it weighs by a metric"),
        ({"strategy": FEDDYN, "privacy": {"mode": "central"}}, "the noise would add up"),
        ({"strategy": FEDDYN, "privacy": {"mode": "local"}}, "the noise would add up"),
        ({"strategy": FEDDYN, "fit": {"proximal_mu": 0.1}}, "use its option alpha"),
        ({"fit": {"control": "scaffold"}}, "choose strategy scaffold"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            FleetSettings().overridden(changes)

"""Schedules and the end of a run in simulation: each round in plain NumPy with the values that it should have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.data.digits import digits
from fedgrass.errors import ConfigurationError
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.simulation.store import open_report
from tests.fedgrass.simulation.conftest import result, run
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle

DEVICES = 6
PLAIN: dict[str, Any] = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
}
OPTIONS: dict[str, Any] = {
    "devices": DEVICES,
    "cohort": DEVICES,
    "examples": 24,
    "partition": "shards:2",
    "engine": ENGINE,
}


def test_rounds_have_the_learning_rate_and_the_epochs_of_their_schedule(tmp_path: Path) -> None:
    settings = {
        **PLAIN,
        "fit": {"learning_rate": 0.8, "epochs": 4},
        "schedule": {
            "learning_rate": {"kind": "cosine", "rounds": 2, "factor": 0.25},
            "epochs": {"kind": "step", "rounds": 2, "factor": 0.5},
        },
    }
    bundle = softmax_bundle(tmp_path / "bundle").folder
    run(tmp_path / "out", settings, bundle=bundle, rounds=4, **OPTIONS)
    data = digits((8, 8, 1))
    order = np.random.default_rng((0, 0)).permutation(len(data))
    pool = np.sort(order[round(len(data) * 0.2) :])
    dealt = drawn(data.y[pool], DEVICES, 24, PartitionScheme.parse("shards:2"), seed=0)
    x, y, model = data.x.reshape(len(data), -1).astype(np.float64), data.y, np.zeros(650)
    for rate, epochs in ((0.8, 4), (0.5, 4), (0.2, 2), (0.2, 2)):
        after = []
        for device in range(DEVICES):
            own, flat = pool[dealt.of(device)], model
            for _ in range(epochs):
                z = x[own] @ flat[:640].reshape(64, 10) + flat[640:]
                p = np.exp(z - z.max(axis=1, keepdims=True))
                error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y[own]]) / len(own)
                flat = flat - rate * np.concatenate([(x[own].T @ error).ravel(), error.sum(axis=0)])
            after.append(flat)
        model = np.mean(after, axis=0)
    found = tensors.load(tmp_path / "out" / "model" / "parameters.safetensors")[0]
    np.testing.assert_allclose(np.concatenate([found["w"].ravel(), found["b"]]), model, atol=2e-6, rtol=0)
    # Interrupted after two rounds, it goes on where the schedule is.
    run(tmp_path / "again", settings, bundle=bundle, rounds=2, **OPTIONS)
    run(tmp_path / "again", settings, bundle=bundle, rounds=4, resume=True, **OPTIONS)
    assert result(tmp_path / "again") == result(tmp_path / "out")


def test_a_run_ends_when_its_target_is_reached_and_stays_ended(tmp_path: Path) -> None:
    bundle = softmax_bundle(tmp_path / "bundle").folder
    settings = {**PLAIN, "fit": {"learning_rate": 0.5, "epochs": 2}}
    run(tmp_path / "all", settings, bundle=bundle, rounds=8, **OPTIONS)
    losses = [one.evaluation.loss for one in open_report(tmp_path / "all")[1]]
    assert losses == sorted(losses, reverse=True)
    until = {**settings, "until": {"metric": "loss", "target": (losses[3] + losses[4]) / 2}}
    report = run(tmp_path / "out", until, bundle=bundle, rounds=8, **OPTIONS)
    assert report.rounds == 5
    assert "until.target" in report.ended
    assert run(tmp_path / "out", until, bundle=bundle, rounds=20, resume=True, **OPTIONS).rounds == 5
    # By the simulated clock: rounds of some 60 s.
    hours = {**settings, "until": {"hours": 150 / 3600}}
    report = run(tmp_path / "hours", hours, bundle=bundle, rounds=8, **OPTIONS)
    assert "until.hours" in report.ended
    assert report.simulated_seconds - open_report(tmp_path / "hours")[1][-1].seconds < 150 <= report.simulated_seconds


@pytest.mark.parametrize("how", ["everybody", "secret", "tree"])
def test_a_run_ends_before_the_round_that_its_budget_of_privacy_does_not_hold(how: str, tmp_path: Path) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    def spent(rounds: int) -> float:
        if how == "secret":
            accountant = PLDAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
            accountant.compose(dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(2.0)), rounds)
            return float(accountant.get_epsilon(1e-5))
        # Of a tree of two, its second round is one more sum; the next tree begins with the third.
        return float(dp_accounting.get_epsilon_gaussian(2.0 / math.sqrt(rounds), 1e-5))

    between = (spent(3) + spent(4)) / 2
    privacy = {"mode": "central", "noise_multiplier": 2.0, "epsilon_budget": between, "secret_cohort": how == "secret"}
    strategy = {"strategy": {"name": "dp_ftrl", "options": {"rounds": 2}}} if how == "tree" else {}
    settings = {**PLAIN, "fit": {"learning_rate": 0.5, "epochs": 1}, "privacy": privacy, "min_updates": 1, **strategy}
    bundle = softmax_bundle(tmp_path / "bundle").folder
    options = {**OPTIONS, "cohort": DEVICES // 2 if how == "secret" else DEVICES}
    report = run(tmp_path / "out", settings, bundle=bundle, rounds=8, **options)
    assert (report.rounds, f"ε would be {spent(4):.4g}" in report.ended) == (3, True), report.ended
    # It stays ended, and counts on from what was spent.
    assert run(tmp_path / "out", settings, bundle=bundle, rounds=20, resume=True, **options).rounds == 3


@pytest.mark.parametrize(
    ("privacy", "options", "said"),
    [
        ({"mode": "central", "epsilon_budget": 0.5}, {}, "not one round fits"),
        ({"epsilon_budget": 0.5}, {}, "no finite ε"),
        ({"mode": "central", "epsilon_budget": 5}, {"groups": "clusters:2"}, "account of its own"),
    ],
)
def test_a_budget_that_no_round_could_keep_is_refused(
    privacy: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path / "out", {**PLAIN, "privacy": privacy}, bundle=None, rounds=2, **{**OPTIONS, **options})

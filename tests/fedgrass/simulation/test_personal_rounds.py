"""Virtual devices that keep parameters for themselves, against federated averaging of a part in plain NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.data.digits import digits
from fedgrass.simulation.helpers import parse_secure
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.run import run_secondary, simulate
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.simulation.store import open_report
from tests.fedgrass.partly_local import partly_local
from tests.fedgrass.simulation.conftest import fleet, result, run
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle

Doubles = NDArray[np.float64]

DEVICES, RATE, STEPS = 12, 0.5, 3
SETTINGS = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
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


def by_hand(cohorts: list[list[int]], local: str) -> tuple[dict[str, Doubles], dict[int, Doubles]]:
    """Each device steps along the gradient of its own loss from the shared and its own; the shared are averaged."""
    data = digits((8, 8, 1))
    order = np.random.default_rng((0, 0)).permutation(len(data))
    pool = np.sort(order[round(len(data) * 0.2) :])
    dealt = drawn(data.y[pool], DEVICES, 24, PartitionScheme.parse("shards:2"), seed=0)
    model, own = {"w": np.zeros((64, 10)), "b": np.zeros(10)}, dict[int, Doubles]()
    (shared,) = model.keys() - {local}
    for cohort in cohorts:
        ends = []
        for device in cohort:
            mine = pool[dealt.of(device)]
            x, y = data.x[mine].reshape(len(mine), -1).astype(np.float64), data.y[mine]
            now = {shared: model[shared].copy(), local: own.get(device, model[local]).copy()}
            for _ in range(STEPS):
                z = x @ now["w"] + now["b"]
                p = np.exp(z - z.max(axis=1, keepdims=True))
                error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(mine)
                now = {"w": now["w"] - RATE * (x.T @ error), "b": now["b"] - RATE * error.sum(axis=0)}
            own[device] = now[local]
            ends.append(now[shared])
        model[shared] = np.mean(ends, axis=0)
    return model, own


@pytest.mark.parametrize("local", ["b", "w"])
def test_a_simulation_gives_what_averaging_a_part_gives_in_plain_numpy(tmp_path: Path, local: str) -> None:
    bundle = partly_local(softmax_bundle(tmp_path / "whole"), tmp_path / "bundle", local).folder
    run(tmp_path / "s", SETTINGS, bundle=bundle, **OPTIONS)
    _, rounds = open_report(tmp_path / "s")
    cohorts = [sorted(int(update.thing[-7:]) for update in one.report.updates) for one in rounds]
    assert [len(cohort) for cohort in cohorts] == [4] * 6, [one.failed for one in rounds]
    assert {one.report.outcome for one in rounds} == {"released"}
    assert all("only they can judge" in one.report.reason for one in rounds)
    model, own = by_hand(cohorts, local)
    found, _ = tensors.load(tmp_path / "s" / "model" / "parameters.safetensors")
    for name, wanted in model.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-5)
    assert not np.any(found[local]), "what is local is in the model what it was at the beginning"
    kept = {int(path.stem[-7:]): tensors.load(path)[0] for path in (tmp_path / "s" / "kept").glob("own-*")}
    assert kept.keys() == own.keys()
    for device, values in kept.items():
        np.testing.assert_allclose(values[f"after/{local}"], own[device], rtol=1e-3, atol=1e-5)
        assert np.any(values[f"after/{local}"])


def test_neither_processes_nor_hosts_nor_a_break_change_a_byte(tmp_path: Path) -> None:
    bundle = partly_local(softmax_bundle(tmp_path / "whole"), tmp_path / "bundle", "b").folder
    run(tmp_path / "one", SETTINGS, bundle=bundle, **OPTIONS)
    wanted = result(tmp_path / "one")
    run(tmp_path / "broken", SETTINGS, bundle=bundle, **{**OPTIONS, "rounds": 3})
    run(tmp_path / "broken", SETTINGS, bundle=bundle, workers=2, resume=True, **OPTIONS)
    assert result(tmp_path / "broken") == wanted
    options = {**OPTIONS, "bundle": bundle, "fleet": fleet(SETTINGS)}
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_secondary, 1, 2, str(tmp_path / "meet"), workers=1, **options)
        simulate(tmp_path / "two", workers=1, hosts=2, exchange=str(tmp_path / "meet"), **options)
        other.result()
    assert result(tmp_path / "two") == wanted


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"strategy": {"name": "scaffold"}}, {}),
        ({"strategy": {"name": "feddyn"}}, {}),
        ({"strategy": {"name": "median"}}, {"attack": "alie:0.25"}),
        ({"update": {"codec": "int8"}}, {"attack": "sign_flip:0.25"}),
        ({"secure": parse_secure("3:1", 0)}, {}),
        ({"privacy": {"mode": "central", "clip_norm": 0.5, "noise_multiplier": 0.1}}, {}),
    ],
    ids=["scaffold", "feddyn", "attackers", "codec", "secure", "privacy"],
)
def test_whatever_a_round_does_the_local_stay_where_they_are(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    bundle = partly_local(softmax_bundle(tmp_path / "whole"), tmp_path / "bundle", "b").folder
    run(tmp_path / "s", {**SETTINGS, **settings}, bundle=bundle, **{**OPTIONS, "rounds": 3, "cohort": 8, **options})
    _, rounds = open_report(tmp_path / "s")
    assert all(one.report.updates and not one.failed for one in rounds), [one.failed for one in rounds]
    found, _ = tensors.load(tmp_path / "s" / "model" / "parameters.safetensors")
    assert np.any(found["w"])
    assert not np.any(found["b"])

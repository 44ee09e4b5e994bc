"""Virtual devices that keep parameters for themselves, against federated averaging of a part in plain NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.data.digits import digits
from fedgrass.simulation.helpers import parse_secure
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.simulation.store import open_report
from fedgrass.simulation.virtual_device import own_file, personal_folder
from tests.fedgrass.partly_local import partly_local
from tests.fedgrass.simulation.conftest import refused, result, run
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle

Doubles = NDArray[np.float64]

DEVICES, RATE, STEPS = 12, 0.5, 3
SETTINGS = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "fit": {"epochs": STEPS, "learning_rate": RATE},
}
NO_GATE = {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9}
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
    data = examples_of()
    model, own = {"w": np.zeros((64, 10)), "b": np.zeros(10)}, dict[int, Doubles]()
    (shared,) = model.keys() - {local}
    for cohort in cohorts:
        ends = []
        for device in cohort:
            now = {shared: model[shared].copy(), local: own.get(device, model[local]).copy()}
            for _ in range(STEPS):
                g = gradient(now, *data[device])
                now = {name: value - RATE * g[name] for name, value in now.items()}
            own[device] = now[local]
            ends.append(now[shared])
        model[shared] = np.mean(ends, axis=0)
    return model, own


def examples_of(partition: str = "shards:2") -> list[tuple[Doubles, NDArray[np.int32]]]:
    data = digits((8, 8, 1))
    order = np.random.default_rng((0, 0)).permutation(len(data))
    pool = np.sort(order[round(len(data) * 0.2) :])
    dealt = drawn(data.y[pool], DEVICES, 24, PartitionScheme.parse(partition), seed=0)
    places = [pool[dealt.of(device)] for device in range(DEVICES)]
    return [(data.x[mine].reshape(len(mine), -1).astype(np.float64), data.y[mine]) for mine in places]


def gradient(now: dict[str, Doubles], x: Doubles, y: NDArray[np.int32]) -> dict[str, Doubles]:
    z = x @ now["w"] + now["b"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(y)
    return {"w": x.T @ error, "b": error.sum(axis=0)}


def cohorts_of(folder: Path) -> list[list[int]]:
    _, rounds = open_report(folder)
    assert not any(one.failed for one in rounds), [one.failed for one in rounds]
    return [sorted(int(update.thing[-7:]) for update in one.report.updates) for one in rounds]


def test_ditto_is_the_papers_algorithm_step_by_step(tmp_path: Path) -> None:
    strength, epochs, rate = 0.7, 2, 0.3
    personal = {"mode": "ditto", "strength": strength, "epochs": epochs, "learning_rate": rate}
    bundle = softmax_bundle(tmp_path / "bundle").folder
    run(tmp_path / "s", {**SETTINGS, "gate": NO_GATE, "personal": personal}, bundle=bundle, **OPTIONS)
    model, own = {"w": np.zeros((64, 10)), "b": np.zeros(10)}, dict[int, dict[str, Doubles]]()
    data = [trained_on(device, *mine) for device, mine in enumerate(examples_of())]
    for cohort in cohorts_of(tmp_path / "s"):
        ends = []
        for device in cohort:
            x, y = data[device]
            now, mine = dict(model), dict(own.get(device, model))
            for _ in range(STEPS):
                g = gradient(now, x, y)
                now = {name: value - RATE * g[name] for name, value in now.items()}
            for _ in range(epochs):
                g = gradient(mine, x, y)
                mine = {k: v - rate * (g[k] + strength * (v - model[k])) for k, v in mine.items()}
            own[device] = mine
            ends.append(now)
        model = {name: np.mean([end[name] for end in ends], axis=0) for name in model}
    found, _ = tensors.load(tmp_path / "s" / "model" / "parameters.safetensors")
    for name, wanted in model.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-5)
    for device, wanted_own in own.items():
        kept, _ = tensors.load(personal_folder(tmp_path / "s" / "kept", device) / "ditto.safetensors")
        for name, value in wanted_own.items():
            np.testing.assert_allclose(kept[f"after/{name}"], value, rtol=1e-3, atol=1e-5)
    the_report_tells_by_device(tmp_path / "s")


def trained_on(device: int, x: Doubles, y: NDArray[np.int32]) -> tuple[Doubles, NDArray[np.int32]]:
    """Without the fifth that a device keeps back."""
    order = np.random.default_rng((0, device, 7)).permutation(len(y))
    kept = np.sort(order[round(len(y) / 5) :])
    return x[kept], y[kept]


def the_report_tells_by_device(folder: Path) -> None:
    _, rounds = open_report(folder)
    told = rounds[-1].report
    gain = told.personal
    assert gain is not None
    of_each = np.array(
        [[update.metrics[f"{name}_accuracy"] for name in ("base", "validation", "personal")] for update in told.updates]
    )
    best = of_each.max(axis=1)
    assert (gain.devices, sum(gain.better.values())) == (4, 4)
    assert gain.models["fleet"].median == pytest.approx(np.median(of_each[:, 0]))
    assert gain.models["ditto"].worst_tenth == pytest.approx(of_each[:, 2].min())
    assert gain.best.worst_tenth == pytest.approx(best.min())
    assert gain.gain.median == pytest.approx(np.median(best - of_each[:, 0]))
    assert gain.gain.worst_tenth == pytest.approx((best - of_each[:, 0]).min())
    assert gain.gain.median > 0, "two labels each: a model of the device's own is better"
    assert gain.said.split(";")[0] in (folder / "index.html").read_text()


def test_fedrep_trains_the_local_and_then_the_shared(tmp_path: Path) -> None:
    local = "w"
    bundle = partly_local(softmax_bundle(tmp_path / "whole"), tmp_path / "bundle", local).folder
    settings = {**SETTINGS, "fit": {"epochs": 2, "local_epochs": 3, "learning_rate": RATE}}
    run(tmp_path / "s", settings, bundle=bundle, **OPTIONS)
    model, own = {"w": np.zeros((64, 10)), "b": np.zeros(10)}, dict[int, Doubles]()
    data, (shared,) = examples_of(), {"w", "b"} - {local}
    for cohort in cohorts_of(tmp_path / "s"):
        ends = []
        for device in cohort:
            now = {shared: model[shared].copy(), local: own.get(device, model[local]).copy()}
            for name in 3 * [local] + 2 * [shared]:
                now[name] = now[name] - RATE * gradient(now, *data[device])[name]
            own[device] = now[local]
            ends.append(now[shared])
        model[shared] = np.mean(ends, axis=0)
    found, _ = tensors.load(tmp_path / "s" / "model" / "parameters.safetensors")
    np.testing.assert_allclose(found[shared], model[shared], rtol=1e-3, atol=1e-5)
    for device, value in own.items():
        kept, _ = tensors.load(own_file(tmp_path / "s" / "kept", device))
        np.testing.assert_allclose(kept[f"after/{local}"], value, rtol=1e-3, atol=1e-5)
    _, rounds = open_report(tmp_path / "s")
    assert {update.metrics["steps"] for one in rounds for update in one.report.updates} == {2.0}, "of the shared alone"


def test_turns_need_something_local(tmp_path: Path) -> None:
    with refused("fit.local_epochs: model 'softmax' has no parameters that devices keep"):
        run(tmp_path / "s", {"fit": {"local_epochs": 1}}, bundle=softmax_bundle(tmp_path / "b").folder, **OPTIONS)


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


def test_neither_processes_nor_machines_nor_a_break_change_a_byte(tmp_path: Path, elsewhere: str) -> None:
    bundle = partly_local(softmax_bundle(tmp_path / "whole"), tmp_path / "bundle", "b").folder
    settings = {**SETTINGS, "personal": {"mode": "ditto"}}
    run(tmp_path / "one", settings, bundle=bundle, **OPTIONS)
    wanted = result(tmp_path / "one")
    run(tmp_path / "broken", settings, bundle=bundle, **{**OPTIONS, "rounds": 3})
    run(tmp_path / "broken", settings, bundle=bundle, workers=2, resume=True, **OPTIONS)
    assert result(tmp_path / "broken") == wanted
    run(tmp_path / "two", settings, bundle=bundle, workers=2, ray=elsewhere, **OPTIONS)
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

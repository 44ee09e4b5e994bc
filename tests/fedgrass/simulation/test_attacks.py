"""What attackers send is what the literature says they send."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass.data.arrays import ArrayDataset
from fedgrass.errors import ConfigurationError
from fedgrass.parts import ATTACKS
from fedgrass.simulation.attacks import Backdoored, Doubles, Seen, attack_named, marked
from fedgrass.simulation.population import Population
from fedgrass.simulation.settings import Attack
from fedgrass.simulation.store import Store
from tests.fedgrass.simulation.conftest import fleet, run
from tests.fedgrass.simulation.test_population import simulation


def seen(seed: int = 0, factor: float = 1.0, honest: int = 12, size: int = 30) -> Seen:
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(honest, size)) + rng.normal(size=size)
    return Seen(rng.normal(size=size), updates, factor, rng)


def sent(name: str, what: Seen) -> Doubles:
    craft = attack_named(name).craft
    assert craft is not None
    return craft(what)


@settings(deadline=None)
@given(seed=st.integers(0, 999))
def test_attackers_of_inner_products_and_little_steps_go_against_the_honest_mean(seed: int) -> None:
    what = seen(seed, 0.5)
    mean = what.honest.mean(axis=0)
    assert sent("ipm", what) @ mean < 0
    away = mean - sent("alie", what)
    np.testing.assert_allclose(away, 0.5 * what.honest.std(axis=0))


@pytest.mark.parametrize("name", [name for name in ATTACKS.names() if name.startswith("min_")])
@settings(deadline=None)
@given(seed=st.integers(0, 99))
def test_what_is_hidden_among_honest_updates_lies_no_farther_off_than_they_do(name: str, seed: int) -> None:
    what = seen(seed)
    apart = ((what.honest[:, None] - what.honest[None]) ** 2).sum(axis=2)
    mine = ((sent(name, what) - what.honest) ** 2).sum(axis=1)
    found, allowed = (mine.sum(), apart.sum(axis=1).max()) if "sum" in name else (mine.max(), apart.max())
    assert 0.98 * allowed < found < 1.001 * allowed, "as far as allowed, and no farther"


def test_a_backdoor_is_as_long_as_the_honest_median_and_noise_as_asked() -> None:
    what = seen(factor=1.0)
    median = np.median(np.linalg.norm(what.honest, axis=1))
    assert np.linalg.norm(sent("backdoor", what)) == pytest.approx(median)
    assert np.linalg.norm(sent("gaussian", seen(factor=3.0))) == pytest.approx(3 * np.linalg.norm(what.own))
    assert not sent("free_rider", what).any()


def test_half_of_a_backdoors_examples_bear_the_mark_and_its_label() -> None:
    data = ArrayDataset(np.random.default_rng(0).random((8, 4, 4), np.float32), np.full(8, 3, np.int32))
    (batch,) = Backdoored(data).batches(8)
    assert (batch.y == 0).sum() == 4
    np.testing.assert_array_equal(batch.x[::2], marked(data.x[::2]))
    np.testing.assert_array_equal(batch.x[1::2], data.x[1::2])


def pull_to_zero(what: Seen) -> Doubles:
    """An attack of one's own."""
    return np.asarray(-what.factor * what.honest.mean(axis=0))


@pytest.mark.parametrize(
    ("text", "kind", "share", "factor"),
    [
        ("sign_flip", "sign_flip", 0.2, 5.0),
        ("ipm:0.3:2", "ipm", 0.3, 2.0),
        (f"{__name__}:pull_to_zero", f"{__name__}:pull_to_zero", 0.2, 1.0),
        (f"{__name__}:pull_to_zero:0.1:7", f"{__name__}:pull_to_zero", 0.1, 7.0),
    ],
)
def test_an_attack_is_named_with_share_and_factor(text: str, kind: str, share: float, factor: float) -> None:
    attack = Attack.parse(text)
    assert (attack.kind, attack.share, attack.factor) == (kind, share, factor)
    assert attack.does is (ATTACKS.get(kind) if kind in ATTACKS else None) or attack.does.omniscient


@pytest.mark.parametrize(
    "text", ["bribe", "bribe:0.2", "subprocess:Popen", "ipm:0.2:1:1", f"{__name__}:Seen", "nowhere:craft"]
)
def test_what_is_no_attack_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"attack|expected|declares|function|Python"):
        Attack.parse(text)
    with pytest.raises(ConfigurationError):
        attack_named("subprocess:run")


def test_omniscient_attackers_send_the_same_whatever_the_number_of_processes(tmp_path: Path) -> None:
    models = []
    for workers in (1, 2):
        run(tmp_path / str(workers), {}, attack="min_max:0.3", rounds=2, workers=workers)
        models.append((tmp_path / str(workers) / "model" / "parameters.safetensors").read_bytes())
    assert models[0] == models[1]


def test_updates_that_are_held_back_come_together_and_weigh_no_more_than_others(tmp_path: Path) -> None:
    settings = {"strategy": {"name": "fedbuff", "options": {"staleness": 2}}, "quorum": 1.0, "deadline_seconds": 600}
    population = Population(simulation(attack="held_back:0.2", cohort=40, fleet=fleet(settings)))
    duties = {number: population.duties(number, 2) for number in (1, 2, 3)}
    assert not population.attackers & set(duties[2].answers)
    assert {device for _, device in duties[3].arrived} == set(population.attackers)
    assert len(duties[3].arrived) == 2 * len(population.attackers)
    assert set(duties[3].answers) >= population.attackers
    run(tmp_path / "run", settings, attack="held_back:0.2", rounds=3, devices=20, cohort=20, partition="iid")
    last = Store(tmp_path / "run").rounds()[-1].report
    weights: dict[str, float] = {}
    for update in last.updates:
        weights[update.thing] = weights.get(update.thing, 0.0) + update.weight
    assert any(update.age for update in last.updates)
    assert max(weights.values()) < 1.01 * sorted(weights.values())[len(weights) // 2]

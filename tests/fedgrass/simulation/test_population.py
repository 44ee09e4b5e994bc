"""Virtual devices: who is asked, what they have, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.cloud.aggregator.lanes import LANES
from fedgrass.cloud.rounds.cohorts import quorum_of
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.protocol.cohort import draw, is_asked, is_member, takes
from fedgrass.simulation import population as module
from fedgrass.simulation.partition import Partition, divided, drawn
from fedgrass.simulation.population import Population, thing_name
from fedgrass.simulation.settings import Attack, PartitionScheme, Simulation, Stragglers, parse_strategy
from fedgrass.simulation.worker_pool import shared_out
from tests.fedgrass.simulation.conftest import fleet, refused


def simulation(**options: Any) -> Simulation:
    given_options = {"devices": 40, "cohort": 10, "fleet": fleet({"deadline_seconds": 600}), **options}
    return Simulation.checked({"parameters_sha256": "0" * 64, "graph_sha256": "1" * 64, **given_options})


def test_a_cohort_is_exactly_as_large_as_asked_and_drawn_by_the_devices_own_lots() -> None:
    population = Population(simulation())
    cohorts = [population.cohort(number) for number in range(1, 6)]
    for cohort, asked in cohorts:
        assert len(asked) == 10
        assert asked == [d for d in range(40) if is_member(cohort.salt, cohort.fraction, thing_name(d))]
    assert len({tuple(asked) for _, asked in cohorts}) == 5
    assert Population(simulation(cohort=40)).cohort(1)[1] == list(range(40))


@given(dropout=st.floats(0, 0.9), quorum=st.floats(0.01, 1), seed=st.integers(0, 99), number=st.integers(1, 99))
def test_everyone_who_is_asked_answers_in_time_or_late_or_never(
    dropout: float, quorum: float, seed: int, number: int
) -> None:
    settings = fleet({"deadline_seconds": 200, "quorum": quorum})
    population = Population(simulation(dropout=dropout, seed=seed, fleet=settings, stragglers="0.3:10x"))
    asked = population.cohort(number)[1]
    plan = population.plan(number, asked)
    assert len(plan.answers) + len(plan.late) + plan.dropped == len(asked)
    assert 0 < plan.seconds <= 200
    assert len(plan.answers) >= np.ceil(quorum * len(asked) - 1e-9) or plan.seconds == 200
    assert plan == population.plan(number, asked)


@given(quorum=st.floats(0.1, 1), seed=st.integers(0, 99), staleness=st.integers(0, 3))
def test_a_late_update_that_is_wanted_arrives_in_one_later_round(quorum: float, seed: int, staleness: int) -> None:
    settings = fleet({"deadline_seconds": 200, "quorum": quorum})
    population = Population(simulation(seed=seed, fleet=settings, stragglers="0.3:4x"))
    duties = {number: population.duties(number, staleness) for number in range(1, 9)}
    sent = Counter((number, device) for number in range(1, 9 - staleness) for device in duties[number].late)
    arrived = Counter(one for number in duties for one in duties[number].arrived if one[0] < 9 - staleness)
    assert sent == arrived
    assert all(0 < now - then <= staleness for now in duties for then, _ in duties[now].arrived)
    for number, duty in duties.items():
        assert set(duty.late) <= set(population.opened(number)[1].late)


def test_attackers_are_a_share_of_the_devices_and_stay_the_same() -> None:
    population = Population(simulation(attack="sign_flip:0.25"))
    assert len(population.attackers) == 10
    assert population.attackers == Population(simulation(attack="scale:0.25")).attackers
    assert not Population(simulation()).attackers


@given(st.dictionaries(st.integers(0, LANES - 1), st.integers(1, 50)), st.integers(1, 20))
def test_lanes_are_shared_out_once_each_and_as_evenly_as_they_go(devices: dict[int, int], workers: int) -> None:
    own = shared_out(Counter(devices), workers)
    assert sorted(lane for lanes in own for lane in lanes) == list(range(LANES))
    assert all(lanes == sorted(lanes) for lanes in own)
    loads = [sum(devices.get(lane, 0) for lane in lanes) for lanes in own]
    assert max(loads) - min(loads) <= max(devices.values(), default=0)


LABELS = np.repeat(np.arange(10), 30)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.3", "shards:2"])
def test_each_device_draws_as_many_examples_as_wanted(scheme: str) -> None:
    partition = drawn(LABELS, 100, 41, PartitionScheme.parse(scheme), seed=3)
    mixes = [np.bincount(LABELS[partition.of(device)], minlength=10) for device in range(100)]
    assert all(mix.sum() == 41 for mix in mixes)
    held = [int((mix > 0).sum()) for mix in mixes]
    if scheme == "shards:2":
        assert set(held) == {2}
    else:
        assert np.mean(held) > 9 if scheme == "iid" else 2 < np.mean(held) < 7
    again = drawn(LABELS, 100, 41, PartitionScheme.parse(scheme), seed=3)
    assert np.array_equal(again.indices, partition.indices)


@pytest.mark.parametrize("largest", [255, 256, 65_535, 65_536])
def test_a_device_reads_its_examples_of_the_file_as_they_were_drawn(tmp_path: Path, largest: int) -> None:
    numbers = np.arange(len(LABELS)) + largest + 1 - len(LABELS) if largest >= len(LABELS) else None
    partition = divided(LABELS, 30, PartitionScheme.parse("dirichlet:0.1"), seed=1, numbers=numbers)
    partition.save(tmp_path)
    mapped = Partition.mapped(tmp_path)
    assert mapped.indices.dtype == np.min_scalar_type(max(partition.indices))
    for device in range(30):
        assert np.array_equal(mapped.of(device), partition.of(device))
    assert sum(len(mapped.of(device)) for device in range(30)) == len(LABELS)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet:1", "shards:2"])
def test_dividing_gives_each_example_to_one_device(scheme: str) -> None:
    partition = divided(LABELS, 12, PartitionScheme.parse(scheme), seed=3)
    assert sorted(partition.indices) == list(range(300))
    assert partition.starts[-1] == 300


@pytest.mark.parametrize(("devices", "each"), [(10, 2), (7, 2), (12, 1), (30, 3), (5, 10), (5, 2)])
def test_dividing_by_label_gives_each_device_exactly_so_many_labels_and_each_label_to_as_many_devices(
    devices: int, each: int
) -> None:
    labels = np.repeat(np.arange(10), [30 + 7 * label for label in range(10)]) * 3 + 1  # not 0, 1, 2, …
    for seed in range(5):
        partition = divided(labels, devices, PartitionScheme.parse(f"shards:{each}"), seed=seed)
        assert sorted(partition.indices) == list(range(len(labels)))
        held = [set(labels[partition.of(device)]) for device in range(devices)]
        assert {len(some) for some in held} == {each}
        holders = [sum(label in some for some in held) for label in set(labels)]
        assert max(holders) - min(holders) <= 1
        for label in set(labels):
            parts = [n for d in range(devices) if (n := int((labels[partition.of(d)] == label).sum()))]
            assert max(parts) - min(parts) <= 1


def test_labels_that_cannot_be_divided_so_are_an_error_that_says_why() -> None:
    for devices, each, match in (
        (10, 11, "have 10 labels"),
        (3, 3, "leave out labels"),
        (400, 1, "30 examples for 40"),
    ):
        with pytest.raises(DataError, match=match):
            divided(LABELS, devices, PartitionScheme.parse(f"shards:{each}"), seed=0)


def test_a_device_at_rest_costs_its_examples_numbers() -> None:
    partition = drawn(LABELS, 1000, 40, PartitionScheme.parse("dirichlet:0.3"), seed=0)
    assert partition.indices.nbytes + partition.starts.nbytes < 200_000


def test_labels_that_are_no_classes_can_only_be_dealt_out_evenly() -> None:
    targets = np.linspace(0, 1, 300)
    with pytest.raises(DataError, match="use iid"):
        drawn(targets, 5, 10, PartitionScheme.parse("dirichlet:0.3"), seed=0)
    assert len(drawn(targets, 5, 10, PartitionScheme.parse("iid"), seed=0).of(4)) == 10
    with pytest.raises(DataError, match="--examples"):
        divided(targets, 301, PartitionScheme.parse("iid"), seed=0)


def test_options_are_read_as_they_are_written() -> None:
    assert Attack.parse("sign_flip:0.3") == Attack("sign_flip", 0.3, 5.0)
    assert Attack.parse("scale:0.1:-100") == Attack("scale", 0.1, -100.0)
    assert Stragglers.parse("0.2:5x") == Stragglers(0.2, 5.0)
    assert PartitionScheme.parse("shards:2") == PartitionScheme("shards", 2.0)
    assert parse_strategy("fedadam:learning_rate=0.05,beta_1=0.8") == {
        "name": "fedadam",
        "options": {"learning_rate": 0.05, "beta_1": 0.8},
    }
    assert parse_strategy('median:clip={"norm": 1.0, "over_median": null}')["options"]["clip"]["norm"] == 1.0
    assert parse_strategy("mine:Class:x=1") == {"name": "mine:Class", "options": {"x": 1}}
    assert parse_strategy("mine:Class") == {"name": "mine:Class", "options": {}}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"partition": "dirichlet"}, "dirichlet:0.3"),
        ({"partition": "shards:0"}, "shards:LABELS"),
        ({"attack": "bribe:0.2"}, "sign_flip"),
        ({"attack": "scale:2"}, "between 0 and 1"),
        ({"attack": "scale:a"}, "not a number"),
        ({"stragglers": "0.2"}, "0.2:5x"),
        ({"cohort": 41}, "only 40 devices"),
        ({"cohort": 1}, "min_updates"),
        ({"dropout": 1.0}, "dropout"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], match: str) -> None:
    with refused(match):
        simulation(**options)


def test_the_first_setting_that_differs_is_named() -> None:
    assert simulation().difference(simulation(rounds=99)) == ""
    assert simulation().difference(simulation(seed=5)) == "seed"
    with pytest.raises(ConfigurationError, match="evaluate"):
        simulation(fleet=fleet({"task": "evaluate"}))


def test_with_a_size_more_are_asked_and_the_round_takes_the_first_so_many() -> None:
    simulated = simulation(fleet=fleet({"deadline_seconds": 600, "cohort": {"size": 6, "over_ask": 1.5}}))
    for number in range(1, 6):
        cohort, plan = Population(simulated).opened(number)
        assert (len(plan.asked), len(plan.answers), len(plan.late)) == (9, 6, 3 - plan.dropped)
        assert list(plan.asked) == [d for d in range(40) if takes(cohort, thing_name(d))]


@pytest.mark.parametrize(("size", "over_ask", "needed"), [(35, 1.3, 35), (40, 1.3, 40), (41, 1.0, 20), (400, 2.0, 20)])
def test_a_size_beyond_the_fleet_asks_all_of_it_as_a_round_of_a_fleet_does(
    size: int, over_ask: float, needed: int
) -> None:
    cohort = {"size": size, "over_ask": over_ask}
    simulated = simulation(fleet=fleet({"deadline_seconds": 600, "quorum": 0.5, "cohort": cohort}))
    plan = Population(simulated).opened(1)[1]
    assert len(plan.asked) == 40
    assert len(plan.answers) == needed == quorum_of(simulated.fleet, 40)


def test_fair_cohorts_ask_all_virtual_devices_in_turn() -> None:
    simulated = simulation(fleet=fleet({"cohort": {"fair": True}}), cohort=7)
    counts = [0] * 40
    for number in range(1, 30):
        cohort, asked = Population(simulated).cohort(number)
        assert asked == [d for d in range(40) if takes(cohort, thing_name(d))]
        assert len(asked) == simulated.cohort
        for device in asked:
            counts[device] += 1
        assert max(counts) - min(counts) <= 1


def test_virtual_devices_are_chosen_by_the_losses_that_they_reported_as_a_fleets_are() -> None:
    by_loss = {"candidates": 2, "explore": 0.25, "max_age": 3}
    simulated = simulation(
        fleet=fleet({"deadline_seconds": 600, "cohort": {"size": 8, "over_ask": 1, "by_loss": by_loss}})
    )
    population, drawn = Population(simulated), np.random.default_rng(0)
    told: dict[int, tuple[int, float]] = {}
    for number in range(1, 12):
        cohort, plan = population.opened(number)
        lots = {device: draw(cohort.salt, thing_name(device)) for device in range(40)}
        known = {device: loss for device, (then, loss) in told.items() if then >= number - 3}
        # By hand: of twice as many by lot, as few first ones as leave enough whose loss is known, and of the rest the highest.
        candidates = sorted(lots, key=lots.__getitem__)[:16]
        first = next(n for n in range(2, 9) if sum(d in known for d in candidates[n:]) >= 8 - n)
        rest = sorted((d for d in candidates[first:] if d in known), key=known.__getitem__, reverse=True)
        assert set(plan.asked) == {*candidates[:first], *rest[: 8 - first]}
        assert cohort.by_loss is not None
        assert all(is_asked(cohort, thing_name(d), known.get(d)) == (d in plan.asked) for d in range(40))
        losses = {device: float(drawn.random()) for device in plan.answers}
        population.reported(number, losses)
        told |= {device: (number, loss) for device, loss in losses.items()}
    for options, match in (
        ({"groups": "clusters:2"}, "groups clusters:2"),
        ({"attack": "alie:0.2"}, "attack alie:0.2"),
        ({"fleet": simulated.fleet.overridden({"strategy": {"name": "fedbuff"}})}, "strategy fedbuff"),
    ):
        with refused(f"cohort.by_loss.*{match}"):
            simulation(**{"fleet": simulated.fleet, **options})


@given(salt=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), devices=st.integers(1, 30))
def test_lots_drawn_together_are_those_that_each_device_draws_by_itself(salt: str, devices: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOGETHER", 7)
        found = module._draws(salt, devices)
    assert found.tolist() == [draw(salt, thing_name(device)) for device in range(devices)]

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.cohort import draw, is_asked, takes
from fedgrass.protocol.messages import ByLoss, Cohort
from fedgrass.protocol.secure import encoded_key
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.utility import LastLosses, ToldLoss, choose, told_loss

GRAPH, OTHER = "a" * 64, "b" * 64
SECURE = {"helpers": [{"name": f"h{i}", "key": encoded_key(bytes([i]) * 32)} for i in range(3)], "collude": 1}
BY_LOSS = {"by_loss": {"candidates": 3.0}}


def power_of_choice(lots: dict[str, float], losses: dict[str, float], count: int, candidates: int) -> set[str]:
    """Cho, Wang, Joshi 2020, by hand: a set drawn at random, and of it those with the largest losses."""
    drawn = sorted(lots, key=lambda thing: lots[thing])[:candidates]
    return set(sorted(drawn, key=lambda thing: losses[thing], reverse=True)[:count])


@given(seed=st.integers(0, 10_000), devices=st.integers(1, 60), count=st.integers(1, 60), times=st.integers(1, 6))
def test_with_all_losses_known_and_nothing_explored_it_is_power_of_choice(
    seed: int, devices: int, count: int, times: int
) -> None:
    drawn = random.Random(seed)
    salt, things = f"salt-{seed}", [f"press-{number}" for number in range(devices)]
    losses = {thing: drawn.random() for thing in things}
    lots = {thing: draw(salt, thing) for thing in things}
    found = choose([*lots.values()], [*losses.values()], count, candidates=times, explore=0.0)
    cohort = cohort_of(salt, found)
    asked = {thing for thing in things if is_asked(cohort, thing, losses[thing])}
    assert asked == power_of_choice(lots, losses, count, times * min(count, devices))
    assert found.devices == len(asked)


def cohort_of(salt: str, found: Any) -> Cohort:
    return Cohort(salt=salt, fraction=found.fraction, by_loss=ByLoss(explore=found.explore, loss=found.loss, since=1))


@given(
    losses=st.lists(st.none() | st.sampled_from([0.5, 1.0]) | st.floats(-1e30, 1e30), min_size=1, max_size=50),
    count=st.integers(1, 60),
    candidates=st.floats(1.0, 10.0),
    explore=st.floats(0.0, 1.0),
)
def test_each_device_finds_out_by_itself_and_never_fewer_are_asked_than_wanted(
    losses: list[float | None], count: int, candidates: float, explore: float
) -> None:
    things = [f"press-{number}" for number in range(len(losses))]
    found = choose([draw("s", thing) for thing in things], losses, count, candidates=candidates, explore=explore)
    # As it travels: what rounding does to numbers in JSON must not move a device.
    cohort = Cohort.model_validate_json(cohort_of("s", found).model_dump_json())
    asked = [n for n, thing in enumerate(things) if is_asked(cohort, thing, losses[n])]
    count = min(count, len(things))
    assert found.devices == len(asked) >= count
    by_lot = [n for n, thing in enumerate(things) if is_asked(cohort, thing, None)]
    assert round(explore * count) <= len(by_lot) <= count, "those of unknown loss, and liars' lots, are bounded"
    assert sum(takes(cohort, thing) for thing in things) <= max(count, round(candidates * count))
    # Only as many more as have the very loss that decides.
    by_loss = [loss for n in asked if n not in by_lot and (loss := losses[n]) is not None]
    assert len(asked) == count or len(asked) - count < by_loss.count(min(by_loss))
    # Nobody of a candidates' loss is left out for one that has less.
    out = [losses[n] for n, thing in enumerate(things) if n not in asked and takes(cohort, thing)]
    assert all(loss is None or loss < cohort.by_loss.loss for loss in out if cohort.by_loss)
    # What a device claims moves it within its candidates' lot and nowhere else.
    liars = [thing for thing in things if is_asked(cohort, thing, 1e300)]
    assert all(takes(cohort, thing) for thing in liars)


def test_the_first_round_is_by_lot_alone() -> None:
    lots = [draw("s", f"press-{number}") for number in range(40)]
    found = choose(lots, [None] * 40, 10, candidates=3, explore=0.2)
    assert found.explore == found.fraction
    assert found.devices == sum(lot < found.fraction for lot in lots) == 10


def test_a_loss_counts_from_its_round_on_for_as_long_and_for_its_graph() -> None:
    told = LastLosses().and_then(ToldLoss(loss=2.0, round=3, graph_sha256=GRAPH))
    told = told.and_then(ToldLoss(loss=1.0, round=5, graph_sha256=GRAPH))
    assert told.and_then(ToldLoss(loss=9.0, round=4, graph_sha256=GRAPH)) == told, "late notices change nothing"
    assert told.before(6, 1, GRAPH) == told.before(6, 5, GRAPH) == 1.0
    assert told.before(5, 1, GRAPH) == 2.0, "a round is asked by what was known before it, whatever it brings"
    assert told.before(3, 1, GRAPH) is told.before(6, 6, GRAPH) is told.before(6, 1, OTHER) is None


@pytest.mark.parametrize("metrics", [{}, {"loss": float("nan")}, {"loss": float("inf")}])
def test_what_is_no_loss_is_unknown(metrics: dict[str, float]) -> None:
    assert told_loss(metrics, 1, GRAPH) is None


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "all devices are asked; set cohort.size, or fraction below 1"),
        ({"fraction": 0.1, "privacy": {"mode": "central"}}, "privacy.mode central"),
        ({"fraction": 0.1, "privacy": {"mode": "local"}}, "privacy.mode local"),
        ({"fraction": 0.1, "update": {"figures": "left_out"}}, "figures left out"),
        ({"fraction": 0.1, "cohort": {"fair": True}}, "cohort.fair"),
        ({"fraction": 0.1, "mode": "asynchronous", "strategy": {"name": "fedbuff"}}, "mode asynchronous"),
        ({"fraction": 0.1, "secure": SECURE}, "with secure aggregation no update tells its loss"),
    ],
)
def test_settings_with_which_no_loss_is_told_are_refused_by_name(settings: dict[str, Any], match: str) -> None:
    settings = {**settings, "cohort": {**settings.get("cohort", {}), **BY_LOSS}}
    with pytest.raises(ConfigurationError, match=f"cohort.by_loss: .*{match}"):
        FleetSettings().overridden(settings)

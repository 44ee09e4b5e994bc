"""What rounds cost, against plain loops that add up one device, one notice and one hour after the other."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.costs import Work, cost_after, dollars, parts, why_beyond
from fedgrass.protocol.messages import Base, Cohort
from fedgrass.protocol.names import parameters_key
from fedgrass.protocol.prices import Prices
from fedgrass.protocol.records import JobRun, RoundRecord
from fedgrass.protocol.run_settings import Cost, Run, Standing, Until
from fedgrass.protocol.settings import FleetSettings

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
BASE = Base(
    version="1.0.0",
    parameters_key=parameters_key("mill", "1.0.0"),
    parameters_sha256="0" * 64,
    graph_sha256="a" * 64,
)


def round_of(number: int = 1, settings: dict[str, Any] | None = None, **fields: Any) -> RoundRecord:
    return RoundRecord(
        fleet="mill",
        round=number,
        execution="one",
        settings=FleetSettings().overridden(settings or {}),
        base=BASE,
        version=f"1.{number}.0",
        cohort=Cohort(salt="0" * 32, fraction=1.0),
        **{"alive": 5, "asked": 4, "quorum": 4, "opened_at": NOW, "deadline": NOW + timedelta(hours=1), **fields},
    )


def job(machine: str, began: float, machines: int = 1, name: str = "job") -> JobRun:
    return JobRun(name=name, machine=machine, machines=machines, began_at=NOW + timedelta(seconds=began))


@given(
    uploaded=st.integers(0, 4),
    late=st.integers(0, 3),
    declined=st.integers(0, 2),
    size=st.integers(1, 10**9),
    model=st.integers(0, 10**9),
    base=st.sampled_from([0, 10**8]),
    seconds=st.integers(0, 10_000),
    outcome=st.sampled_from(["released", "refused", "advanced", "held", "insufficient_updates"]),
)
def test_a_round_costs_what_a_plain_loop_over_devices_adds_up(
    uploaded: int, late: int, declined: int, size: int, model: int, base: int, seconds: int, outcome: Any
) -> None:
    record = round_of(
        uploaded=uploaded,
        late=late,
        late_updates=late,
        declined=declined,
        bytes_uploaded=(uploaded + late) * size,
        model_bytes=model,
        base_bytes=base,
        outcome=outcome,
        jobs=(job("ml.m5.large", 0, 2),),
        aggregated_at=NOW + timedelta(seconds=seconds),
    )
    found = 25 * 0.025 / 1000
    for _ in range(seconds):
        found += 2 * 0.115 / 3600
    for _ in range(uploaded + late):
        found += 0.005 / 1000 + 0.0004 / 1000 + size / 1e9 * 0.023
    deployments = {"released": 1, "refused": 2}.get(outcome, 0)
    for _ in range(5 * deployments):
        found += 0.003 + model / 1e9 * 0.09
    for _ in range(uploaded + late + declined + 5 * deployments):
        message, rule, action = 1.0 / 1e6, 0.15 / 1e6, 0.15 / 1e6
        call = 0.2 / 1e6 + 0.1 * 0.5 * 0.0000133334
        found += message + rule + action + call + 4 * 0.625 / 1e6 + 6 * 0.125 / 1e6
    for _ in range(4 if base else 0):
        found += base / 1e9 * 0.09
    assert dollars(Work.of(record), Prices()) == pytest.approx(found, rel=1e-9)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 60))
def test_a_run_is_over_before_the_round_that_would_pass_its_dollars(costs: list[int], limit: int) -> None:
    until, run = Until(dollars=limit), Run(first=7, started_at=NOW)
    spent, ran = 0, 0
    for cost, following in zip(costs, [*costs[1:], 0], strict=True):
        spent, ran = spent + cost, ran + 1
        of_all = Cost(dollars=run.standing.cost.dollars + cost, following=following)
        standing = run.standing.after("loss", None, 0.0, of_all)
        # As an execution's input, which is all that the next one is given.
        run = Run.model_validate_json(run.model_copy(update={"standing": standing}).model_dump_json(exclude_none=True))
        over = run.standing.why_over(until, 0.0)
        assert bool(over) == (spent + following > limit)
        if over:
            break
    assert run.standing.done == ran
    assert not run.standing.why_over(Until(patience=99), 0.0)


def test_another_round_costs_what_this_one_would_have_if_all_had_answered_and_its_model_went_out() -> None:
    half = round_of(
        number=6,
        settings={"release_every": 7},
        uploaded=2,
        bytes_uploaded=2_000_000,
        model_bytes=4_000_000,
        outcome="advanced",
        jobs=(job("ml.m5.large", 0),),
        aggregated_at=NOW + timedelta(seconds=300),
    )
    whole = half.model_copy(
        update={"uploaded": 4, "bytes_uploaded": 4_000_000, "outcome": "released", "base_bytes": 4_000_000}
    )
    following = cost_after(Cost(), half).following
    assert following == pytest.approx(dollars(Work.of(whole), Prices()))
    # The seventh goes out; the eighth does not.
    eighth = cost_after(Cost(), half.model_copy(update={"round": 7, "outcome": "released"})).following
    roll_out = parts(Work.of(whole), Prices())["roll-out"]
    assert roll_out > 5 * 0.003
    assert eighth < following - roll_out
    # A round without a job says nothing of what jobs cost.
    failed = round_of(number=7, uploaded=0, outcome="insufficient_updates")
    assert cost_after(Cost(dollars=1.0, following=following), failed).following >= following


def test_a_job_that_was_repeated_on_a_larger_machine_counts_on_both() -> None:
    record = round_of(
        jobs=(job("ml.m5.large", 0), job("ml.m5.xlarge", 600)), aggregated_at=NOW + timedelta(seconds=900)
    )
    expected = 0.115 * 600 / 3600 + 0.23 * 300 / 3600
    assert parts(Work.of(record), Prices())["aggregator"] == pytest.approx(expected)
    # Records of earlier releases, and rounds that are open, tell of no job's end.
    assert parts(Work.of(round_of(jobs=(job("ml.m5.large", 0),))), Prices())["aggregator"] == 0
    assert cost_after(Cost(dollars=2.0), round_of(dollars=0.5)).dollars == 2.5
    assert Standing.model_validate({"done": 3}).cost == Cost()


@pytest.mark.parametrize(
    ("machine", "price"),
    [
        ("ml.m5.large", 0.1),
        ("ml.m5.xlarge", 0.2),
        ("ml.m5.12xlarge", 2.4),
        ("ml.t3.medium", 0.02),
        ("ml.c5.xlarge", 0.3),
        ("ml.c5.large", 0.15),
        ("ml.r5.large", None),
        ("ml.m5.metal", None),
        ("nonsense", None),
    ],
)
def test_a_machine_costs_in_proportion_to_its_family(machine: str, price: float | None) -> None:
    prices = Prices(machines={"ml.m5.large": 0.1, "ml.t3.large": 0.04, "ml.c5.xlarge": 0.3})
    assert prices.of_machine(machine) == (price if price is None else pytest.approx(price))


def test_where_nobody_knows_what_a_job_costs_no_dollars_can_be_kept() -> None:
    other = {"aggregation": {"instance_type": "ml.r5.large"}, "until": {"dollars": 5}}
    with pytest.raises(ConfigurationError, match=r"prices\.machines has no price for ml\.r5\.large"):
        FleetSettings().overridden(other)
    priced = FleetSettings().overridden({**other, "prices": {"machines": {"ml.r5.large": 0.15}}})
    assert priced.prices.of_machine("ml.m5.large") == 0.115  # merged: what is there stays
    # The stack's own machine is known only when a job has run on it.
    cost = cost_after(Cost(), round_of(jobs=(job("ml.r5.large", 0),)))
    assert "ml.r5.large" in cost.why_over(Until(dollars=5))
    assert cost.why_over(Until()) == ""


def test_a_first_round_that_alone_is_too_dear_is_refused_before_it_asks_anybody() -> None:
    settings = {"until": {"dollars": 0.01}}
    assert "costs more than 0.0157 dollars" in why_beyond(round_of(settings=settings, run=Run(first=1, started_at=NOW)))
    assert why_beyond(round_of(settings={"until": {"dollars": 0.02}})) == ""
    assert why_beyond(round_of(settings={**settings, "release": "never"})) == ""
    later = Run(first=1, started_at=NOW, standing=Standing(done=1))
    assert why_beyond(round_of(number=2, settings=settings, run=later)) == ""

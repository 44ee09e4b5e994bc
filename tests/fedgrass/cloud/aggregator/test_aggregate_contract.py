"""The contract of an aggregation: a float64 mean of the good updates alone, and the same bytes whatever else there is."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import AggregationOptions, aggregate, contribute
from fedgrass.cloud.aggregator.combination import Screened
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import EarlierRound, Expected
from fedgrass.errors import TransferError
from fedgrass.protocol.check_settings import Checks
from fedgrass.strategies import strategy_named
from fedgrass.strategies.arithmetic.interfaces import Sums
from fedgrass.update.codecs import Floats
from tests.aggregate_campaign import campaign, check
from tests.aggregate_cohorts import arranged
from tests.aggregate_mixes import STRATEGIES, Maker
from tests.fedgrass.cloud.aggregator.updates import UNBOUNDED, Memory, combine, flat, tiny_model, update_of

KINDS = [f"{name}{json.dumps(options) if options else ''}" for name, options in STRATEGIES]


@pytest.mark.parametrize("place", range(len(STRATEGIES)), ids=KINDS)
def test_a_strategy_s_result_is_that_of_the_good_updates_in_whatever_way_it_is_reached(
    place: int, tmp_path: Path
) -> None:
    mix = Maker(tmp_path, 100 + place).mix(65)
    mix.strategy = STRATEGIES[place]
    mix.bad = [
        one for one in mix.bad if one[2] not in {"missing_metric", "replayed"}
    ]  # are of another strategy, perhaps
    check(mix, random.Random(place))


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 31))
def test_cohorts_of_any_kind_keep_the_contract(seed: int) -> None:
    assert campaign(2, seed)["byte_differences"] == 0


@pytest.mark.parametrize("large", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300])
def test_bad_updates_anywhere_change_no_byte_at_any_boundary(tmp_path: Path, count: int, large: bool) -> None:
    base = tiny_model(tmp_path, 9, 40)
    generator = np.random.default_rng(count)
    good = {f"t{i:03d}": generator.normal(size=49).astype(np.float32) for i in range(count)}
    contents = {
        thing: update_of(base, thing, values, num_examples=1 + i) for i, (thing, values) in enumerate(good.items())
    }
    with arranged(large=large):
        alone = combine(base, Memory(contents), UNBOUNDED)
    assert alone.parameters is not None
    weights = np.arange(1, count + 1)
    wanted = np.average(np.array(list(good.values()), np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(flat(alone.parameters), wanted, rtol=1e-6, atol=1e-6)
    values = np.ones(49, np.float32)
    values[generator.integers(49)] = np.nan
    for junk in (1, 63, 64, 65, 200):
        bad = {f"b{i:03d}": update_of(base, f"b{i:03d}", values) if i % 2 else b"\xff" * 99 for i in range(junk)}
        with arranged(large=large, threads=2, together=64 if junk % 2 else 5):
            found = combine(base, Memory({**bad, **contents}), UNBOUNDED)
        assert found.parameters is not None
        assert flat(found.parameters).tobytes() == flat(alone.parameters).tobytes()
        assert found.updates == alone.updates
        assert len(found.quarantined) == junk


def test_both_ways_to_read_give_the_same_mean(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 40_000, 1, 70_000)
    generator = np.random.default_rng(1)
    contents = {
        f"t{i}": update_of(base, f"t{i}", generator.normal(size=110_001).astype(np.float32), num_examples=1 + i)
        for i in range(40)
    }
    found = []
    for large in (False, True):
        with arranged(large=large, threads=3):
            result = combine(base, Memory(contents))
        assert result.parameters is not None
        found.append(flat(result.parameters))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-7)


DIGEST = """
import hashlib, sys, tempfile
from pathlib import Path
import numpy as np
from tests.aggregate_cohorts import arranged
from tests.fedgrass.cloud.aggregator.updates import Memory, combine, flat, tiny_model, update_of
with tempfile.TemporaryDirectory() as folder:
    base = tiny_model(Path(folder), 3000, 40_000)
    generator = np.random.default_rng(2)
    contents = {
        f"t{i}": update_of(base, f"t{i}", (generator.normal(size=43_000) * 4.0 ** (i % 3)).astype(np.float32))
        for i in range(9)
    }
    for large in (False, True):
        with arranged(large=large, threads=2):
            from fedgrass.protocol.check_settings import Checks
            print(hashlib.sha256(flat(combine(base, Memory(contents), Checks()).parameters).tobytes()).hexdigest())
"""


def test_the_processor_s_instructions_change_no_byte() -> None:
    def digest(**environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[4],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    plain = digest(NPY_DISABLE_CPU_FEATURES="AVX512F AVX512_SKX AVX2 FMA3 X86_V3 X86_V4", OPENBLAS_CORETYPE="Prescott")
    assert digest() == plain
    assert plain


class Two:
    """The first of two instances; the other's lanes are empty."""

    def __init__(self) -> None:
        self.own = range(16)

    def exchange(self, found: Screened) -> Screened:
        return found

    def give(self, lane: int, total: Sums, found: Screened) -> None:
        raise AssertionError

    def add(self, lane: int, total: Sums) -> Screened:
        raise AssertionError


@pytest.mark.parametrize("share", [None, Two()], ids=["alone", "shared"])
def test_an_update_that_changes_between_two_readings_ends_the_job(tmp_path: Path, share: Any) -> None:
    base = tiny_model(tmp_path, 5)
    ones = np.ones(5, np.float32)
    contents = {f"t{i}": update_of(base, f"t{i}", ones * (100 if i == 3 else 1)) for i in range(5)}

    class Fickle(Memory):
        opened = 0

        def open(self, reference: Any) -> Any:
            self.opened += 1
            if self.opened > 5:
                contents["t1"] = b"\xff" * 100
            return super().open(reference)

    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256)
    source = Fickle(contents)
    with pytest.raises(TransferError, match="t1/update: was good when it was read first"):
        aggregate(base, source, source.list(), strategy_named("fedavg"), expected, AggregationOptions(share=share))


# --- Defaults protect -----------------------------------------------------------------------------------------------


def cohort(base: Bundle, values: list[Floats], examples: list[int]) -> Memory:
    return Memory(
        {
            f"t{i:02d}": update_of(base, f"t{i:02d}", one, num_examples=count)
            for i, (one, count) in enumerate(zip(values, examples, strict=True))
        }
    )


def of(*lengths: float) -> list[Floats]:
    """Updates of these norms, in two directions by sign."""
    return [np.full(4, length / 2, np.float32) for length in lengths]


def change(base: Bundle, lengths: list[float], examples: list[int] | None = None, **bounds: float) -> float:
    """The mean's length and direction, with the default bounds."""
    found = combine(base, cohort(base, of(*lengths), examples or [10] * len(lengths)), Checks.model_validate(bounds))
    assert found.parameters is not None, found.problem
    return 2 * float(flat(found.parameters)[0])


def test_one_liar_of_twenty_has_a_small_multiple_of_an_honest_one_s_say(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 4)
    liar = [1.0] * 19 + [-1.0]
    assert change(base, liar, [100] * 19 + [10**9]) == pytest.approx((19 - 3) / 22, rel=1e-5)
    liar[-1] = -1e15
    assert change(base, liar, [100] * 19 + [10**9]) == pytest.approx((19 - 6) / 22, rel=1e-5)
    assert change(base, liar, [100] * 20, max_norm_over_median=10.0) == pytest.approx(1.0)


@pytest.mark.parametrize("large", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize(
    ("strategy", "honest", "lie", "least", "most"),
    [
        ("fednova", {"steps": 10.0}, {"steps": 1.0}, 0.4, 1.0),
        ("fednova", {"steps": 10.0}, {"steps": 1e30}, 0.7, 1.3),
        ("fednova", {"steps": 10.0}, {"steps": -5.0}, 0.4, 1.0),
        ("qfedavg", {"loss": 0.1}, {"loss": 1e30}, 0.6, 1.0),
        ("qfedavg", {"loss": 0.1}, {"loss": -1e30}, 0.6, 1.01),
    ],
)
def test_no_steps_and_no_loss_that_one_of_twenty_claims_decide(
    tmp_path: Path,
    large: bool,
    strategy: str,
    honest: dict[str, float],
    lie: dict[str, float],
    least: float,
    most: float,
) -> None:
    base = tiny_model(tmp_path, 4)

    def moved(last: float, count: int, metrics: dict[str, float]) -> float:
        said = [(1.0, 100, honest)] * 19 + [(last, count, metrics)]
        contents = {
            f"t{i:02d}": update_of(base, f"t{i:02d}", of(length)[0], num_examples=examples, metrics=claimed)
            for i, (length, examples, claimed) in enumerate(said)
        }
        with arranged(large=large):
            found = combine(base, Memory(contents), Checks(), strategy_named(strategy))
        assert found.parameters is not None, found.problem
        assert found.updates[-1].metrics == metrics, "the report has what was said"
        return 2 * float(flat(found.parameters)[0])

    plain = moved(1.0, 100, honest)
    assert least * plain <= moved(-1.0, 10**9, lie) <= most * plain


@pytest.mark.parametrize("large", [False, True], ids=["rows", "tiles"])
def test_the_largest_float_in_one_update_moves_the_model_no_further_than_twice_the_others(
    tmp_path: Path, large: bool
) -> None:
    base = tiny_model(tmp_path, 4)
    for largest in (1e18, 1e30, 3.4e38):
        with arranged(large=large):
            found = combine(base, cohort(base, [*of(*[1.0] * 9), np.full(4, largest, np.float32)], [10] * 10), Checks())
        assert found.parameters is not None
        assert 2 * flat(found.parameters)[0] == pytest.approx((9 + 2) / 10, rel=1e-4)


@pytest.mark.parametrize(
    ("lengths", "examples", "wanted"),
    [
        ([5.0], [10], 5.0),  # nothing to compare it with
        ([0.0], [10], 0.0),
        ([1.0, 1e9], [10, 10], 1.5),  # of two, the longer has no say in its own bound
        ([1e9, 1.0], [10, 10], 1.5),
        ([1.0, 1.0], [10, 10**9], 1.0),
        ([1.0, -1.0], [10, 10**9], -0.5),  # three times as much, not more
        ([1.0, 1.0, -1e30], [10] * 3, 0.0),
        ([0.0, 0.0, 0.0], [10] * 3, 0.0),
        ([0.0, 0.0, 3.0], [10] * 3, 1.0),  # the median of those that moved
        ([0.0, 0.0, 0.0, 1.0, 100.0], [10] * 5, 3.0 / 5),
        ([1.0, 1.0, 2.0, 2.0], [10] * 4, 1.5),  # ties, and at the bound
        ([1.0, 1.0, 2.000001], [10] * 3, 4 / 3),
        ([1e-20, 1e-20, 1.0], [10] * 3, 4e-20 / 3),
        ([1.0] * 4, [1, 1, 1, 3], 1.0),
    ],
)
def test_small_cohorts_are_bounded_too(
    tmp_path: Path, lengths: list[float], examples: list[int], wanted: float
) -> None:
    assert change(tiny_model(tmp_path, 4), lengths, examples) == pytest.approx(wanted, rel=1e-5, abs=1e-38)


def test_a_bound_of_zero_is_none(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 4)
    found = change(base, [1.0, 9.0], [1, 9], clip_norm_over_median=0, max_examples_over_median=0)
    assert found == pytest.approx((1 + 81) / 10)


def test_a_report_says_how_many_examples_counted_and_how_long_the_update_was(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 4)
    found = combine(base, cohort(base, of(1.0, 1.0, 50.0), [10, 20, 10**9]), Checks())
    assert [entry.num_examples for entry in found.updates] == [10, 20, 60]
    assert [entry.norm for entry in found.updates] == [1.0, 1.0, 50.0]
    assert [entry.weight for entry in found.updates] == pytest.approx([10 / 90, 20 / 90, 60 / 90])


def test_a_strategy_s_own_clip_takes_the_default_s_place(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 4)
    source = cohort(base, of(1.0, 1.0, 8.0), [1] * 3)
    found = combine(base, source, Checks(), strategy_named("fedavg", clip={"norm": 5.0}))
    assert found.parameters is not None
    assert 2 * flat(found.parameters)[0] == pytest.approx(7 / 3, rel=1e-5)


def test_a_device_s_bad_update_takes_nothing_from_its_good_one(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 4)
    checks, early = Checks(), "e" * 64
    contents = {thing: update_of(base, thing, np.full(4, place + 1, np.float32)) for place, thing in enumerate("abc")}
    late = update_of(base, "a", np.full(4, 9, np.float32), round=4, base_sha256=early)
    broken = update_of(base, "a", np.full(4, np.nan, np.float32), round=4, base_sha256=early)

    def mean(held_back: bytes | None) -> bytes:
        files = {f"{thing}/now": content for thing, content in contents.items()}
        references = [UpdateReference(key[0], key, len(content)) for key, content in files.items()]
        if held_back is not None:
            files["a/late"] = held_back
            references.append(UpdateReference("a", "a/late", len(held_back), round=4))

        class Held:
            def list(self) -> list[UpdateReference]:
                return references

            def open(self, reference: UpdateReference) -> io.BytesIO:
                return io.BytesIO(files[reference.key])

        manifest = base.manifest
        expected = Expected(
            manifest.parameters_sha256,
            manifest.graph_sha256,
            checks=checks,
            earlier={4: EarlierRound(early, 1)},
        )
        found = aggregate(base, Held(), references, strategy_named("fedbuff"), expected)
        assert found.parameters is not None
        return flat(found.parameters).tobytes()

    assert mean(broken) == mean(None) != mean(late)


# --- Finite is not enough -------------------------------------------------------------------------------------------


def test_a_sum_a_step_or_a_model_that_is_not_finite_is_no_model(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "a", 4)
    huge = [np.full(4, 3.4e38, np.float32)] * 3
    problems: dict[str, Callable[[], Any]] = {
        "new model": lambda: strategy_named("fedavgm", learning_rate=1e30),
        "server optimizer's variance": lambda: strategy_named("fedadam"),
    }
    for said, strategy in problems.items():
        found = combine(base, cohort(base, huge, [10] * 3), UNBOUNDED, strategy())
        assert found.parameters is None
        assert said in found.problem
    assert combine(base, cohort(base, huge, [10] * 3), UNBOUNDED).problem == ""


def test_a_folder_whose_sum_is_no_model_writes_nothing(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", 4)
    updates = tmp_path / "updates"
    updates.mkdir()
    for thing in "ab":
        (updates / f"{thing}.safetensors").write_bytes(update_of(base, thing, np.full(4, 3e38, np.float32)))
    found = aggregate_folder(base.folder, updates, tmp_path / "new", strategy_named("fedavgm", learning_rate=1e5))
    assert "not finite" in found.problem
    assert not (tmp_path / "new").exists()


def test_instances_that_contribute_nothing_leave_word_of_it(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 4)
    given: list[int] = []

    class Last(Two):
        own = range(12, 16)

        def __init__(self) -> None:
            pass

        def give(self, lane: int, total: Sums, found: Screened) -> None:
            given.append(lane)
            assert not found.good

    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256)
    contribute(base, Memory({}), [], strategy_named("fedavg"), expected, Last())
    assert given == [12, 13, 14, 15]

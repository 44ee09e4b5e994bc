"""Drift of live data: against plain NumPy and SciPy, from normal to drifted, by input, scores and the device's own past."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from fedgrass.bundle import Bundle, Manifest
from fedgrass.data import ArrayDataset
from fedgrass.data.digits import digits_bundle
from fedgrass.errors import DataError
from fedgrass.profile.combine import Combined, profile_of
from fedgrass.profile.drift import GROUPS, Reference, Scores, compared, groups_of, stability_index
from fedgrass.profile.sums import Bounds, Doubles, FeatureSums
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.profile import Profile

DIGITS = Bundle.open(digits_bundle()).manifest
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def manifest_of(shape: tuple[int, ...]) -> Manifest:
    return DIGITS.model_copy(update={"x": DIGITS.x.model_copy(update={"shape": shape})})


def profile_over(x: Doubles, manifest: Manifest, bins: int = 64) -> Profile:
    sums = FeatureSums(x.shape[1], 10, Bounds(np.nanmin(x, axis=0), np.nanmax(x, axis=0), bins))
    sums.add(x)
    return profile_of(Combined(sums, 5), manifest, fleet="f", number=7, made_at=NOW)


def look(x: Doubles, reference: Reference, manifest: Manifest, **more: Any) -> Drift:
    return compared(ArrayDataset(x, np.zeros(len(x))), manifest, reference, **more)


def scipy_index(expected: Doubles, found: Doubles) -> float:
    """Both relative entropies (SciPy), after the floor that is documented."""
    p, q = (np.maximum(counts / counts.sum(), 1e-4) for counts in (expected, found))
    return float(rel_entr(p, q).sum() + rel_entr(q, p).sum())


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 1000)), min_size=2, max_size=12).filter(
        lambda rows: sum(a for a, _ in rows) > 0 and sum(b for _, b in rows) > 0
    )
)
def test_the_index_is_both_relative_entropies(rows: list[tuple[int, int]]) -> None:
    expected, found = np.array(rows, np.float64).T
    index = float(stability_index(expected, found))
    assert index == pytest.approx(scipy_index(expected, found), rel=1e-9, abs=1e-12)
    assert index == pytest.approx(float(stability_index(found, expected)), rel=1e-9, abs=1e-12)
    assert float(stability_index(expected, expected)) == 0


def by_hand(live: Doubles, fleet: Doubles, bins: int) -> float:
    """One feature's index by loops over values, sharing nothing with the code but the definition of its groups."""
    low, high = np.nanmin(fleet), np.nanmax(fleet)
    edges = np.linspace(low, high, bins + 1)

    def counts(values: Doubles) -> list[int]:
        there = values[np.isfinite(values)]
        inside, _ = np.histogram(there, edges)
        return [int((there < low).sum()), *map(int, inside), int((there > high).sum())]

    of_fleet, of_live = counts(fleet), counts(live)
    total, so_far = sum(of_fleet), 0.0
    expected, found = [0.0] * 11, [0.0] * 11
    for at, count in enumerate(of_fleet):
        group = min(9, int(10 * (so_far + count / 2) / total))
        expected[group] += count
        found[group] += of_live[at]
        so_far += count
    expected[10], found[10] = np.isnan(fleet).sum(), np.isnan(live).sum()
    return scipy_index(np.array(expected), np.array(found))


def test_figures_are_those_of_plain_numpy_over_the_values() -> None:
    rng = np.random.default_rng(3)
    manifest = manifest_of((4,))
    fleet = np.stack(
        [rng.normal(0, 1, 20_000), rng.exponential(5, 20_000), rng.integers(0, 3, 20_000), rng.random(20_000)], 1
    )
    fleet[rng.random(20_000) < 0.02, 3] = np.nan
    live = np.stack([rng.normal(0.6, 1.5, 800), rng.exponential(5, 800), rng.integers(1, 4, 800), rng.random(800)], 1)
    live[rng.random(800) < 0.2, 3] = np.nan
    reference = Reference.of(profile_over(fleet, manifest), manifest)
    sums = FeatureSums(4, 0, reference.bounds)
    sums.add(live)
    index = stability_index(reference.counts, reference.of_live(sums))
    wanted = [by_hand(live[:, at], fleet[:, at], 64) for at in range(4)]
    np.testing.assert_allclose(index, wanted, rtol=1e-9)
    found = look(live, reference, manifest)
    assert found.inputs == pytest.approx(max(wanted))
    assert found.feature == np.argmax(wanted)
    assert (found.profile, found.rows) == (7, 800)


def test_the_quantile_distance_is_numpys_within_the_errors_told() -> None:
    rng = np.random.default_rng(4)
    manifest = manifest_of((1,))
    fleet, live = rng.normal(10, 2, (50_000, 1)), rng.normal(13, 2, (2000, 1))
    found = look(live, Reference.of(profile_over(fleet, manifest, 256), manifest), manifest)
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    apart = np.abs(np.quantile(live, shares) - np.quantile(fleet, shares)) / fleet.std()
    width = (fleet.max() - fleet.min()) / 256 / fleet.std()
    assert found.distance == pytest.approx(apart.max(), abs=2 * width)


def test_from_normal_to_drifted_the_figure_rises_and_chance_alone_stays_below_the_threshold() -> None:
    rng = np.random.default_rng(5)
    manifest = manifest_of((20,))
    reference = Reference.of(profile_over(rng.normal(0, 1, (50_000, 20)), manifest), manifest)
    still = [look(rng.normal(0, 1, (200, 20)), reference, manifest).inputs for _ in range(50)]
    assert max(still) < 0.25
    rising = []
    for shift in (0.0, 0.5, 1.0, 2.0):
        live = rng.normal(0, 1, (1000, 20))
        live[:, 6] += shift
        found = look(live, reference, manifest)
        rising.append(found.inputs)
        assert shift < 0.5 or found.feature == 6
    assert rising == sorted(rising)
    assert rising[0] < 0.1
    assert rising[2] > 0.25


@pytest.mark.parametrize("value", [-1e9, 4.999, 5.001, 1e9, np.nan])
def test_a_constant_that_is_another_is_drift_and_the_same_is_none(value: float) -> None:
    manifest = manifest_of((1,))
    reference = Reference.of(profile_over(np.full((1000, 1), 5.0), manifest), manifest)
    assert look(np.full((300, 1), 5.0), reference, manifest).inputs == 0
    found = look(np.full((300, 1), value), reference, manifest)
    assert found.inputs > 5
    assert 0 <= found.distance <= 1e6


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=70).filter(any))
def test_groups_are_in_the_order_of_values_and_ten_at_most(counts: list[int]) -> None:
    groups = groups_of(np.array(counts, np.float64))
    assert (np.diff(groups) >= 0).all()
    assert 0 <= groups.min() <= groups.max() < GROUPS


def test_the_devices_own_past_tells_a_change_where_it_never_was_like_the_fleet(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    manifest = manifest_of((2,))
    reference = Reference.of(profile_over(rng.normal(0, 5, (20_000, 2)), manifest), manifest)
    kept = tmp_path / "drift.safetensors"

    def seen(center: float, key: str = "one", scores: tuple[float, float] = (90, 10), rows: int = 500) -> Drift:
        found = Scores(np.array([0.5, 0.5]), np.array(scores))
        return look(rng.normal(center, 1, (rows, 2)), reference, manifest, scored=lambda: found, kept=kept, key=key)

    few = seen(8.0, rows=60)  # its chance would be what all later looks are held against
    assert (few.inputs_change, kept.exists()) == (None, False)
    first = seen(8.0)
    assert first.inputs > 1
    assert (first.inputs_change, first.scores_change) == (0.0, 0.0)
    assert first.scores == pytest.approx(scipy_index(np.array([1.0, 1.0]), np.array([90.0, 10.0])))
    same, moved = seen(8.0), seen(-8.0, scores=(10, 90))
    assert same.inputs_change is not None
    assert same.inputs_change < 0.1
    assert moved.inputs_change is not None
    assert moved.inputs_change > 1
    assert moved.scores_change is not None
    assert moved.scores_change > 1
    # Another profile: what was kept is of other groups, and the device begins anew.
    assert seen(-8.0, key="two").inputs_change == 0.0
    kept.write_bytes(b"damaged")
    assert seen(8.0, key="two").inputs_change == 0.0


def test_a_profile_without_histograms_or_of_other_inputs_is_refused_by_name() -> None:
    manifest = manifest_of((2,))
    sums = FeatureSums(2, 10)
    sums.add(np.zeros((5, 2)))
    bare = profile_of(Combined(sums, 1), manifest, fleet="f", number=7, made_at=NOW)
    with pytest.raises(DataError, match="no histograms"):
        Reference.of(bare, manifest)
    with pytest.raises(DataError, match="other inputs"):
        Reference.of(bare, manifest_of((3,)))

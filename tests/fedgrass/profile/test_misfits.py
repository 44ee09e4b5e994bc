"""Devices that do not fit: another unit, swapped columns, a silent sensor; and those that only differ are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedgrass.profile.combine import Combined, combine
from fedgrass.profile.files import Layout
from fedgrass.profile.sums import FeatureSums

NAMES = ("temperature", "pressure", "speed", "constant")
LAYOUT = Layout(4, 0, 1, None)


def fleet(devices: int = 20, *, skew: float = 1.0) -> dict[str, Any]:
    generator = np.random.default_rng(5)
    found = {}
    for device in range(devices):
        shift = generator.normal(scale=skew, size=3)
        x = generator.normal([20, 1013, 3], [4, 8, 1], size=(200, 3)) + shift * [4, 8, 1]
        found[f"press-{device}"] = np.column_stack([x, np.full(200, 7.0)])
    return found


def combined(data: dict[str, Any], **options: Any) -> Combined:
    def read() -> Iterator[tuple[str, FeatureSums]]:
        for thing, x in data.items():
            sums = FeatureSums(4)
            sums.add(x)
            yield thing, sums

    return combine(read, LAYOUT, NAMES, most=10**6, **options)


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_devices_that_differ_as_devices_do_are_left_alone(skew: float) -> None:
    found = combined(fleet(skew=skew))
    assert (found.misfits, found.devices, found.left_out) == ([], 20, [])


@pytest.mark.parametrize("factor", [1000.0, 1 / 1000, 100.0])
def test_another_unit_is_flagged_with_its_factor_and_left_out(factor: float) -> None:
    data = fleet()
    data["press-3"] = data["press-3"] * [1, factor, 1, 1]
    found = combined(data)
    [misfit] = found.misfits
    assert (misfit.thing, misfit.feature, misfit.kind) == ("press-3", "pressure", "scale")
    assert misfit.factor == pytest.approx(factor, rel=0.1)
    assert "unit" in misfit.told
    assert found.left_out == ["press-3"]
    assert found.sums.mean[1] == pytest.approx(1013, abs=8)


def test_another_zero_is_flagged() -> None:
    data = fleet()
    data["press-3"] = data["press-3"] + [273.15, 0, 0, 0]
    [misfit] = combined(data).misfits
    assert (misfit.feature, misfit.kind) == ("temperature", "offset")


def test_swapped_columns_are_told_as_such() -> None:
    data = fleet()
    data["press-3"] = data["press-3"][:, [1, 0, 2, 3]]
    found = [(m.feature, m.kind, m.like) for m in combined(data).misfits]
    assert found == [("temperature", "column", "pressure"), ("pressure", "column", "temperature")]


@pytest.mark.parametrize("narrow", [0.5, 1.0])
def test_swapped_columns_that_differ_in_their_spread_are_told_as_such(narrow: float) -> None:
    data = {
        thing: x * [0, 0, 1, 1] + (x - [20, 1013, 0, 0]) * [narrow / 4, 10 / 8, 0, 0]
        for thing, x in fleet(skew=0.2).items()
    }
    data["press-3"] = data["press-3"][:, [1, 0, 2, 3]]
    found = [(m.thing, m.feature, m.like) for m in combined(data).misfits]
    assert found == [("press-3", "temperature", "pressure"), ("press-3", "pressure", "temperature")]


def test_a_column_for_each_site_has_no_usual_value_and_leaves_nobody_out() -> None:
    data = fleet(24)
    for device, x in enumerate(data.values()):
        x[:, 1:] = np.arange(3) == device % 8  # most devices are at none of these three sites
    found = combined(data)
    assert (found.misfits, found.devices) == ([], 24)
    np.testing.assert_allclose(found.sums.mean[1:], 1 / 8)


def test_columns_that_are_shifted_are_told_as_such() -> None:
    data = fleet()
    data["press-3"] = data["press-3"][:, [1, 2, 0, 3]]
    found = [(m.feature, m.like) for m in combined(data).misfits]
    assert found == [("temperature", "pressure"), ("pressure", "speed"), ("speed", "temperature")]


def test_a_silent_sensor_is_told_and_the_others_values_count() -> None:
    data = fleet()
    data["press-3"] = data["press-3"].copy()
    data["press-3"][:, 2] = np.nan
    found = combined(data)
    [misfit] = found.misfits
    assert (misfit.feature, misfit.kind, found.devices) == ("speed", "missing", 20)


def test_a_few_devices_have_no_usual() -> None:
    data = fleet(4)
    data["press-3"] = data["press-3"] * 1000
    assert combined(data).misfits == []


def test_leaving_out_is_the_operators_choice() -> None:
    data = fleet()
    data["press-3"] = data["press-3"] * [1, 1000, 1, 1]
    found = combined(data, leave_out=False)
    assert (found.devices, len(found.misfits)) == (20, 1)
    everything = np.concatenate(list(data.values()))
    np.testing.assert_allclose(found.sums.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sums.variance, everything.var(axis=0), rtol=1e-10, atol=1e-20)


def test_the_order_of_devices_changes_no_judgement() -> None:
    data = fleet(30)
    data["press-3"] = data["press-3"] * [1, 1000, 1, 1]
    backwards = dict(reversed(data.items()))
    assert combined(data).misfits == combined(backwards).misfits

"""Trust by the operator's own examples, and updates that are mixed before a rule looks at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.errors import AggregationError, ConfigurationError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.strategies import strategy_named
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.strategies.arithmetic.mixing import Buckets
from fedgrass.strategies.arithmetic.weighting import StalenessWeighting
from fedgrass.strategies.trust import TrustRule
from fedgrass.update.codecs import Floats
from fedgrass.update.writer import write_update
from tests.fedgrass.cloud.aggregator.conftest import Fleet, header

N, SIZE = 9, 50


class Rows:
    """A matrix in memory, in three tiles."""

    def __init__(self, base: Bundle, values: Floats) -> None:
        self.base = base
        self.facts = [UpdateMetadata(f"t{i}", 1, {}, norm=float(np.linalg.norm(row))) for i, row in enumerate(values)]
        self._values = values

    def tiles(self) -> list[slice]:
        return [slice(0, 20), slice(20, 40), slice(40, SIZE)]

    def read(self, columns: slice, chosen: object = None) -> Floats:
        return np.array(self._values[:, columns] if chosen is None else self._values[chosen, columns])  # type: ignore[index]


@pytest.fixture
def values() -> Floats:
    found = np.random.default_rng(0).normal(size=(N, SIZE)).astype(np.float32)
    found[2] *= 100
    return found


def test_trust_equals_its_plain_numpy_reference(digits: Bundle, values: Floats) -> None:
    own = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    out = np.empty(SIZE, np.float32)
    shares = TrustRule(1.5, own).combine(Rows(digits, values), out)
    d = values.astype(np.float64)
    norms = np.linalg.norm(d, axis=1)
    cosines = np.maximum(0, d @ own / norms / np.linalg.norm(own.astype(np.float64)))
    bounded = d * np.minimum(1, 1.5 * np.median(norms) / norms)[:, None]
    np.testing.assert_allclose(out, (cosines[:, None] * bounded).sum(axis=0) / cosines.sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shares, cosines / cosines.sum(), rtol=1e-4, atol=1e-6)
    assert min(shares) == 0, "what points away has no share"


def test_where_nothing_points_the_operators_way_there_is_no_result(digits: Bundle, values: Floats) -> None:
    zeros = np.zeros_like(values)
    for rows, own in ((zeros, values[0]), (values, zeros[0]), (-np.abs(values), np.abs(values[0]))):
        with pytest.raises(AggregationError, match="evaluation set"):
            TrustRule(1.0, own).combine(Rows(digits, rows), np.empty(SIZE, np.float32))


def test_a_round_with_trust_trains_on_the_evaluation_set_and_gives_liars_no_share(fleet: Fleet, tmp_path: Path) -> None:
    loaded = load_digits()
    x, y = (loaded.images[..., None] / 16).astype(np.float32), loaded.target.astype(np.int32)
    fleet.put_evaluation_set(x[:300], y[:300])
    from fedgrass.cloud.aggregator.trusted import own_update
    from fedgrass.data import ArrayDataset
    from fedgrass.protocol.messages import FitTask

    base = fleet.base.parameters()
    fleet.settings = FleetSettings.model_validate({"strategy": {"name": "trust"}, "gate": {"tolerance": 1.0}})
    for number, (thing, factor) in enumerate({"press-a": 1.0, "press-b": 1.0, "press-c": -1.0}.items()):
        part = slice(300 + 400 * number, 700 + 400 * number)
        moved = own_update(fleet.base, ArrayDataset(x[part], y[part]), FitTask())
        assert moved is not None
        ends = np.cumsum([value.size for value in base.values()])[:-1]
        pieces = zip(base.items(), np.split(moved, ends), strict=True)
        local = {name: value + factor * piece.reshape(value.shape) for (name, value), piece in pieces}
        write_update(tmp_path / thing, base, local, header(fleet.base, thing))
        fleet.put(thing, (tmp_path / thing).read_bytes())
    report = fleet.run()
    weights = {entry.thing: entry.weight for entry in report.updates}
    assert report.outcome == "released"
    assert weights["press-c"] == 0
    assert min(weights["press-a"], weights["press-b"]) > 0.25


def test_trust_without_an_evaluation_set_says_where_to_put_one(fleet: Fleet, digits: Bundle, tmp_path: Path) -> None:
    fleet.settings = FleetSettings.model_validate({"strategy": {"name": "trust"}})
    fleet.put_update("press-a", 1)
    with pytest.raises(ConfigurationError, match=r"evaluation/FLEET/data\.npz"):
        fleet.run()
    (tmp_path / "updates").mkdir()
    with pytest.raises(ConfigurationError, match="--evaluation"):
        aggregate_folder(digits.folder, tmp_path / "updates", tmp_path / "out", strategy_named("trust"))


def test_buckets_hold_every_update_once_and_are_dealt_alike_for_one_base(digits: Bundle, values: Floats) -> None:
    rows = Rows(digits, values)
    members = Buckets(2).members(rows)
    assert sorted(int(i) for some in members for i in some) == list(range(N))
    assert [len(some) for some in members] == [2, 2, 2, 2, 1]
    assert [list(some) for some in members] == [list(some) for some in Buckets(2).members(rows)]


def test_buckets_are_refused_where_attackers_could_spoil_half_of_them() -> None:
    with pytest.raises(ConfigurationError, match="buckets"):
        strategy_named("trimmed_mean", mixing="buckets", attackers=0.3)


def test_devices_that_hold_their_updates_back_weigh_no_more_than_others() -> None:
    """4 of 20 with six updates each had 48 % of the weight."""
    weigh = StalenessWeighting(0.5)
    ages = tuple(range(6))
    held = [UpdateMetadata(f"a{i}", 50, {}, age, ages) for i in range(4) for age in ages]
    facts = [*held, *(UpdateMetadata(f"h{i}", 50, {}) for i in range(16))]
    weights = np.array([weigh.weight(one) for one in facts])
    assert weights[: len(held)].sum() / weights.sum() == pytest.approx(0.2)
    assert weights.sum() * weigh.scale(facts) <= 1 + 1e-12

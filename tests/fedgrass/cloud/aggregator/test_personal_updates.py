"""Aggregation of a model of which devices keep parameters for themselves: they are in no update, no norm and no mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle, Parameters
from fedgrass.cloud.aggregator.trusted import trained_difference
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import ConfigurationError
from fedgrass.inference import write_bundle
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.messages import FitTask
from fedgrass.strategies import strategy_named
from fedgrass.update.codecs import Floats
from tests.fedgrass.cloud.aggregator.conftest import header
from tests.fedgrass.cloud.aggregator.updates import Memory, combine, tiny_model, update_of
from tests.fedgrass.edge import digits
from tests.fedgrass.partly_local import partly_local

DEVICES = 7


def model(folder: Path, sizes: tuple[int, ...], local: tuple[str, ...]) -> Bundle:
    """A model whose local parameters are not zero, so that whoever reads past them shows."""
    whole = tiny_model(folder / "whole", *sizes)
    values: Parameters = {
        name: np.full(value.shape, 100.0 + place, np.float32)
        for place, (name, value) in enumerate(whole.parameters().items())
    }
    return partly_local(write_bundle(whole, values, folder / "base", version="1.0.0"), folder / "local", *local)


def shared_update(base: Bundle, thing: str, values: Floats, **changes: Any) -> bytes:
    specs = [(p.name, np.dtype("<f4"), p.shape) for p in base.manifest.shared_parameters]
    return tensors.encode_header(specs, header(base, thing, **changes).to_metadata()) + values.tobytes()


def approximately(norms: dict[str, float]) -> Any:
    return pytest.approx(norms, rel=1e-4)


def drawn(size: int) -> list[Floats]:
    rng = np.random.default_rng(3)
    return [rng.normal(scale=0.01, size=size).astype(np.float32) for _ in range(DEVICES)]


def checked(base: Bundle, found: Parameters, expected: Floats) -> None:
    before = base.parameters()
    assert list(found) == list(before)
    local = {parameter.name for parameter in base.manifest.local_parameters}
    shared = np.concatenate([found[name] - before[name] for name in before if name not in local])
    np.testing.assert_allclose(shared, expected, atol=2e-5)
    assert all(found[name].tobytes() == before[name].tobytes() for name in local)


@pytest.mark.parametrize(
    ("sizes", "local"),
    [
        ((5, 3, 4), ("w1",)),
        ((5, 3, 4), ("w0", "w2")),
        ((70_000, 200_000, 131_072, 7), ("w1", "w3")),  # around the blocks that a base is read in
        ((1_100_000, 3, 131_073), ("w0",)),
        ((1_100_000, 9, 131_073), ("w1",)),
    ],
)
def test_the_mean_is_of_the_shared_and_the_local_stay_the_bases(
    tmp_path: Path, sizes: tuple[int, ...], local: tuple[str, ...]
) -> None:
    base = model(tmp_path, sizes, local)
    deltas = drawn(sum(p.size for p in base.manifest.shared_parameters))
    source = Memory({f"t{i}": shared_update(base, f"t{i}", d, num_examples=1 + i) for i, d in enumerate(deltas)})
    found = combine(base, source)
    assert found.parameters is not None
    checked(base, found.parameters, np.average(np.array(deltas, np.float64), axis=0, weights=np.arange(1, DEVICES + 1)))
    norms = {entry.thing: entry.norm for entry in found.updates}
    assert norms == approximately({f"t{i}": float(np.linalg.norm(d.astype(np.float64))) for i, d in enumerate(deltas)})
    new = write_bundle(base, found.parameters, tmp_path / "new", version="1.1.0")
    assert new.manifest.graph_sha256 == base.manifest.graph_sha256


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("median", lambda d: np.median(d, axis=0)),
        ("trimmed_mean", None),
        ("geometric_median", None),
        ("krum", None),
        ("multi_krum", None),
        ("centered_clipping", None),
        ("fedavgm", lambda d: d.mean(axis=0)),
        ("fedadam", None),
        ("fednova", None),
    ],
)
def test_every_strategy_leaves_the_local_as_they_are(tmp_path: Path, name: str, expected: Any) -> None:
    """Against the same strategy on a model that is nothing but the shared parameters."""
    base, plain = model(tmp_path / "a", (5, 3, 4), ("w1",)), model(tmp_path / "b", (5, 4), ())
    deltas, strategy = drawn(9), strategy_named(name)
    metrics = {"steps": 3.0}
    found = combine(
        base,
        Memory({f"t{i}": shared_update(base, f"t{i}", d, metrics=metrics) for i, d in enumerate(deltas)}),
        strategy=strategy,
    )
    alone = combine(
        plain,
        Memory({f"t{i}": update_of(plain, f"t{i}", d, metrics=metrics) for i, d in enumerate(deltas)}),
        strategy=strategy,
    )
    assert found.parameters is not None
    assert alone.parameters is not None
    apart = np.concatenate([alone.parameters[name] - value for name, value in plain.parameters().items()])
    checked(base, found.parameters, apart)
    if expected is not None:
        checked(base, found.parameters, expected(np.array(deltas, np.float64)))


def test_an_update_that_carries_local_parameters_is_refused_and_moves_nothing(tmp_path: Path) -> None:
    base = model(tmp_path, (5, 3, 4), ("w1",))
    deltas = drawn(9)
    good = {f"t{i}": shared_update(base, f"t{i}", d) for i, d in enumerate(deltas)}
    whole = update_of(base, "all", np.full(12, 1e6, np.float32))
    found = combine(base, Memory({**good, "all": whole}), checks=Checks(clip_norm_over_median=0))
    assert [(entry.thing, entry.reason) for entry in found.quarantined] == [("all", "wrong_parameters")]
    assert "w1" in found.quarantined[0].detail
    assert found.parameters is not None
    checked(base, found.parameters, np.mean(np.array(deltas, np.float64), axis=0))


def test_an_update_of_another_split_into_shared_and_local_is_refused(tmp_path: Path) -> None:
    base, other = model(tmp_path / "a", (5, 3, 4), ("w1",)), model(tmp_path / "b", (5, 3, 4), ("w0",))
    assert base.path(PARAMETERS).read_bytes() == other.path(PARAMETERS).read_bytes()
    content = shared_update(other, "t", np.zeros(7, np.float32))
    found = combine(base, Memory({"t": content}))
    assert [entry.reason for entry in found.quarantined] == ["wrong_parameters"]
    specs = [(p.name, np.dtype("<f4"), p.shape) for p in base.manifest.shared_parameters]
    content = tensors.encode_header(specs, header(other, "t").to_metadata()) + bytes(4 * 9)
    found = combine(base, Memory({"t": content}))
    assert [entry.reason for entry in found.quarantined] == ["wrong_graph"]


def test_the_operators_own_update_is_refused_by_name(tmp_path: Path) -> None:
    bundle = partly_local(Bundle.open(digits.BUNDLE), tmp_path / "head", "head")
    with pytest.raises(ConfigurationError, match="'trust': devices keep parameters of this model for themselves"):
        trained_difference(LiteRTEngine(bundle), bundle, None, FitTask())  # type: ignore[arg-type]

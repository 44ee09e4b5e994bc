"""A batch normalization's statistics are averaged and never stepped; variances never go below zero, whatever the strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, InitialParameters, Manifest, Parameters, TensorDescription
from fedgrass.cloud.aggregator.aggregate import AggregationOptions, aggregate
from fedgrass.cloud.aggregator.privacy import Gaussian
from fedgrass.cloud.aggregator.trusted import with_own_update
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.noise import discrete_gaussian
from fedgrass.statistics import statistics_of
from fedgrass.strategies import STRATEGIES, strategy_named
from fedgrass.strategies.arithmetic.server import Adam, Momentum
from fedgrass.strategies.arithmetic.statistics import Statistics
from fedgrass.update.codecs import Floats
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND
from tests.fedgrass.cloud.aggregator.updates import Memory, flat, update_of

VARIANCE = np.float32(0.01)
SHAPES = {
    "dense/kernel": (4, 5),
    "bn/gamma": (5,),
    "bn/moving_mean": (5,),
    "bn/moving_variance": (5,),
    "out/bias": (3,),
}
DEVICES = 20


def model(folder: Path, parameters: Parameters | None = None) -> Bundle:
    first = parameters or {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    if parameters is None:
        first["bn/moving_variance"] += VARIANCE
    x = TensorDescription(name="x", shape=(4,), dtype="float32")
    y = TensorDescription(name="y", shape=(3,), dtype="float32")
    return new_bundle(
        folder,
        NewModel(
            engine="keras", name="bn", parameters=first, x=x, y=y, output=y, loss="mean_squared_error", batch_size=1
        ),
    )


def updates(base: Bundle, seed: int) -> tuple[dict[str, bytes], Floats]:
    """Updates of devices whose variances fall to almost nothing, as those of quiet sensors do."""
    rng = np.random.default_rng(seed)
    deltas = rng.normal(size=(DEVICES, base.manifest.parameter_count)).astype(np.float32)
    before = base.parameters()["bn/moving_variance"]
    deltas[:, 30:35] = before * rng.uniform(0, 1, (DEVICES, 5)).astype(np.float32) - before
    names = [f"d{i:02d}" for i in range(DEVICES)]
    contents = {
        name: update_of(
            base,
            name,
            delta,
            num_examples=i + 1,
            metrics={"steps": 1.0 + i % 3, "loss": 0.5 + i, "step_length": 0.1},
        )
        for i, (name, delta) in enumerate(zip(names, deltas, strict=True))
    }
    return contents, deltas


def result(base: Bundle, contents: dict[str, bytes], name: str, noise: Gaussian | None = None, **options: Any) -> Any:
    source = Memory(contents)
    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256, FLEET, ROUND)
    operators = np.zeros(base.manifest.parameter_count, np.float32)
    operators[30:35] = -1  # every device's variances fall
    strategy = with_own_update(strategy_named(name, **options), lambda: operators)
    return aggregate(base, source, source.list(), strategy, expected, AggregationOptions(noise=noise))


@pytest.mark.parametrize("name", STRATEGIES.built_in())
def test_variances_stay_above_zero_through_rounds_of_every_strategy(tmp_path: Path, name: str) -> None:
    base = model(tmp_path / "0")
    for number in range(1, 5):
        contents, _ = updates(base, number)
        found = result(base, contents, name)
        variances = found.parameters["bn/moving_variance"]
        assert np.isfinite(flat(found.parameters)).all()
        assert (variances >= 0).all()
        assert (variances <= base.parameters()["bn/moving_variance"]).all(), "every device's fell"
        base = model(tmp_path / str(number), found.parameters)


@pytest.mark.parametrize(
    "name", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fednova", "qfedavg", "fedbuff"]
)
def test_statistics_are_the_weighted_mean_of_the_devices_whatever_the_server_optimizer_does(
    tmp_path: Path, name: str
) -> None:
    base = model(tmp_path)
    contents, deltas = updates(base, 0)
    found = result(base, contents, name)
    weights = [entry.weight for entry in found.updates]
    wanted = flat(base.parameters()) + np.average(deltas.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(flat(found.parameters)[25:35], wanted[25:35], rtol=1e-5, atol=1e-7)


def test_noise_takes_no_variance_below_zero(tmp_path: Path) -> None:
    base = model(tmp_path)
    contents, _ = updates(base, 0)
    found = result(base, contents, "fedavg", Gaussian(clip_norm=1.0, noise_multiplier=50.0, seed=b"x" * 32))
    assert (found.parameters["bn/moving_variance"] >= 0).all()
    assert (found.parameters["bn/moving_mean"] < 0).any(), "a mean may be"


def test_the_manifest_says_which_parameters_are_statistics_and_an_old_one_lets_it_be_inferred(tmp_path: Path) -> None:
    base = model(tmp_path)
    kinds = {"bn/moving_mean": "mean", "bn/moving_variance": "variance"}
    assert base.manifest.statistics == kinds
    old = base.manifest.model_copy(update={"statistics": None})
    assert statistics_of(old) == kinds
    assert statistics_of(base.manifest.model_copy(update={"statistics": {}})) == {}, "the exporter's word counts"


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({"a.running_mean": (3,), "a.running_var": (3,)}, {"a.running_mean", "a.running_var"}),
        ({"running_mean": (3,), "running_var": (3,)}, {"running_mean", "running_var"}),
        ({"a/moving_mean": (3,), "a/moving_variance": (4,)}, set()),
        ({"a/moving_variance": (3,), "b/moving_mean": (3,)}, set()),
        ({"my_moving_mean": (3,), "my_moving_variance": (3,)}, set()),
    ],
)
def test_names_alone_do_not_make_a_statistic(shapes: dict[str, tuple[int, ...]], found: set[str]) -> None:
    described = tuple(TensorDescription(name=name, shape=shape, dtype="float32") for name, shape in shapes.items())
    manifest = Manifest.model_construct(parameters=described, statistics=None)
    assert set(statistics_of(manifest)) == found


def test_an_engines_word_on_its_parameters_goes_into_the_bundle(tmp_path: Path) -> None:
    first = InitialParameters(
        {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, {"out/bias": "mean"}
    )
    assert model(tmp_path, first).manifest.statistics == {"out/bias": "mean"}


@run(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["", "mean", "variance"])), min_size=1, max_size=6),
    tile=st.integers(1, 9),
)
def test_any_division_into_tiles_steps_what_is_trained_and_nothing_else(
    sizes: list[tuple[int, str]], tile: int
) -> None:
    parameters = tuple(TensorDescription(name=f"p{i}", shape=(n,), dtype="float32") for i, (n, _) in enumerate(sizes))
    kinds = {f"p{i}": kind for i, (_, kind) in enumerate(sizes) if kind}
    statistics = Statistics.of(Manifest.model_construct(parameters=parameters, statistics=kinds))
    total = sum(n for n, _ in sizes)
    base = np.linspace(0.1, 1, total, dtype=np.float32)
    delta = np.where(np.arange(total) % 2, -2, 0.25).astype(np.float32)
    for server in (Adam(), Momentum()):
        new, state = delta.copy(), {slot: np.zeros(total, np.float32) for slot in server.slots}
        whole = {slot: np.zeros(total, np.float32) for slot in server.slots}
        stepped = base + server.step(delta, whole)
        for start in range(0, total, tile):
            span = slice(start, min(start + tile, total))
            tiles = {slot: vector[span] for slot, vector in state.items()}
            statistics.step(server, span, base[span], new[span], tiles)
        at = 0
        for n, kind in sizes:
            part, at = slice(at, at + n), at + n
            mean = base[part] + delta[part]
            wanted = {"": stepped[part], "mean": mean, "variance": np.maximum(mean, 0)}[kind]
            np.testing.assert_allclose(new[part], wanted, rtol=1e-6)
            assert not kind or not state["momentum"][part].any()


def test_flowers_server_optimizers_step_no_statistics(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed")
    from flwr.common import ndarrays_to_parameters

    base = model(tmp_path)
    contents, deltas = updates(base, 0)
    initial = ndarrays_to_parameters(list(base.parameters().values()))
    found = result(base, contents, "flwr.server.strategy:FedAdam", initial_parameters=initial)
    wanted = flat(base.parameters()) + np.average(deltas.astype(np.float64), axis=0, weights=np.arange(1, DEVICES + 1))
    np.testing.assert_allclose(flat(found.parameters)[25:35], wanted[25:35], rtol=1e-5, atol=1e-7)
    assert not np.allclose(flat(found.parameters)[:25], wanted[:25]), "what is trained is stepped"


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi"])
def test_under_noise_statistics_are_noised_with_the_rest_never_stepped_and_no_variance_collapses(
    tmp_path: Path, name: str
) -> None:
    base = model(tmp_path)
    contents, deltas = updates(base, 0)
    noise = Gaussian(clip_norm=0.1, noise_multiplier=5.0, seed=b"x" * 32)
    found = result(base, contents, name, noise)
    steps = np.concatenate(list(discrete_gaussian(b"x" * 32, deltas.shape[1], noise.grid.deviation)))
    norms = np.sqrt(np.square(deltas, dtype=np.float64).sum(axis=1))
    clipped = (deltas * np.minimum(1, 0.1 / norms)[:, None]).mean(axis=0)
    expected = (flat(base.parameters()) + clipped + steps * noise.grid.step / DEVICES)[25:35]
    expected[5:] = np.maximum(expected[5:], 0.25 * VARIANCE)
    # Mean and noise, and no learning rate of the server's: so one account holds for all of the model.
    np.testing.assert_allclose(flat(found.parameters)[25:35], expected, rtol=1e-3, atol=1e-6)
    assert (found.parameters["bn/moving_variance"] >= 0.25 * VARIANCE * 0.999).all()
    assert not any(slot[25:35].any() for slot in found.state.values())

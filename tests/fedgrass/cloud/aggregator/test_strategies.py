"""Every strategy against a plain NumPy reference, and against attackers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.cloud.aggregator.server_state import STATE, read_state
from fedgrass.errors import AggregationError, ConfigurationError
from fedgrass.objectives import Optimizer
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.settings import FleetSettings
from fedgrass.strategies import STRATEGIES, RobustRule, Strategy, WeightedMean, strategy_named
from fedgrass.strategies.arithmetic.interfaces import UpdateMatrix
from fedgrass.strategies.base import Method, StrategyOptions
from fedgrass.update.codecs import Floats
from tests.fedgrass.cloud.aggregator.updates import Memory, combine, flat, tiny_model, update_of

Doubles = NDArray[np.float64]
N, SIZE = 11, 40
EXAMPLES = np.arange(1, N + 1)
STEPS = 1 + np.arange(N) % 4
LOSSES = 0.1 + np.arange(N) / 3
LENGTHS = 0.05 * STEPS


@dataclass(frozen=True)
class Cohort:
    base: Bundle
    deltas: Floats
    source: Memory

    def run(self, name: str, checks: Checks | None = None, **options: Any) -> Aggregation:
        return combine(self.base, self.source, checks, strategy_named(name, **options))

    def difference(self, name: str, **options: Any) -> Doubles:
        """What the strategy adds to the base, which is zero."""
        found = self.run(name, **options).parameters
        assert found is not None
        return flat(found).astype(np.float64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    base = tiny_model(tmp_path_factory.mktemp("tiny"), 30, 10)
    deltas = np.random.default_rng(3).normal(size=(N, SIZE)).astype(np.float32)
    deltas[4] *= 30
    contents = {}
    for i, delta in enumerate(deltas):
        metrics = {"steps": float(STEPS[i]), "loss": float(LOSSES[i]), "step_length": float(LENGTHS[i])}
        contents[f"t{i:02d}"] = update_of(base, f"t{i:02d}", delta, num_examples=int(EXAMPLES[i]), metrics=metrics)
    return Cohort(base, deltas, Memory(contents))


def mean(deltas: Any, weights: Any) -> Doubles:
    return np.average(np.asarray(deltas, np.float64), axis=0, weights=weights)


def qfedavg(d: Doubles, q: float, rate: float) -> Doubles:
    slopes = d / rate
    h = q * LOSSES ** (q - 1) * (slopes**2).sum(axis=1) + LOSSES**q / rate
    return np.asarray((LOSSES[:, None] ** q * slopes).sum(axis=0) / h.sum())


def clipped(d: Doubles, bound: float) -> Doubles:
    return np.asarray(d * np.minimum(1, bound / np.linalg.norm(d, axis=1))[:, None])


def krum(d: Doubles, f: int, chosen: int) -> Doubles:
    return np.asarray(d[krum_order(d, f)[:chosen]].mean(axis=0))


def krum_order(d: Doubles, f: int) -> list[int]:
    scores = []
    for i in range(len(d)):
        distances = sorted(float(((d[i] - d[j]) ** 2).sum()) for j in range(len(d)) if j != i)
        scores.append(sum(distances[: max(1, len(d) - f - 2)]))
    return sorted(range(len(d)), key=scores.__getitem__)


def bulyan(d: Doubles, f: int) -> Doubles:
    left = list(range(len(d)))
    chosen: list[int] = []
    while len(chosen) < len(d) - 2 * f:
        chosen.append(left.pop(krum_order(d[left], f)[0]))
    values = d[chosen]
    kept = len(chosen) - 2 * f
    middle = np.median(values, axis=0)
    best = np.empty(SIZE)
    for column in range(SIZE):
        nearest = min(
            combinations(values[:, column], kept), key=lambda some: max(abs(value - middle[column]) for value in some)
        )
        best[column] = np.mean(nearest)
    return best


def centered_clipping(d: Doubles) -> Doubles:
    centre = np.zeros(SIZE)
    for _ in range(5):
        away = d - centre
        distances = np.linalg.norm(away, axis=1)
        centre = centre + (away * np.minimum(1, np.median(distances) / distances)[:, None]).mean(axis=0)
    return centre


def nearest(d: Doubles, f: int) -> Doubles:
    distances = ((d[:, None] - d[None]) ** 2).sum(axis=2)
    return np.array([d[np.argsort(row, kind="stable")[: len(d) - f]].mean(axis=0) for row in distances])


def geometric_median(d: Doubles) -> Doubles:
    point = d.mean(axis=0)
    for _ in range(2000):
        weights = 1 / np.maximum(np.linalg.norm(d - point, axis=1), 1e-9)
        point = (weights[:, None] * d).sum(axis=0) / weights.sum()
    return np.asarray(point)


REFERENCES: list[tuple[str, dict[str, Any], Callable[[Doubles], Doubles]]] = [
    ("fedavg", {}, lambda d: mean(d, EXAMPLES)),
    ("fedavg", {"weighting": "equal"}, lambda d: mean(d, None)),
    ("fedavg", {"clip": {"norm": 2.0}}, lambda d: mean(clipped(d, 2.0), EXAMPLES)),
    (
        "fedavg",
        {"clip": {"over_median": 1.0}},
        lambda d: mean(clipped(d, float(np.median(np.linalg.norm(d, axis=1)))), EXAMPLES),
    ),
    ("fedprox", {}, lambda d: mean(d, EXAMPLES)),
    ("fednova", {}, lambda d: mean(d / STEPS[:, None], EXAMPLES) * np.average(STEPS, weights=EXAMPLES)),
    ("scaffold", {}, lambda d: mean(d / LENGTHS[:, None], EXAMPLES) * np.average(LENGTHS, weights=EXAMPLES)),
    (
        "scaffold",
        {"weighting": "equal", "learning_rate": 0.5},
        lambda d: 0.5 * mean(d / LENGTHS[:, None], None) * LENGTHS.mean(),
    ),
    ("feddyn", {}, lambda d: 2 * mean(d, EXAMPLES)),
    ("qfedavg", {"q": 2.0, "learning_rate": 0.5}, lambda d: qfedavg(d, 2.0, 0.5)),
    ("fedbuff", {}, lambda d: mean(d, EXAMPLES)),
    ("median", {}, lambda d: np.median(d, axis=0)),
    ("trimmed_mean", {"attackers": 0.2}, lambda d: np.sort(d, axis=0)[2:-2].mean(axis=0)),
    ("geometric_median", {"iterations": 2000}, geometric_median),
    ("krum", {"attackers": 0.2}, lambda d: krum(d, 2, 1)),
    ("multi_krum", {"attackers": 0.2}, lambda d: krum(d, 2, 9)),
    ("bulyan", {"attackers": 0.1}, lambda d: bulyan(d, 1)),
    ("centered_clipping", {}, centered_clipping),
    ("trimmed_mean", {"mixing": "nearest"}, lambda d: np.sort(nearest(d, 2), axis=0)[2:-2].mean(axis=0)),
    ("median", {"mixing": "nearest"}, lambda d: np.median(nearest(d, 2), axis=0)),
    ("multi_krum", {"mixing": "nearest"}, lambda d: krum(nearest(d, 2), 2, 9)),
    ("centered_clipping", {"mixing": "nearest"}, lambda d: centered_clipping(nearest(d, 2))),
    ("median", {"clip": {"norm": 2.0}}, lambda d: np.median(clipped(d, 2.0), axis=0)),
]


@pytest.mark.parametrize(("name", "options", "reference"), REFERENCES, ids=[f"{n}{o or ''}" for n, o, _ in REFERENCES])
def test_a_strategy_equals_its_plain_numpy_reference(
    cohort: Cohort, name: str, options: dict[str, Any], reference: Callable[[Doubles], Doubles]
) -> None:
    wanted = reference(cohort.deltas.astype(np.float64))
    np.testing.assert_allclose(cohort.difference(name, **options), wanted, rtol=2e-5, atol=2e-6)


PLANNED = np.where(np.arange(N) % 3 == 0, STEPS, 4)
"""Steps of each device's whole training; what is as many as it did, it does not tell."""
SHARES = STEPS / PLANNED


def parts(cohort: Cohort, **changed: tuple[float, float]) -> Memory:
    """The cohort's updates with how much of a training each is; of some otherwise: steps and planned steps."""
    contents = {}
    for i, delta in enumerate(cohort.deltas):
        name = f"t{i:02d}"
        steps, planned = changed.get(name, (float(STEPS[i]), float(PLANNED[i])))
        metrics = {"steps": steps, "step_length": 0.05 * steps}
        if planned != steps:
            metrics["planned_steps"] = planned
        contents[name] = update_of(cohort.base, name, delta, num_examples=int(EXAMPLES[i]), metrics=metrics)
    return Memory(contents)


PARTIAL: list[tuple[str, dict[str, Any], Callable[[Doubles], Doubles]]] = [
    ("fedavg", {}, lambda d: mean(d, EXAMPLES * SHARES)),
    ("fedavg", {"weighting": "equal"}, lambda d: mean(d, SHARES)),
    ("fedbuff", {}, lambda d: mean(d, EXAMPLES * SHARES)),
    ("fednova", {}, lambda d: mean(d / STEPS[:, None], EXAMPLES) * np.average(STEPS, weights=EXAMPLES)),
    ("scaffold", {}, lambda d: mean(d / LENGTHS[:, None], EXAMPLES) * np.average(LENGTHS, weights=EXAMPLES)),
]


@pytest.mark.parametrize(("name", "options", "reference"), PARTIAL)
def test_parts_of_trainings_count_as_in_the_plain_numpy_reference(
    cohort: Cohort, name: str, options: dict[str, Any], reference: Callable[[Doubles], Doubles]
) -> None:
    strategy = strategy_named(name, **options).with_partial_work()
    found = combine(cohort.base, parts(cohort), None, strategy).parameters
    assert found is not None
    np.testing.assert_allclose(flat(found), reference(cohort.deltas.astype(np.float64)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["fedavg", "fednova"])
@pytest.mark.parametrize("claim", [(1.0, 4e15), (1.0, 1.0), (1e15, 1e15)], ids=str)
def test_whatever_a_liar_claims_of_its_steps_it_moves_the_rest_by_its_bounded_part(
    cohort: Cohort, name: str, claim: tuple[float, float]
) -> None:
    bounds = Checks(max_examples_over_median=3.0, clip_norm_over_median=2.0)
    strategy = strategy_named(name).with_partial_work()
    found = combine(cohort.base, parts(cohort, t05=claim), bounds, strategy)
    [liar] = [one.weight for one in found.updates if one.thing == "t05"]
    honest = [one.weight for one in found.updates if one.thing != "t05"]
    # Its examples are 6 of 66, and FedNova's steps are within a third and three times the median's.
    assert liar <= 0.1 * sum(honest) * (9 if name == "fednova" else 2)


def test_a_strategy_in_which_parts_would_be_wrong_takes_none() -> None:
    with pytest.raises(ConfigurationError, match="fit\\.partial_margin_seconds"):
        strategy_named("median").with_partial_work()


def _momentum(d: Doubles, state: dict[str, Doubles]) -> Doubles:
    state["m"] = 0.9 * state["m"] + d
    return 0.5 * state["m"]


def _adaptive(beta_1: float, second: Callable[[Doubles, Doubles], Doubles]) -> Any:
    def step(d: Doubles, state: dict[str, Doubles]) -> Doubles:
        state["m"] = beta_1 * state["m"] + (1 - beta_1) * d
        state["v"] = second(state["v"], d**2)
        return np.asarray(0.1 * state["m"] / (np.sqrt(state["v"]) + 1e-3))

    return step


def _scaffold(d: Doubles, state: dict[str, Doubles]) -> Doubles:
    return d  # what it keeps changes nothing on the server


def _feddyn(d: Doubles, state: dict[str, Doubles]) -> Doubles:
    state["m"] = state["m"] + d
    return d + state["m"]


OPTIMIZERS: list[tuple[str, dict[str, Any], Any]] = [
    ("fedavgm", {"learning_rate": 0.5, "momentum": 0.9}, _momentum),
    (
        "dp_ftrl",
        {"learning_rate": 0.5, "momentum": 0.9},
        _momentum,
    ),  # without noise, of which test_privacy has the rest
    ("fedadagrad", {}, _adaptive(0.0, lambda v, s: v + s)),
    ("fedadam", {}, _adaptive(0.9, lambda v, s: 0.99 * v + 0.01 * s)),
    ("fedyogi", {}, _adaptive(0.9, lambda v, s: v - 0.01 * s * np.sign(v - s))),
    ("scaffold", {}, _scaffold),
    ("feddyn", {}, _feddyn),
]


@pytest.mark.parametrize(("name", "options", "step"), OPTIMIZERS, ids=[name for name, _, _ in OPTIMIZERS])
def test_a_server_optimizer_goes_on_from_the_state_that_lies_beside_the_model(
    digits: Bundle, tmp_path: Path, name: str, options: dict[str, Any], step: Any
) -> None:
    size = digits.manifest.parameter_count
    state = {"m": np.zeros(size), "v": np.zeros(size)}
    wanted = flat(digits.parameters()).astype(np.float64)
    base = digits
    for number in (1, 2, 3):
        delta = np.random.default_rng(number).normal(size=size).astype(np.float32)
        folder = tmp_path / f"updates{number}"
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(update_of(base, "a", delta, metrics={"step_length": 0.3}))
        found = aggregate_folder(base.folder, folder, tmp_path / str(number), strategy_named(name, **options))
        wanted += step(delta.astype(np.float64), state)
        assert found.parameters is not None
        np.testing.assert_allclose(flat(found.parameters), wanted, rtol=1e-4, atol=1e-5)
        base = Bundle.open(tmp_path / str(number))
    left = tmp_path / "3" / STATE
    assert set(read_state(left, base.manifest.parameters_sha256, strategy_named(name))) == set(found.state) != set()
    assert read_state(left, "0" * 64, strategy_named(name)) == {}, "another model's"
    assert read_state(left, base.manifest.parameters_sha256, strategy_named("fedavg")) == {}, "another strategy's"


def test_the_fleets_control_variate_is_the_mean_of_the_devices_gradients_by_how_many_took_part(cohort: Cohort) -> None:
    before = np.linspace(-1, 1, SIZE, dtype=np.float32)
    for devices, share in ((N, 1.0), (4 * N, 0.25), (0, 1.0), (N - 1, 1.0)):
        found = combine(
            cohort.base,
            cohort.source,
            strategy=strategy_named("scaffold", weighting="equal"),
            devices=devices,
            state={"control": before},
        )
        gradients = -cohort.deltas.astype(np.float64) / LENGTHS[:, None]
        wanted = (1 - share) * before + share * gradients.mean(axis=0)
        np.testing.assert_allclose(found.state["control"], wanted, rtol=1e-4, atol=1e-4)


def test_every_strategy_that_can_be_named_is_tried_here() -> None:
    assert {name for name, _, _ in REFERENCES} | {name for name, _, _ in OPTIMIZERS} | {"trust"} == {
        *STRATEGIES.built_in()
    }
    for name in STRATEGIES.built_in():
        # DP-FTRL is refused without the noise that it is about.
        privacy = {"mode": "central"} if name == "dp_ftrl" else {}
        settings = FleetSettings.model_validate({"strategy": {"name": name}, "privacy": privacy})
        assert settings.strategy.name == name
        assert settings.strategy.uses_one_instance == isinstance(strategy_named(name).method, RobustRule)


def test_norms_far_above_the_cohorts_median_are_refused(cohort: Cohort) -> None:
    found = cohort.run("fedavg", Checks(max_norm_over_median=5.0))
    assert [(q.thing, q.reason) for q in found.quarantined] == [("t04", "norm_exceeded")]
    assert found.parameters is not None
    others = np.arange(N) != 4
    wanted = mean(cohort.deltas[others], EXAMPLES[others])
    np.testing.assert_allclose(flat(found.parameters), wanted, rtol=1e-5, atol=1e-6)


def test_an_update_without_the_metric_that_it_is_weighed_by_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, SIZE)
    ones = np.ones(SIZE, np.float32)
    source = Memory({"a": update_of(base, "a", ones), "b": update_of(base, "b", ones, metrics={"steps": 3.0})})
    found = combine(base, source, strategy=strategy_named("fednova"))
    assert [(q.thing, q.reason) for q in found.quarantined] == [("a", "missing_metric")]
    assert [u.thing for u in found.updates] == ["b"]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_with_momentum_fednova_steps_along_the_mean_gradient_however_many_steps_each_device_did(
    tmp_path: Path, momentum: float, nesterov: bool
) -> None:
    base = tiny_model(tmp_path, SIZE)
    optimizer = Optimizer(name="momentum", momentum=momentum, nesterov=nesterov)
    base = Bundle(base.folder, base.manifest.model_copy(update={"optimizer": optimizer}))
    rng, rate, steps = np.random.default_rng(1), 0.01, [1, 2, 5, 40, 400]
    examples, gradients = np.arange(1, 6), rng.normal(size=(5, SIZE))
    contents, lengths = {}, []
    for device, (gradient, count) in enumerate(zip(gradients, steps, strict=True)):
        # As Keras steps, along a gradient that stays the same.
        moved, velocity = np.zeros(SIZE), np.zeros(SIZE)
        for _ in range(count):
            velocity = momentum * velocity - rate * gradient
            moved += momentum * velocity - rate * gradient if nesterov else velocity
        lengths.append(float(-moved[0] / gradient[0]))
        content = update_of(
            base, f"t{device}", moved.astype(np.float32), num_examples=device + 1, metrics={"steps": float(count)}
        )
        contents[f"t{device}"] = content
    found = combine(base, Memory(contents), strategy=strategy_named("fednova")).parameters
    assert found is not None
    wanted = -np.average(lengths, weights=examples) * mean(gradients, examples)
    np.testing.assert_allclose(flat(found), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("claimed", [0.0, -1.0, 0.5, 1e300])
def test_a_number_of_steps_that_no_device_did_takes_no_time_and_spoils_nothing(tmp_path: Path, claimed: float) -> None:
    base = tiny_model(tmp_path, SIZE)
    base = Bundle(base.folder, base.manifest.model_copy(update={"optimizer": Optimizer(name="momentum", momentum=0.9)}))
    ones = np.ones(SIZE, np.float32)
    contents = {
        thing: update_of(base, thing, ones, metrics={"steps": count})
        for thing, count in {"a": 10.0, "b": 10.0, "liar": claimed}.items()
    }
    found = combine(base, Memory(contents), Checks(), strategy_named("fednova")).parameters
    assert found is not None
    assert 0 < flat(found)[0] < 5


def test_too_few_updates_for_the_attackers_are_an_error_that_says_how_many_are_needed(cohort: Cohort) -> None:
    with pytest.raises(AggregationError, match="at least 15"):
        cohort.run("bulyan", attackers=0.3)


class Doubling:
    """Twice the mean of the parameters it is given; made a Flower strategy below."""

    def __init__(self, times: float = 2.0) -> None:
        self.times = times

    def aggregate_fit(self, server_round: int, results: list[Any], failures: list[Any]) -> Any:
        assert not failures
        assert all(fit.num_examples > 0 and client.cid for client, fit in results)
        layers = zip(*(fit.parameters for _, fit in results), strict=True)
        return [self.times * np.mean(layer, axis=0) for layer in layers], {}


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own types as far as strategies are fed with them, and a module of the user's with a strategy."""
    types: Any = ModuleType("flwr.common")
    types.Code = type("Code", (), {"OK": 0})
    types.Status = types.FitRes = lambda **fields: type("Message", (), fields)
    types.ndarrays_to_parameters = types.parameters_to_ndarrays = list
    strategy: Any = ModuleType("flwr.server.strategy")
    strategy.Strategy = type("Strategy", (), {})
    mine: Any = ModuleType("my_strategies")
    mine.Doubling = type("Doubling", (Doubling, strategy.Strategy), {})
    mine.Careless = Doubling
    for module in (ModuleType("flwr"), ModuleType("flwr.server"), types, strategy, mine):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("flower")
def test_a_flower_strategy_is_fed_what_flower_feeds_it(cohort: Cohort) -> None:
    found = cohort.difference("my_strategies:Doubling", times=3.0)
    np.testing.assert_allclose(found, 3 * mean(cohort.deltas, None), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("flower")
def test_a_class_that_is_no_strategy_is_not_made() -> None:
    with pytest.raises(ConfigurationError, match="not a subclass"):
        strategy_named("my_strategies:Careless")


def test_flowers_own_strategies_run(cohort: Cohort) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed")
    found = cohort.difference("flwr.server.strategy:FedAvg")
    np.testing.assert_allclose(found, mean(cohort.deltas, EXAMPLES), rtol=1e-5, atol=1e-5)
    found = cohort.difference("flwr.server.strategy:FedMedian")
    np.testing.assert_allclose(found, np.median(cohort.deltas, axis=0), rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Halving(Strategy):
    """A strategy of the user's own: half of the mean, of all updates at once."""

    class Options(StrategyOptions):
        share: float = 0.5

    needs_all = True

    def build(self) -> Method:
        return RobustRule(Half(self.options.share))


@dataclass(frozen=True)
class Half:
    share: float

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        for columns in rows.tiles():
            out[columns] = self.share * rows.read(columns).mean(axis=0)
        return [1 / len(rows.facts)] * len(rows.facts)


def test_a_combination_of_ones_own_is_named_by_its_class(cohort: Cohort) -> None:
    found = cohort.difference(f"{__name__}:Halving", share=0.25)
    np.testing.assert_allclose(found, mean(cohort.deltas, None) / 4, rtol=1e-5, atol=1e-5)


def test_a_flower_strategy_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        strategy_named("nowhere:Strategy")


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "os:system", "builtins:eval", "a:b:c", "my mod:C", ":C", "m:", "..m:C"]
)
def test_settings_that_name_what_can_be_no_strategy_are_refused_when_they_are_made(name: str) -> None:
    with pytest.raises(ValueError, match="strategy"):
        FleetSettings.model_validate({"strategy": {"name": name, "options": {"args": ["true"]}}})
    with pytest.raises(ConfigurationError):
        strategy_named(name)


def test_every_strategy_that_settings_take_is_made_and_none_in_the_name_of_another() -> None:
    made = {name: strategy_named(name) for name in STRATEGIES.built_in()}
    assert len({type(one) for one in made.values()}) == len(made)
    for name, one in made.items():
        assert one.name == name
        assert type(one).__module__ == f"fedgrass.strategies.{name}"
        assert isinstance(one.method, RobustRule if one.needs_all else WeightedMean)


def test_an_unknown_name_is_an_error_with_the_names_there_are_and_not_the_mean() -> None:
    for unknown in ("fedmagic", "base", "arithmetic", "FedAvg", "fedavg.py", "../fedavg", "_", "", "fed avg"):
        with pytest.raises(ConfigurationError, match=r"expected one of bulyan, .*fedavg, .*, or module:Class"):
            strategy_named(unknown)
        with pytest.raises(ValueError, match="expected one of bulyan"):
            FleetSettings.model_validate({"strategy": {"name": unknown}})


class Liar(Halving):
    """Says that it streams, and does not."""

    needs_all = False


def test_a_strategy_that_is_not_what_it_says_is_not_used(cohort: Cohort) -> None:
    with pytest.raises(ConfigurationError, match="build"):
        cohort.difference(f"{__name__}:Liar")


@pytest.mark.usefixtures("flower")
def test_flowers_strategies_have_a_spelling_of_their_own(cohort: Cohort) -> None:
    found = cohort.difference("flower:my_strategies:Doubling", times=3.0)
    np.testing.assert_allclose(found, 3 * mean(cohort.deltas, None), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigurationError, match="not a subclass"):
        strategy_named(f"flower:{__name__}:Halving")
    settings = FleetSettings.model_validate({"strategy": {"name": "flower:my_strategies:Doubling"}})
    assert settings.strategy.uses_one_instance

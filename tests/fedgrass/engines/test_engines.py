"""What every engine promises, tried on each that is installed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import ARCHITECTURE, Bundle, Parameters, TensorDescription
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import Engine, FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.registry import open_engine
from fedgrass.errors import BundleError, DataError, DivergedError, EngineError
from fedgrass.inference import write_bundle
from tests.fedgrass.engines.models import NumPyLogistic, digits_bundle

LITERT = Path(__file__).parents[3] / "examples" / "digits" / "bundle"
MODELS = "tests.fedgrass.engines.models"
BUILT = {
    "keras": ("tensorflow", "keras_model", {}),
    "torch": ("torch", "torch_module", {}),
    "sklearn": ("sklearn", "perceptron", {"features": 64, "classes": 10}),
    "sklearn logistic": ("sklearn", "logistic", {"features": 64, "classes": 10}),
}
SETTINGS = FitSettings(epochs=2, learning_rate=0.1, seed=7)

Maker = Callable[..., Engine]


@pytest.fixture(scope="module")
def digits() -> ArrayDataset:
    loaded = load_digits()
    return ArrayDataset((loaded.images[..., None] / 16).astype(np.float32), loaded.target.astype(np.int32))


@pytest.fixture(params=BUILT)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    """Opens engines of one kind, all with the same parameters."""
    package, function, options = BUILT[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'fedgrass[{request.param}]'")
    name, builder = request.param.split()[0], f"{MODELS}:{function}"
    module: Any = importlib.import_module(f"fedgrass.engines.{name}")
    parameters = module.initial_parameters(builder, **options)

    def open_it(optimizer: str = "sgd") -> Engine:
        folder = tmp_path / optimizer
        bundle = Bundle.open(folder) if folder.exists() else digits_bundle(folder, name, parameters, optimizer)
        return open_engine(name, bundle, builder=builder)

    return open_it


@pytest.mark.parametrize(
    ("engine", "function", "mean", "variance"),
    [
        ("keras", "keras_model", "batch_normalization/moving_mean", "batch_normalization/moving_variance"),
        ("torch", "torch_module", "2.running_mean", "2.running_var"),
    ],
)
def test_an_engine_tells_the_bundle_which_parameters_are_statistics(
    engine: str, function: str, mean: str, variance: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow" if engine == "keras" else engine)
    module: Any = importlib.import_module(f"fedgrass.engines.{engine}")
    bundle = digits_bundle(tmp_path, engine, module.initial_parameters(f"{MODELS}:{function}"))
    assert bundle.manifest.statistics == {mean: "mean", variance: "variance"}


def same(left: Parameters, right: Parameters) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[key], right[key]) for key in left)


def distance(left: Parameters, right: Parameters) -> float:
    return float(np.sqrt(sum(np.sum((left[key] - right[key]) ** 2) for key in left)))


def test_it_learns_the_digits_and_the_same_seed_gives_the_same_parameters(make: Maker, digits: ArrayDataset) -> None:
    train, kept = digits.take(1400), ArrayDataset(digits.x[1400:], digits.y[1400:])
    engine = make()
    before = engine.evaluate(kept)
    result = engine.fit(train, SETTINGS)
    after = engine.evaluate(kept)
    assert before["accuracy"] < 0.3
    assert after["accuracy"] > 0.82
    assert after["loss"] < before["loss"]
    assert (result.num_examples, result.steps, after["examples"]) == (1400, 176, 397)
    assert same(result.parameters, engine.get_parameters())
    assert all(value.dtype == np.float32 for value in result.parameters.values())
    few = [make().fit(digits.take(100), SETTINGS).parameters for _ in range(2)]
    assert same(*few)


def test_a_correction_is_added_to_the_gradient_or_the_engine_says_that_it_cannot(
    make: Maker, digits: ArrayDataset
) -> None:
    engine, one = make(), digits.take(16)
    if not getattr(engine, "takes_correction", False):
        assert type(engine).__name__ == "SklearnEngine"
        return
    base = engine.get_parameters()
    rng = np.random.default_rng(0)
    correction = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in base.items()}
    plain = engine.fit(one, FitSettings(seed=3)).parameters
    engine.set_parameters(base)
    added = engine.fit(one, FitSettings(seed=3, correction=correction)).parameters
    statistics = ("moving_mean", "moving_variance", "running_mean", "running_var")
    for name, value in plain.items():
        wanted = value if name.endswith(statistics) else value - np.float32(0.1) * correction[name]
        np.testing.assert_allclose(added[name], wanted, atol=2e-6)


def test_a_training_may_begin_elsewhere_than_where_the_proximal_term_holds_it(
    make: Maker, digits: ArrayDataset
) -> None:
    engine, rate, mu = make(), 0.1, 0.5
    # One step: scikit-learn takes one for each example, and PyTorch's batch normalization refuses a batch of one.
    one = digits.take(1 if type(engine).__name__ == "SklearnEngine" else 16)
    base = engine.get_parameters()
    rng = np.random.default_rng(0)
    start = {name: np.asarray(value + rng.normal(size=value.shape) / 10, np.float32) for name, value in base.items()}
    start |= {name: base[name] for name in base if name.endswith(("mean", "variance", "var"))}
    engine.set_parameters(start)
    free = engine.fit(one, FitSettings(seed=3)).parameters
    engine.set_parameters(base)
    held = engine.fit(one, FitSettings(seed=3, proximal_mu=mu, start=start)).parameters
    for name, value in free.items():
        wanted = value - rate * mu * (start[name] - base[name])
        if type(engine).__name__ == "SklearnEngine":  # has no gradients: the proximal operator, in closed form
            wanted = (value + rate * mu * base[name]) / (1 + rate * mu)
        np.testing.assert_allclose(held[name], wanted, atol=3e-6)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_resumed_training_equals_an_unbroken_one(make: Maker, digits: ArrayDataset, optimizer: str) -> None:
    states: list[FitState] = []
    settings = FitSettings(epochs=2, learning_rate=0.01, proximal_mu=0.5, seed=3)
    unbroken = make(optimizer).fit(digits.take(90), settings, hooks=Hooks(after_epoch=states.append))
    resumed = make(optimizer).fit(digits.take(90), settings, resume=states[0])
    for key, value in unbroken.parameters.items():
        np.testing.assert_allclose(resumed.parameters[key], value, atol=1e-6)
    assert resumed.metrics["loss"] == pytest.approx(unbroken.metrics["loss"], rel=1e-5)
    assert resumed.steps == unbroken.steps == 12


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_training_stopped_between_batches_equals_an_unbroken_one(
    make: Maker, digits: ArrayDataset, optimizer: str
) -> None:
    settings = FitSettings(epochs=2, learning_rate=0.01, proximal_mu=0.5, clip_norm=5, seed=3)
    unbroken = make(optimizer).fit(digits.take(40), settings)
    state: FitState | None = None
    stopped: list[FitState] = []
    for batch in (1, 3, 5):  # 3 ends an epoch

        def stop(epoch: int, step: int, *, at: int = batch) -> None:
            if epoch * 3 + step == at:
                raise StopTraining

        with pytest.raises(StopTraining):
            make(optimizer).fit(digits.take(40), settings, hooks=Hooks(stop, stopped=stopped.append), resume=state)
        state = stopped[-1]
        assert (state.epoch * 3 + state.step, state.steps) == (batch, batch)
    resumed = make(optimizer).fit(digits.take(40), settings, resume=state)
    for key, value in unbroken.parameters.items():
        np.testing.assert_allclose(resumed.parameters[key], value, atol=1e-6)
    assert resumed.metrics["loss"] == pytest.approx(unbroken.metrics["loss"], rel=1e-5)
    assert resumed.steps == unbroken.steps == 6


def test_the_proximal_term_and_clipping_hold_the_parameters_near_the_base(make: Maker, digits: ArrayDataset) -> None:
    moved = []
    for mu, clip in [(0.0, 0.0), (1.0, 0.0), (0.0, 1e-3)]:
        engine = make()
        base = engine.get_parameters()
        found = engine.fit(digits.take(64), FitSettings(proximal_mu=mu, clip_norm=clip)).parameters
        # A normalization's statistics follow the data, not the gradient.
        moved.append(distance(*({k: v for k, v in p.items() if "ing_" not in k} for p in (base, found))))
    assert moved[0] > moved[1]
    assert moved[2] <= 4 * 16 * 0.1 * 1e-3 * 1.01


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverging_or_stopped_training_keeps_the_base(make: Maker, digits: ArrayDataset) -> None:
    engine = make()
    base = engine.get_parameters()
    poisoned = ArrayDataset(digits.x[:200] * np.float32(1e30), digits.y[:200])
    with pytest.raises(DivergedError, match="learning_rate"):
        engine.fit(poisoned, FitSettings(epochs=30, learning_rate=1e20))
    assert same(engine.get_parameters(), base)

    def stop(epoch: int, step: int) -> None:
        raise StopTraining

    with pytest.raises(StopTraining):
        engine.fit(digits.take(100), SETTINGS, hooks=Hooks(after_batch=stop))
    assert same(engine.get_parameters(), base)


def test_what_does_not_fit_is_refused_before_training(make: Maker, digits: ArrayDataset) -> None:
    engine = make()
    base = engine.get_parameters()
    hooks = Hooks(after_batch=lambda epoch, step: pytest.fail("training started"))
    few = digits.take(20)
    for data, message in [
        (digits.take(0), "no examples"),
        (ArrayDataset(few.x[..., 0], few.y), "shape"),
        (ArrayDataset(few.x.astype(np.uint8), few.y), "dtype uint8"),
        (ArrayDataset(few.x, few.y + 5), "label 1[0-4] is out of range"),
        (ArrayDataset(np.full_like(few.x, np.nan), few.y), "not finite"),
    ]:
        with pytest.raises(DataError, match=message):
            engine.fit(data, SETTINGS, hooks=hooks)
        with pytest.raises(DataError, match=message):
            engine.evaluate(data)
    with pytest.raises(BundleError, match="differ"):
        engine.set_parameters({"other": np.zeros(3, np.float32)})
    with pytest.raises((EngineError, BundleError)):
        engine.fit(few, SETTINGS, resume=FitState(1, base, [np.zeros(3, np.float32)]))
    assert same(engine.get_parameters(), base)


def test_a_bundle_that_was_altered_is_refused(make: Maker, tmp_path: Path) -> None:
    make()
    file = tmp_path / "sgd" / ARCHITECTURE
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BundleError, match="digest"):
        make()


@pytest.mark.parametrize(
    ("builder", "loss", "initial"),
    [
        ("sklearn.linear_model:SGDRegressor", "mean_squared_error", {"outputs": 1}),
        ("sklearn.linear_model:SGDRegressor", "huber", {"outputs": 1}),
        ("sklearn.neural_network:MLPRegressor", "mean_squared_error", {"outputs": 1}),
        (f"{MODELS}:logistic", "binary_crossentropy", {"classes": 2}),
        (f"{MODELS}:perceptron", "binary_crossentropy", {"classes": 2}),
    ],
)
def test_scikit_learn_predicts_values_and_tells_two_classes_apart(
    tmp_path: Path, builder: str, loss: Any, initial: dict[str, Any]
) -> None:
    from fedgrass.engines.sklearn import initial_parameters

    x = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    target = x @ np.array([[1.0], [-2.0], [0.5]], np.float32)
    y = (target > 0).astype(np.float32) if "binary" in loss else target
    single = TensorDescription(name="y", shape=(1,), dtype="float32")
    bundle = new_bundle(
        tmp_path,
        NewModel(
            engine="sklearn",
            name="line",
            parameters=initial_parameters(builder, features=3, **initial),
            x=TensorDescription(name="x", shape=(3,), dtype="float32"),
            y=single,
            output=single,
            loss=loss,
            batch_size=16,
        ),
    )
    engine = open_engine("sklearn", bundle, builder=builder)
    before = engine.evaluate(ArrayDataset(x[500:], y[500:]))
    engine.fit(ArrayDataset(x[:500], y[:500]), FitSettings(epochs=8, learning_rate=0.05))
    after = engine.evaluate(ArrayDataset(x[500:], y[500:]))
    assert after["loss"] < 0.4 * before["loss"]
    assert after.get("accuracy", 1.0) > 0.9


def test_keras_and_litert_devices_train_one_model_alike(digits: ArrayDataset) -> None:
    pytest.importorskip("tensorflow")
    bundle, settings = (
        Bundle.open(LITERT),
        FitSettings(epochs=1, learning_rate=0.1, proximal_mu=0.1, clip_norm=2, seed=5),
    )
    keras = open_engine("keras", bundle, builder="examples.digits.model:build_model")
    litert = open_engine("litert", bundle)
    left, right = (engine.fit(digits.take(200), settings) for engine in (keras, litert))
    for key, value in left.parameters.items():
        np.testing.assert_allclose(value, right.parameters[key], atol=2e-5)
    kept = ArrayDataset(digits.x[200:500], digits.y[200:500])
    np.testing.assert_allclose(keras._outputs(kept.x), litert.infer(kept.x), atol=1e-3)  # type: ignore[attr-defined]
    figures = keras.evaluate(kept), litert.evaluate(kept)
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-3)
    # Whose first two classes are level to the third digit, either may call one or the other.
    first, second = np.sort(litert.infer(kept.x))[:, :-3:-1].T  # type: ignore[attr-defined]
    level = int((first - second < 1e-3).sum())
    assert abs(figures[0]["accuracy"] - figures[1]["accuracy"]) * len(kept) <= level + 0.5


def flower_bundle(folder: Path) -> Bundle:
    from fedgrass.engines.flower import initial_parameters

    return digits_bundle(folder, "flower", initial_parameters(NumPyLogistic(ArrayDataset(np.zeros(0), np.zeros(0)))))


def test_a_flower_client_is_trained_with_the_rounds_settings(tmp_path: Path, digits: ArrayDataset) -> None:
    bundle = flower_bundle(tmp_path)
    engine = open_engine("flower", bundle, builder=f"{MODELS}:NumPyLogistic")
    kept = ArrayDataset(digits.x[1400:], digits.y[1400:])
    states: list[FitState] = []
    result = engine.fit(
        digits.take(1400), FitSettings(epochs=3, learning_rate=0.5), hooks=Hooks(after_epoch=states.append)
    )
    assert engine.evaluate(kept)["accuracy"] > 0.85
    assert (result.num_examples, result.steps) == (1400, 3 * 88)
    assert set(result.metrics) == {"loss"}  # its text stays at home
    assert same(result.parameters, engine.get_parameters())
    again = open_engine("flower", bundle, builder=f"{MODELS}:NumPyLogistic")
    resumed = again.fit(digits, FitSettings(epochs=3), resume=states[-1])
    assert same(resumed.parameters, result.parameters)
    assert resumed.steps == result.steps
    with pytest.raises(DivergedError), np.errstate(all="ignore"):
        again.fit(ArrayDataset(digits.x * np.float32(1e30), digits.y), FitSettings(learning_rate=1e30))
    assert same(again.get_parameters(), result.parameters)


def test_a_real_flower_client_with_its_own_data_is_taken_as_it_is(tmp_path: Path, digits: ArrayDataset) -> None:
    flwr = pytest.importorskip("flwr.client", reason="flwr is not installed: pip install 'fedgrass[flower]'")
    client = type("Client", (NumPyLogistic, flwr.NumPyClient), {})(digits.take(100))
    from fedgrass.engines.flower import FlowerEngine

    assert FlowerEngine(flower_bundle(tmp_path), builder=client).fit(digits, FitSettings()).num_examples == 100


@pytest.mark.parametrize(
    ("name", "builder", "message"),
    [
        ("sklearn", "", "'builder' is not set"),
        ("sklearn", "no.such:thing", "cannot be imported"),
        ("sklearn", f"{MODELS}:X", "is not a function"),
        ("sklearn", "sklearn.svm:SVC", "gave SVC; expected SGDClassifier"),
        ("sklearn", "sklearn.linear_model:SGDClassifier", "loss='log_loss'"),
        ("sklearn", "sklearn.linear_model:SGDRegressor", "cannot train sparse_categorical_crossentropy"),
        ("flower", "builtins:bool", "gave bool without fit"),
        ("litert", "", "has no LiteRT graph"),
        ("jax", "", "expected one of flower, keras, litert, sklearn, torch"),
        ("json:nothing", "", "cannot be imported"),
    ],
)
def test_an_engine_that_cannot_be_made_says_why(
    tmp_path: Path, digits: ArrayDataset, name: str, builder: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(name, flower_bundle(tmp_path), builder=builder).fit(digits.take(20), SETTINGS)


@pytest.mark.parametrize(("name", "package"), [("keras", "tensorflow"), ("torch", "torch"), ("sklearn", "sklearn")])
def test_a_missing_package_is_named_with_the_extra_to_install(name: str, package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; import fedgrass.engines.{name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'fedgrass[{name}]'" in run.stderr


def test_a_new_version_of_a_bundle_without_a_graph_keeps_its_architecture(tmp_path: Path) -> None:
    base = flower_bundle(tmp_path / "base")
    parameters = {name: value + 1 for name, value in base.parameters().items()}
    written = write_bundle(base, parameters, tmp_path / "new", version="1.3.0")
    written.verify()
    assert set(written.manifest.files) == {ARCHITECTURE, "parameters.safetensors"}
    assert written.manifest.graph_sha256 == base.manifest.graph_sha256
    assert same(written.parameters(), parameters)

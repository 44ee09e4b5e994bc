"""The LiteRT engine on the committed digits bundle: no TensorFlow here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from platform import machine

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from fedgrass.bundle import GRAPH, Bundle, Parameters
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import Batch, FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import BundleError, DataError, DivergedError, EngineError
from fedgrass.tensors import Array

BUNDLE = Path(__file__).parents[3] / "examples" / "digits" / "bundle"
SETTINGS = FitSettings(epochs=3, learning_rate=0.2, seed=7)


@pytest.fixture
def engine() -> LiteRTEngine:
    return LiteRTEngine(Bundle.open(BUNDLE))


@pytest.fixture(scope="module")
def digits() -> ArrayDataset:
    loaded = load_digits()
    return ArrayDataset((loaded.images[..., None] / 16).astype(np.float32), loaded.target.astype(np.int32))


def same(left: Parameters, right: Parameters) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[key], right[key]) for key in left)


def test_it_starts_with_the_bundles_parameters(engine: LiteRTEngine) -> None:
    assert same(engine.get_parameters(), Bundle.open(BUNDLE).parameters())


def test_training_learns_the_digits(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    train, kept = ArrayDataset(digits.x[:1400], digits.y[:1400]), ArrayDataset(digits.x[1400:], digits.y[1400:])
    before = engine.evaluate(kept)
    result = engine.fit(train, FitSettings(epochs=5, learning_rate=0.2))
    after = engine.evaluate(kept)
    assert before["accuracy"] < 0.3
    assert after["accuracy"] > 0.8
    assert after["loss"] < before["loss"]
    assert (result.num_examples, result.steps) == (1400, 5 * 88)
    assert same(result.parameters, engine.get_parameters())


def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(
    engine: LiteRTEngine, digits: ArrayDataset
) -> None:
    base = engine.get_parameters()
    results = []
    for seed in (1, 1, 2):
        engine.set_parameters(base)
        results.append(engine.fit(digits.take(100), FitSettings(seed=seed)).parameters)
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_a_short_last_batch_counts_its_examples_only(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    whole = engine.evaluate(digits.take(40))
    parts = [engine.evaluate(ArrayDataset(digits.x[i : i + 1], digits.y[i : i + 1])) for i in range(40)]
    assert whole["examples"] == 40
    assert whole["loss"] == pytest.approx(np.mean([part["loss"] for part in parts]), rel=1e-5)
    assert whole["accuracy"] == pytest.approx(np.mean([part["accuracy"] for part in parts]))


def test_padding_does_not_change_a_step(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    base = engine.get_parameters()
    few = engine.fit(digits.take(5), FitSettings()).parameters
    engine.set_parameters(base)
    # Four examples padded with twelve that weigh nothing are the mean of the same four repeated four times.
    repeated = ArrayDataset(np.tile(digits.x[:4], (4, 1, 1, 1)), np.tile(digits.y[:4], 4))
    full = engine.fit(repeated, FitSettings()).parameters
    engine.set_parameters(base)
    four = engine.fit(digits.take(4), FitSettings()).parameters
    for key in base:
        np.testing.assert_allclose(four[key], full[key], atol=1e-6)
    assert not same(few, four)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_training_equals_an_unbroken_one(engine: LiteRTEngine, digits: ArrayDataset, epoch: int) -> None:
    base = engine.get_parameters()
    states: list[FitState] = []
    settings = FitSettings(epochs=3, learning_rate=0.1, proximal_mu=0.5, seed=3)
    unbroken = engine.fit(digits.take(90), settings, hooks=Hooks(after_epoch=states.append))
    again = LiteRTEngine(Bundle.open(BUNDLE))
    again.set_parameters(base)
    resumed = again.fit(digits.take(90), settings, resume=states[epoch - 1])
    assert same(unbroken.parameters, resumed.parameters)
    assert resumed.metrics == unbroken.metrics
    assert resumed.steps == unbroken.steps


def test_resuming_a_finished_training_returns_its_result(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    states: list[FitState] = []
    base = engine.get_parameters()
    result = engine.fit(digits.take(50), SETTINGS, hooks=Hooks(after_epoch=states.append))
    engine.set_parameters(base)
    resumed = engine.fit(digits.take(50), SETTINGS, resume=states[-1])
    assert same(resumed.parameters, result.parameters)
    assert resumed.steps == result.steps


def test_the_proximal_term_holds_the_parameters_near_the_base(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    base = engine.get_parameters()
    distances = []
    for mu in (0.0, 0.1, 1.0):
        engine.set_parameters(base)
        found = engine.fit(digits.take(200), FitSettings(epochs=2, proximal_mu=mu)).parameters
        distances.append(sum(float(np.sum((found[key] - base[key]) ** 2)) for key in base))
    assert distances[0] > distances[1] > distances[2]


def test_clipping_bounds_the_length_of_a_step(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    base = engine.get_parameters()
    settings = FitSettings(learning_rate=1.0, clip_norm=0.01)
    found = engine.fit(digits.take(16), settings).parameters
    moved = np.sqrt(sum(float(np.sum((found[key] - base[key]) ** 2)) for key in base))
    assert moved == pytest.approx(0.01 * settings.learning_rate, rel=1e-3)


def test_a_diverging_training_says_so_and_keeps_the_base(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    base = engine.get_parameters()
    with pytest.raises(DivergedError, match="learning_rate"):
        engine.fit(digits.take(200), FitSettings(epochs=20, learning_rate=1e20))
    assert same(engine.get_parameters(), base)


def test_a_hook_can_stop_the_training_and_the_base_is_kept(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    base = engine.get_parameters()
    seen = []

    def stop(epoch: int, step: int) -> None:
        seen.append((epoch, step))
        if len(seen) == 8:
            raise StopTraining

    with pytest.raises(StopTraining):
        engine.fit(digits.take(100), SETTINGS, hooks=Hooks(after_batch=stop))
    assert seen == [*((0, step) for step in range(1, 8)), (1, 1)]
    assert same(engine.get_parameters(), base)


X = np.zeros((20, 8, 8, 1), np.float32)
Y = np.zeros(20, np.int32)


def replaced(array: Array, row: int, value: float) -> Array:
    changed: Array = array.copy()
    changed[row] = value
    return changed


class Lopsided:
    """A data set whose loader gives fewer labels than inputs."""

    def __len__(self) -> int:
        return 20

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        yield Batch(X[:4], Y[:3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ArrayDataset(X[:0], Y[:0]), "no examples"),
        (ArrayDataset(X[..., 0], Y), r"x of example 0: shape \[8, 8\], the model takes \[8, 8, 1\]"),
        (ArrayDataset(X.astype(np.uint8), Y), "x of example 0: dtype uint8, the model takes float32"),
        (ArrayDataset(X, Y.astype(np.float32)), "y of example 0: dtype float32, the model takes int32"),
        (ArrayDataset(X, Y[:, None]), r"y of example 0: shape \[1\], the model takes \[\]"),
        (ArrayDataset(replaced(X, 18, np.nan), Y), "x of example 18: value nan is not finite"),
        (ArrayDataset(replaced(X, 3, np.inf), Y), "x of example 3: value inf is not finite"),
        (ArrayDataset(X, replaced(Y, 17, 10)), "y of example 17: label 10 is out of range.* 0 to 9"),
        (ArrayDataset(X, replaced(Y, 5, -1)), "y of example 5: label -1"),
        (Lopsided(), "4 rows of x but 3 of y"),
    ],
    ids=[
        "empty",
        "shape",
        "dtype",
        "label dtype",
        "label shape",
        "NaN",
        "infinity",
        "high label",
        "low label",
        "lengths",
    ],
)
def test_bad_data_are_refused_before_training_with_the_example_named(
    engine: LiteRTEngine, data: ArrayDataset, message: str
) -> None:
    base = engine.get_parameters()
    hooks = Hooks(after_batch=lambda epoch, step: pytest.fail("training started"))
    with pytest.raises(DataError, match=message):
        engine.fit(data, SETTINGS, hooks=hooks)
    with pytest.raises(DataError, match=message):
        engine.evaluate(data)
    assert same(engine.get_parameters(), base)


def test_wider_dtypes_of_the_same_kind_are_taken(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    wide = ArrayDataset(digits.x[:30].astype(np.float64), digits.y[:30].astype(np.int64))
    assert engine.evaluate(wide) == engine.evaluate(digits.take(30))


def test_parameters_of_another_model_are_refused(engine: LiteRTEngine) -> None:
    parameters = engine.get_parameters()
    with pytest.raises(BundleError, match="differ"):
        engine.set_parameters({f"other/{key}": value for key, value in parameters.items()})
    with pytest.raises(BundleError, match="conv/bias"):
        engine.set_parameters(parameters | {"conv/bias": np.zeros(3, np.float32)})


def test_a_checkpoint_of_another_model_is_refused_and_the_base_kept(engine: LiteRTEngine, digits: ArrayDataset) -> None:
    base = engine.get_parameters()
    with pytest.raises(BundleError):
        engine.fit(digits.take(20), SETTINGS, resume=FitState(1, {"other": np.zeros(3, np.float32)}))
    assert same(engine.get_parameters(), base)
    with pytest.raises(EngineError, match="optimizer"):
        engine.fit(digits.take(20), SETTINGS, resume=FitState(1, base, [np.zeros(3, np.float32)]))


def test_a_bundle_with_an_altered_graph_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    content = bytearray((copy / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / GRAPH).write_bytes(content)
    with pytest.raises(BundleError, match="digest"):
        LiteRTEngine(Bundle.open(copy))


@pytest.mark.parametrize("content", [b"", b"not a model", (BUNDLE / "inference.tflite").read_bytes()])
def test_a_graph_that_cannot_be_trained_is_refused(tmp_path: Path, content: bytes) -> None:
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    (copy / GRAPH).write_bytes(content)
    with pytest.raises(BundleError, match=GRAPH):
        LiteRTEngine(Bundle.seal(copy, Bundle.open(copy).manifest))


def test_several_threads_give_the_same_model_but_for_rounding(digits: ArrayDataset) -> None:
    bundle = Bundle.open(BUNDLE)
    one, two = (LiteRTEngine(bundle, threads=threads).fit(digits.take(300), SETTINGS).parameters for threads in (1, 2))
    for name, base in bundle.parameters().items():
        moved = float(np.abs(one[name] - base).max())
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=0.01 * moved)


def test_training_imports_no_tensorflow() -> None:
    code = (
        "import sys, pathlib, fedgrass.inference\n"
        "from fedgrass.bundle import Bundle\n"
        "from fedgrass.engines.litert import LiteRTEngine\n"
        f"LiteRTEngine(Bundle.open(pathlib.Path({str(BUNDLE)!r})))\n"
        "print(sorted({'tensorflow', 'keras', 'authoring'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.resizes_scalars
@pytest.mark.skipif(machine() == "aarch64", reason="LiteRT's own runner dies of a scalar there")
def test_what_is_set_once_holds_for_every_step(digits: ArrayDataset) -> None:
    interpreter = Interpreter(model_path=str(BUNDLE / "model.tflite"), num_threads=1)
    own = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
    own["write_parameters"](**{f"p{i}": v for i, v in enumerate(Bundle.open(BUNDLE).parameters().values())})
    own["begin_round"]()
    settings = FitSettings(learning_rate=0.2, proximal_mu=0.1, clip_norm=0.5)
    scalars = {name: np.float32(getattr(settings, name)) for name in ("learning_rate", "proximal_mu", "clip_norm")}
    for batch in digits.take(64).batches(16, seed=settings.epoch_seed(0)):
        own["train"](x=batch.x, y=batch.y, sample_weight=np.ones(16, np.float32), **scalars)
    found = own["read_parameters"]()
    result = LiteRTEngine(Bundle.open(BUNDLE)).fit(digits.take(64), settings)
    for i, value in enumerate(result.parameters.values()):
        np.testing.assert_array_equal(value, found[f"p{i}"])


@pytest.mark.resizes_scalars
@pytest.mark.skipif(machine() == "aarch64", reason="LiteRT's own runner dies of a scalar there")
def test_a_signature_that_is_called_again_gives_what_the_interpreters_own_runner_gives(digits: ArrayDataset) -> None:
    ours = LiteRTEngine(Bundle.open(BUNDLE))
    interpreter = Interpreter(model_path=str(BUNDLE / "model.tflite"), num_threads=1)
    own = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
    own["write_parameters"](**{f"p{i}": v for i, v in enumerate(Bundle.open(BUNDLE).parameters().values())})
    settings = FitSettings(learning_rate=0.2)
    weight, rate = np.ones(16, np.float32), np.float32(settings.learning_rate)
    for start in range(0, 64, 16):
        x, y = digits.x[start : start + 16], digits.y[start : start + 16]
        step = own["train_plain"](x=x, y=y, sample_weight=weight, learning_rate=rate)
        result = ours.fit(ArrayDataset(x, y), settings)
        assert result.metrics["loss"] == pytest.approx(float(step["loss"]), rel=1e-6)
    found = own["read_parameters"]()
    for i, value in enumerate(ours.get_parameters().values()):
        np.testing.assert_allclose(value, found[f"p{i}"], rtol=1e-4, atol=1e-6)  # fit shuffles the batch

"""What authoring promises of a bundle, and what it says of models that it cannot take."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import bundle
from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings, FitState, Hooks
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.inference import write_bundle

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
layers = keras.layers

from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402
from fedgrass.authoring.export import export  # noqa: E402

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    namespace = runpy.run_path(str(DIGITS / "model.py"))
    return export(namespace["build_model"](), tmp_path_factory.mktemp("digits"), prove=False, **namespace["EXPORT"])


@pytest.fixture(scope="module")
def committed() -> Bundle:
    return Bundle.open(DIGITS / "bundle")


def test_the_committed_digits_bundle_is_what_authoring_makes_of_its_model(rebuilt: Bundle, committed: Bundle) -> None:
    committed.verify()
    assert rebuilt.manifest.model_dump(exclude={"files"}) == committed.manifest.model_dump(exclude={"files"})
    assert rebuilt.manifest.parameters_sha256 == committed.manifest.parameters_sha256
    x = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(LiteRTEngine(rebuilt).infer(x), LiteRTEngine(committed).infer(x))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the bundle was made with the Keras of Python 3.11 and later")
def test_the_committed_digits_bundle_is_rebuilt_to_the_byte(rebuilt: Bundle, committed: Bundle) -> None:
    assert rebuilt.manifest == committed.manifest


def test_the_committed_digits_bundle_is_small(committed: Bundle) -> None:
    assert sum(path.stat().st_size for path in committed.folder.iterdir()) < 300_000


@pytest.mark.parametrize("name", [bundle.GRAPH, bundle.INFERENCE])
def test_graphs_have_built_in_operators_only(rebuilt: Bundle, name: str) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(rebuilt.path(name).read_bytes(), 0))
    assert model.operatorCodes
    assert [code.customCode for code in model.operatorCodes if code.customCode] == []


def test_the_first_signature_has_an_operator_lest_litert_leave_xnnpack_out_of_all(rebuilt: Bundle) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(rebuilt.path(bundle.GRAPH).read_bytes(), 0))
    assert model.subgraphs[0].operators


def test_the_training_graph_holds_no_weights(rebuilt: Bundle, tmp_path: Path) -> None:
    other = runpy.run_path(str(DIGITS / "model.py"))["build_model"]()
    for variable in other.trainable_variables:
        variable.assign(variable + 1.0)
    moved = export(other, tmp_path, loss="sparse_categorical_crossentropy", batch_size=16)
    assert moved.manifest.graph_sha256 == rebuilt.manifest.graph_sha256
    assert moved.manifest.parameters_sha256 != rebuilt.manifest.parameters_sha256


def test_logits_and_softmax_train_alike_and_infer_as_the_model_does(tmp_path: Path) -> None:
    def model(activation: str) -> Any:
        keras.utils.set_random_seed(3)
        return keras.Sequential([keras.Input((4,)), layers.Dense(3, activation=activation, name="out")], name="net")

    engines = []
    for activation in ("softmax", "linear"):
        written = export(model(activation), tmp_path / activation, loss="sparse_categorical_crossentropy", batch_size=2)
        engines.append(LiteRTEngine(written))
    data = ArrayDataset(np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0], np.int32))
    softmax, linear = (engine.fit(data, FitSettings()).parameters for engine in engines)
    for key, value in softmax.items():
        np.testing.assert_allclose(value, linear[key], atol=1e-6)
    probabilities, logits = (engine.infer(data.x) for engine in engines)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.abs(logits.sum(axis=1) - 1).max() > 0.01


@pytest.mark.parametrize("bias", [True, False])
def test_nothing_that_the_converter_made_of_parameters_stays_when_they_change(tmp_path: Path, bias: bool) -> None:
    """It folds a sum before a dense layer into that layer: kernel and bias alone would leave the sum's part as it was."""
    build = [
        keras.Input((4,)),
        layers.Dense(3, "relu"),
        layers.Rescaling(1.0, offset=-0.5),
        layers.Dense(2, use_bias=bias),
    ]
    model = keras.Sequential(build)
    made = export(model, tmp_path / "one", loss="mse", batch_size=2, prove=False)
    model.set_weights([2 * value + 1 for value in model.get_weights()])
    values = dict(zip(made.parameters(), model.get_weights(), strict=True))
    second = write_bundle(made, values, tmp_path / "two", version="1.1.0")
    x = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    infer = Interpreter(model_path=str(second.path("inference.tflite"))).get_signature_runner("infer")
    np.testing.assert_allclose(infer(x=x)["y"], model.predict(x, verbose=0), rtol=1e-5)


def test_the_manifest_names_a_normalizations_statistics_unless_it_is_frozen(tmp_path: Path) -> None:
    layers = keras.layers
    norms = [layers.BatchNormalization(name="free"), layers.BatchNormalization(name="held")]
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="d"), *norms, layers.Dense(2, name="out")])
    exported = export(
        model, tmp_path, loss="sparse_categorical_crossentropy", batch_size=4, freeze=["held"], name="normed"
    )
    assert exported.manifest.statistics == {"free/moving_mean": "mean", "free/moving_variance": "variance"}


def test_frozen_layers_do_not_move_or_travel_and_dropout_draws_the_same_masks_after_a_restart_only(
    tmp_path: Path,
) -> None:
    keras.utils.set_random_seed(0)
    body = [layers.Dense(64, activation="relu", name="body"), layers.Dropout(0.5), layers.Dense(3, name="head")]
    model = keras.Sequential([keras.Input((4,)), *body], name="net")
    written = export(model, tmp_path, loss="sparse_categorical_crossentropy", batch_size=4, freeze=["body"])
    assert written.manifest.frozen == ("body/kernel", "body/bias")
    assert [p.name for p in written.manifest.parameters] == ["head/kernel", "head/bias"]
    assert all(layer.trainable for layer in model.layers)

    data = ArrayDataset(np.ones((4, 4), np.float32), np.array([0, 1, 2, 0], np.int32))
    engine, settings = LiteRTEngine(written), FitSettings(epochs=2)
    np.testing.assert_allclose(engine.infer(data.x), model.predict(data.x, verbose=0), atol=1e-5)
    states: list[FitState] = []
    moved = engine.fit(data, settings, hooks=Hooks(after_epoch=states.append)).parameters["head/kernel"]
    resumed = LiteRTEngine(written).fit(data, settings, resume=states[0]).parameters["head/kernel"]
    np.testing.assert_array_equal(moved, resumed)
    other_round = LiteRTEngine(written).fit(data, FitSettings(epochs=2, seed=1)).parameters["head/kernel"]
    assert np.any(other_round != moved)

    # The same examples without dropout would move every row of an active unit by the same amount of its activation.
    active = np.maximum(model.layers[0](data.x[:1]).numpy()[0], 0)
    change = (states[0].parameters["head/kernel"] - written.parameters()["head/kernel"])[active > 0.1]
    ratio = (change / active[active > 0.1, None])[:, 0]
    assert len(np.unique(ratio.round(4))) > 4


def image() -> Any:
    return keras.Input((8, 8, 2))


def dense(**options: Any) -> Any:
    return layers.Dense(3, activation="softmax", name="out", **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: [image(), layers.SpectralNormalization(layers.Conv2D(2, 3), name="s"), layers.Flatten(), dense()],
            "s/vector_u: a variable that the layer itself changes.*use BatchNormalization",
        ),
        (
            lambda: [
                keras.Input((4, 4, 4, 1)),
                layers.Dense(2),
                layers.Conv3D(2, 2, name="c"),
                layers.Flatten(),
                dense(),
            ],
            "'c' .Conv3D.*use Conv2D",
        ),
        (
            lambda: [keras.Input((3, 4), batch_size=2), layers.LSTM(3, stateful=True, name="l"), dense()],
            "'l' .LSTM.*stateful=False",
        ),
        (
            lambda: [keras.Input((4,)), layers.Lambda(lambda x: x["a"], output_shape=(3,), name="l"), dense()],
            "'l' .Lambda.: what it does",
        ),
        (
            lambda: [keras.Input((4,)), layers.Dense(3, activation="tanh", name="out")],
            "'out' .Dense.*end the model with",
        ),
        (
            lambda: [keras.Input((4,)), layers.Dense(3, dtype="mixed_float16", name="half"), dense()],
            "'half' .Dense.*mixed_float16.*set_dtype_policy",
        ),
        (lambda: [keras.Input((None, 4)), dense()], "input shape"),
        (
            lambda: [keras.Input((6, 6, 1)), layers.RandomCrop(4, 4, name="crop"), layers.Flatten(), dense()],
            "'crop' .RandomCrop.*CenterCrop",
        ),
        (
            lambda: [
                keras.Input((), dtype="string", name="words"),
                layers.TextVectorization(output_sequence_length=4, vocabulary=["good"]),
                layers.Embedding(3, 2),
                layers.Flatten(),
                dense(),
            ],
            "input 'words': text cannot.*numbers of words",
        ),
        (
            lambda: [keras.Input((2,), dtype="int32"), layers.IntegerLookup(vocabulary=[3, 5], name="ids"), dense()],
            "'ids' .IntegerLookup.*let the data hold the numbers",
        ),
        (lambda: [layers.Dense(3)], "not built"),
        (lambda: [keras.Input((4,)), dense(trainable=False)], "without trainable"),
    ],
    ids=[
        "moving variable",
        "three dimensions",
        "state",
        "failing call",
        "final activation",
        "half precision",
        "open shape",
        "cropping in training",
        "text",
        "a look-up",
        "not built",
        "frozen",
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_with_the_layer_and_a_way_out(
    tmp_path: Path, build: Any, message: str
) -> None:
    def model() -> Any:
        return keras.Sequential(build(), name="net")

    with pytest.raises(UnsupportedModelError, match=message):
        export(model(), tmp_path / "bundle", loss="sparse_categorical_crossentropy", batch_size=2)
    assert not (tmp_path / "bundle").exists()


class Own(keras.Model):  # type: ignore[misc, name-defined]
    """A model whose call takes what it was not built for."""

    def __init__(self, *, failing: bool = False) -> None:
        super().__init__(name="own")
        self.failing = failing
        self.head = layers.Dense(3, name="head")

    def call(self, x: Any) -> Any:
        return x["values"] if self.failing else self.head(x)


class Sum(layers.Layer):  # type: ignore[misc, name-defined]
    """Takes steps together and hands their mask on."""

    supports_masking = True

    def call(self, x: Any, mask: Any = None) -> Any:
        return keras.ops.sum(x, axis=1)


def masked() -> Any:
    return keras.Sequential([keras.Input((5, 4)), layers.Masking(), Sum(), dense()])


def branching() -> Any:
    def either(x: Any) -> Any:
        return keras.ops.cond(keras.ops.sum(x) > 0, lambda: x, lambda: -x)

    return keras.Sequential([keras.Input((4,)), layers.Lambda(either), dense()])


class OwnStep(keras.Model):  # type: ignore[misc, name-defined]
    """A model that trains in its own way."""

    def __init__(self) -> None:
        super().__init__(name="stepping")
        self.head = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        return {}


class OwnLoss(Own):
    """A model with a loss of its own."""

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        return 0.0


def two_outputs() -> Any:
    x = keras.Input((4,))
    return keras.Model(x, [layers.Dense(2, name="same")(x)] * 2, name="two")


def compiled(**options: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), dense()], name="net")
    model.compile(**options)
    return model


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: {"a": 1}, {"loss": "mse"}, "a dict cannot .* give a keras.Model"),
        (lambda: Own(), {"loss": "mse"}, r"whose input is not known.*EXPORT\[.input.\]"),
        (lambda: Own(), {"loss": "mse", "input": "4"}, "input '4'.*give a shape"),
        (lambda: Own(failing=True), {"loss": "mse", "input": (4,)}, "own: a call that cannot be traced"),
        (two_outputs, {"loss": "mse"}, "two: one tensor as two outputs"),
        (masked, {"loss": "mse"}, r"a mask of \[2, 5\] beside values of \[2, 3\].*compute_mask"),
        (lambda: branching(), {"loss": "mse"}, "StatelessIf.*keras.ops.where"),
        (lambda: OwnStep(), {"loss": "mse", "input": (4,)}, r"'stepping' .OwnStep.: a train_step of its own.*add_loss"),
        (lambda: OwnLoss(), {"loss": "mse", "input": (4,)}, "a compute_loss of its own"),
        (
            lambda: compiled(loss="mse", optimizer=keras.optimizers.SGD(lambda: 0.1)),
            {},
            "a learning rate that a function",
        ),
        (lambda: compiled(loss="mse", optimizer=keras.optimizers.SGD(0.0)), {}, "SGD: learning_rate: .*greater than 0"),
        (lambda: compiled(), {}, "a model without a loss.*compile it"),
        (lambda: compiled(loss=lambda y, z: y - z), {}, "this loss.*use one of"),
        (lambda: compiled(loss=keras.losses.MeanSquaredError(reduction="sum")), {}, "reduction 'sum'"),
        (lambda: compiled(loss="mse", optimizer="nadam"), {}, "Nadam.*use one of sgd"),
        (lambda: compiled(loss="mse", optimizer=keras.optimizers.Adam(use_ema=True)), {}, "Adam: use_ema"),
        (lambda: compiled(loss="mse", loss_weights=[2.0]), {}, "loss_weights"),
        (lambda: compiled(), {"loss": "no_such_loss"}, "'no_such_loss'.*use one of"),
        (lambda: compiled(), {"loss": "mse", "batch_size": 0}, "batch_size 0"),
    ],
)
def test_what_devices_cannot_train_with_is_refused_by_name(
    tmp_path: Path, build: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        export(build(), tmp_path / "bundle", **{"batch_size": 2, **options})
    assert not (tmp_path / "bundle").exists()

"""Models of several inputs and outputs: as Keras trains them, from files by name, judged output by output."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.cloud.serving.bodies import CSV, JSON, read_examples
from fedgrass.cloud.serving.model import ServedModel
from fedgrass.cloud.serving.server import ModelServer
from fedgrass.data import ArrayDataset
from fedgrass.data.loaders import load, open_source
from fedgrass.data_settings import DataSettings
from fedgrass.edge.admission import judge
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.engines.several import apart, joined
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.figures import Claim, pooled
from fedgrass.protocol.release_settings import Gate
from fedgrass.simulation.run import simulate
from tests.fedgrass.simulation.conftest import fleet

pytestmark = [pytest.mark.authoring, pytest.mark.xdist_group("several")]  # which one export serves

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
layers = keras.layers

from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.export import export  # noqa: E402

BATCH, STEPS, RATE = 8, 10, 0.05
KINDS = ("ash", "beech", "oak")
LOSSES = {"kind": "sparse_categorical_crossentropy", "place": "mse", "alarm": "binary_crossentropy"}
WEIGHTS = {"kind": 1.0, "place": 0.3, "alarm": 2.0}


def sensors() -> Any:
    """An image, words and readings; a class, a place and an alarm."""
    keras.utils.set_random_seed(3)
    image, words = keras.Input((4, 4, 1), name="image"), keras.Input((5,), dtype="int32", name="words")
    readings = keras.Input((2,), name="readings")
    seen = layers.Flatten()(layers.Conv2D(3, 2, activation="relu")(image))
    read = layers.GlobalAveragePooling1D()(layers.Embedding(9, 3)(words))
    hidden = layers.Dense(12, activation="tanh", kernel_regularizer="l2")(layers.Concatenate()([seen, read, readings]))
    hidden = layers.BatchNormalization()(hidden)
    heads = [
        layers.Dense(3, activation="softmax", name="kind")(hidden),
        layers.Dense(2, name="place")(hidden),
        layers.Dense(1, activation="sigmoid", name="alarm")(hidden),
    ]
    model = keras.Model([image, words, readings], heads)
    model.compile(keras.optimizers.SGD(RATE), LOSSES, loss_weights=WEIGHTS)
    return model


def examples(count: int) -> dict[str, Any]:
    generator = np.random.default_rng(5)
    return {
        "image": generator.normal(size=(count, 4, 4, 1)).astype(np.float32),
        "words": generator.integers(0, 9, (count, 5)).astype(np.int32),
        "readings": generator.normal(size=(count, 2)).astype(np.float32),
        "kind": generator.integers(0, 3, count).astype(np.int32),
        "place": generator.normal(size=(count, 2)).astype(np.float32),
        "alarm": generator.integers(0, 2, (count, 1)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def model() -> Any:
    return sensors()


@pytest.fixture(scope="module")
def made(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("several"), batch_size=BATCH, class_names={"kind": KINDS})


def source_of(tmp_path: Path, made: Bundle, arrays: dict[str, Any]) -> Any:
    np.savez(tmp_path / "data.npz", **arrays)
    return open_source(DataSettings(loader="npz", path=str(tmp_path / "data.npz")), made.manifest)


def test_ten_steps_and_the_evaluation_are_those_of_keras_fit(tmp_path: Path, made: Bundle) -> None:
    """Keras sums and weighs the losses here, and not our reference."""
    arrays, theirs = examples(STEPS * BATCH), sensors()
    inputs = [arrays[name] for name in ("image", "words", "readings")]
    labels = {name: arrays[name] for name in LOSSES}
    engine, data = LiteRTEngine(made), source_of(tmp_path, made, arrays)
    losses = []
    for start in range(0, STEPS * BATCH, BATCH):
        part = slice(start, start + BATCH)
        theirs.reset_metrics()
        batch = [value[part] for value in inputs], {name: value[part] for name, value in labels.items()}
        losses.append(float(theirs.train_on_batch(*batch)[0]))
    settings = FitSettings(learning_rate=RATE)
    found = [engine.fit(ArrayDataset(b.x, b.y), settings).metrics["loss"] for b in data.batches(BATCH)]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    parameters = engine.get_parameters()
    variables = [*theirs.trainable_variables, *theirs.non_trainable_variables]
    for (name, value), variable in zip(parameters.items(), variables, strict=True):
        np.testing.assert_allclose(value, variable.numpy(), rtol=0, atol=2e-5, err_msg=name)
    judged = engine.evaluate(data)
    expected = theirs.evaluate(inputs, labels, batch_size=BATCH, verbose=0, return_dict=True)
    for name in ("loss", "kind_loss", "place_loss", "alarm_loss"):
        assert judged[name] == pytest.approx(expected[name], rel=1e-4), name
    kinds, places, alarms = theirs.predict(inputs, verbose=0)
    assert judged["kind_accuracy"] == pytest.approx(float((kinds.argmax(1) == arrays["kind"]).mean()))
    assert judged["place_mae"] == pytest.approx(float(np.abs(places - arrays["place"]).mean()), rel=1e-4)
    assert judged["alarm_accuracy"] == pytest.approx(float(((alarms > 0.5) == arrays["alarm"]).mean()))
    assert "accuracy" not in judged


def test_the_manifest_and_the_application_name_every_input_and_output(model: Any, made: Bundle) -> None:
    manifest = made.manifest
    assert [part.name for part in manifest.inputs] == ["image", "words", "readings"]
    assert [(h.name, h.loss, h.weight, h.class_names) for h in manifest.outputs] == [
        ("kind", "sparse_categorical_crossentropy", 1.0, KINDS),
        ("place", "mean_squared_error", 0.3, ()),
        ("alarm", "binary_crossentropy", 2.0, ()),
    ]
    assert manifest.vocabularies == {"words": 9}
    assert manifest.self_test is not None
    assert manifest.self_test.parameters is not None
    assert manifest.self_test.parameters < 1e-5
    from ai_edge_litert.interpreter import Interpreter

    arrays = examples(1)
    inputs = {name: arrays[name] for name in ("image", "words", "readings")}
    found = Interpreter(model_path=str(made.path("inference.tflite"))).get_signature_runner("infer")(**inputs)
    for name, output in zip(LOSSES, model(list(inputs.values())), strict=True):
        np.testing.assert_allclose(found[name], np.asarray(output), atol=1e-5)


def test_dictionaries_and_subclassed_models_are_taken_by_their_keys(tmp_path: Path) -> None:
    class Two(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layers.Dense(4), layers.Dense(2)

        def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
            hidden = self.first(inputs["left"]) + keras.ops.mean(inputs["right"], axis=1)
            return {"sum": self.second(hidden), "all": keras.ops.softmax(hidden)}

    keras.utils.set_random_seed(0)
    losses = {"sum": "mae", "all": "categorical_crossentropy"}
    made = export(Two(), tmp_path, loss=losses, batch_size=4, input={"left": (3,), "right": (6, 4)})
    assert [part.name for part in made.manifest.inputs] == ["left", "right"]
    assert {head.name: head.loss for head in made.manifest.outputs} == {
        "sum": "mean_absolute_error",
        "all": "categorical_crossentropy",
    }


@pytest.mark.parametrize("several", ["inputs", "outputs"])
def test_several_of_one_and_one_of_the_other(tmp_path: Path, several: str) -> None:
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((3,), name="a"), keras.Input((2,), name="b")][: 2 if several == "inputs" else 1]
    hidden = layers.Dense(5)(layers.Concatenate()(inputs) if several == "inputs" else inputs[0])
    outputs = [layers.Dense(2, name="c")(hidden), layers.Dense(1, name="d")(hidden)][: 2 if several == "outputs" else 1]
    made = export(keras.Model(inputs, outputs), tmp_path / "bundle", loss="mse", batch_size=4)
    arrays = {"a": np.ones((6, 3)), "b": np.zeros((6, 2)), "y": np.ones((6, 2))}
    if several == "outputs":
        arrays = {"x": np.ones((6, 3)), "c": np.ones((6, 2)), "d": np.zeros((6, 1))}
    data = source_of(tmp_path, made, {name: value.astype(np.float32) for name, value in arrays.items()})
    before = LiteRTEngine(made).evaluate(data)["loss"]
    engine = LiteRTEngine(made)
    engine.fit(data, FitSettings(epochs=5, learning_rate=0.05))
    assert engine.evaluate(data)["loss"] < before


def test_a_table_gives_them_by_the_names_of_its_columns(tmp_path: Path, made: Bundle) -> None:
    arrays = examples(30)
    columns: dict[str, Any] = {"time": np.arange(30)}
    for name, array in arrays.items():
        flat = array.reshape(30, -1)
        texts = np.array(KINDS)[array].reshape(30, 1) if name == "kind" else flat
        names = [name] if flat.shape[1] == 1 else [f"{name}_{at}" for at in range(flat.shape[1])]
        columns |= dict(zip(names, texts.T, strict=True))
    order = np.random.default_rng(0).permutation(list(columns))
    lines = [",".join(order)] + [",".join(str(columns[name][row]) for name in order) for row in range(30)]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    table = open_source(DataSettings(loader="csv", path=str(tmp_path / "data.csv")), made.manifest)
    archive = source_of(tmp_path, made, {**arrays, "kind": np.array(KINDS)[arrays["kind"]]})
    read, kept = table.read(np.arange(30)), archive.read(np.arange(30))
    np.testing.assert_allclose(read.x, kept.x, rtol=1e-6)
    np.testing.assert_allclose(read.y, kept.y, rtol=1e-6)
    (tmp_path / "data.csv").write_text("\n".join(lines).replace("oak", "elm"))
    wrong = DataSettings(loader="csv", path=str(tmp_path / "data.csv"))
    with pytest.raises(DataError, match=r"column 'kind': 'elm' is not a number or one of ash, beech, oak"):
        load(wrong, made.manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": None}, "lacks array 'words'; it has alarm, image"),
        ({"image": np.zeros((30, 4, 4))}, r"'image' has shape \[4, 4\] for an example, the model takes \[4, 4, 1\]"),
        ({"place": np.zeros((29, 2))}, "'place' has 29 examples and 'kind' 30"),
        ({"words": np.full((30, 5), 2.5)}, "'words' has dtype float64, the model takes int32"),
        ({"words": np.full((30, 5), 9)}, r"words of example 0: token 9 is not in the vocabulary of model .*, 0 to 8"),
        ({"kind": np.full(30, 3)}, r"kind of example 0: label 3 is out of range, model .* takes 0 to 2"),
        ({"alarm": np.full(30, 2.0)}, r"alarm of example 0: label 2\.0 is out of range"),
        ({"readings": np.full((30, 2), np.nan)}, r"x of example 0: value nan is not finite"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, made: Bundle, changes: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in {**examples(30), **changes}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        LiteRTEngine(made).fit(source_of(tmp_path, made, arrays), FitSettings())


def test_images_and_class_weights_are_refused_by_the_reason(tmp_path: Path, made: Bundle) -> None:
    with pytest.raises(DataError, match="has several inputs or outputs, an image and its folder are one of each"):
        open_source(DataSettings(loader="images", path=str(tmp_path)), made.manifest)
    data = source_of(tmp_path, made, examples(30))
    with pytest.raises(ConfigurationError, match="has several outputs, of which each has classes of its own"):
        LiteRTEngine(made).fit(data, FitSettings(class_weight="balanced"))


def test_a_device_admits_a_better_model_and_refuses_one_worse_at_one_output(tmp_path: Path, made: Bundle) -> None:
    from fedgrass.inference import write_bundle

    arrays = examples(200)
    arrays["kind"] = (arrays["readings"][:, 0] > 0).astype(np.int32)
    np.savez(tmp_path / "data.npz", **arrays)
    settings = DataSettings(loader="npz", path=str(tmp_path / "data.npz"))
    engine = LiteRTEngine(made)
    engine.fit(load(settings, made.manifest).train, FitSettings(epochs=60, learning_rate=0.1))
    better = write_bundle(made, engine.get_parameters(), tmp_path / "better", version="1.1.0")
    tested: dict[str, Any] = {
        "load": lambda manifest: load(settings, manifest),
        "open_engine": LiteRTEngine,
        "metric": "kind_accuracy",
        "tolerance": 0.01,
    }
    metrics = judge(better, made, **tested).metrics
    assert metrics["kind_accuracy"] > metrics["active_kind_accuracy"] + 0.2
    spoiled = {**engine.get_parameters()}
    spoiled["kind/kernel"] = -spoiled["kind/kernel"]
    worse = write_bundle(made, spoiled, tmp_path / "worse", version="1.2.0")
    with pytest.raises(Exception, match=r"kind_accuracy 0\.\d+ on this device's 40 examples"):
        judge(worse, better, **tested)


def test_a_simulated_fleet_learns_and_its_gate_watches_one_output(tmp_path: Path, made: Bundle) -> None:
    arrays = examples(400)
    arrays["kind"] = np.digitize(arrays["readings"][:, 0], [-0.4, 0.4]).astype(np.int32)
    np.savez(tmp_path / "data.npz", **arrays)
    settings = {"gate": {"metric": "kind_accuracy", "tolerance": 0.3, "loss_tolerance": 3}, "fit": {"epochs": 4}}
    report = simulate(
        tmp_path / "s",
        bundle=made.folder,
        data=str(tmp_path / "data.npz"),
        fleet=fleet(settings),
        devices=8,
        cohort=4,
        rounds=3,
        examples=40,
        workers=1,
    )
    assert report.final.accuracy is None
    assert report.final.metrics["kind_accuracy"] > report.first.metrics["kind_accuracy"]
    header, first, *_ = (tmp_path / "s" / "rounds.csv").read_text().splitlines()
    assert "kind_accuracy" in header.split(",")
    assert first.split(",")[1] == "released"
    with pytest.raises(ConfigurationError, match=r"changes labels, and model .* has several outputs"):
        simulate(
            tmp_path / "attacked", bundle=made.folder, data=str(tmp_path / "data.npz"), fleet=fleet({}), devices=8, cohort=4,
            rounds=1, examples=40, workers=1, attack="label_flip:0.5",
        )  # fmt: skip


def test_a_fleets_figures_of_outputs_are_means_over_examples_and_nobody_invents_one() -> None:
    claims = [
        Claim(10, {"loss": 1.0, "kind_accuracy": 0.5, "kind_f1": 0.4}),
        Claim(30, {"loss": 2.0, "kind_accuracy": 0.9, "kind_f1": 0.8}),
        Claim(20, {"loss": 3.0, "kind_accuracy": 0.7, "kind_f1": 0.6, "ghost_loss": 1.0}),
    ]
    found = pooled(claims, Checks(max_examples_over_median=0, clip_loss_over_median=0))
    assert found.figures["kind_accuracy"] == pytest.approx((5 + 27 + 14) / 60)
    assert "ghost_loss" not in found.figures
    assert found.averaged == ("kind_f1",)


def test_a_gate_takes_the_figure_of_an_output_and_no_other_word() -> None:
    assert Gate(metric="kind_accuracy").metric == "kind_accuracy"
    for wrong in ("kind", "kind_speed", "a" * 20 + "_loss"):
        with pytest.raises(ValueError, match="metric"):
            Gate(metric=wrong)


def tagger() -> Any:
    words = keras.Input((4,), dtype="int32", name="words")
    hidden = layers.Embedding(5, 3, mask_zero=True)(words)
    tags = layers.TimeDistributed(layers.Dense(2, activation="softmax"), name="tags")(hidden)
    whole = layers.Dense(1, name="whole")(layers.GlobalAveragePooling1D()(hidden))
    return keras.Model(words, [tags, whole])


def two(names: tuple[str, str] = ("first", "second")) -> Any:
    x = keras.Input((3,))
    return keras.Model(x, [layers.Dense(2, name=name)(x) for name in names])


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (tagger, {"loss": "mse"}, "output 'tags'.*mask"),
        (two, {"loss": {"first": "mse"}}, "output 'second'.*no loss"),
        (two, {"loss": {"first": "mse", "third": "mse"}}, "loss of 'third'.*output that the model does not have"),
        (two, {"loss": ["mse"]}, "1 entries for 2 outputs"),
        (two, {"loss": "mse", "loss_weights": {"nobody": 1}}, "loss_weights of 'nobody'"),
        (lambda: two(("base", "second")), {"loss": "mse"}, "output 'base'.*name that figures cannot begin with"),
        (lambda: two(("n" * 20, "second")), {"loss": "mse"}, "name that figures cannot begin with"),
    ],
)
def test_what_several_outputs_cannot_have_is_refused_by_name(
    tmp_path: Path, build: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        export(build(), tmp_path, batch_size=2, **options)


def test_an_endpoint_takes_and_gives_several_by_name_or_in_a_row(model: Any, made: Bundle) -> None:
    served = ServedModel(made.folder)
    arrays = examples(3)
    given = [arrays[name] for name in ("image", "words", "readings")]
    expected = [np.asarray(part) for part in model.predict(given, verbose=0)]
    instances = [
        {
            "readings": arrays["readings"][i].tolist(),
            "image": arrays["image"][i].tolist(),
            "words": arrays["words"][i].tolist(),
        }
        for i in range(3)
    ]
    rows = np.concatenate([part.reshape(3, -1) for part in given], axis=1)
    bodies = {
        JSON: json.dumps({"instances": instances}).encode(),
        CSV: "".join(",".join(map(repr, row)) + "\n" for row in rows.tolist()).encode(),
    }
    with ModelServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for form, body in bodies.items():
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
            connection.request("POST", "/invocations", body, {"Content-Type": form})
            answer = connection.getresponse().read()
            connection.close()
            if form == JSON:
                found = json.loads(answer)["predictions"]
                parts: list[Any] = [[one[name] for one in found] for name in ("kind", "place", "alarm")]
            else:
                parts = np.split(np.array([line.split(b",") for line in answer.splitlines()], float), [3, 5], axis=1)
            for part, wanted in zip(parts, expected, strict=True):
                np.testing.assert_allclose(part, wanted, atol=1e-5)
        server.shutdown()


@pytest.mark.parametrize(
    ("body", "form", "said"),
    [
        (
            [{"image": 1, "words": 2}],
            JSON,
            "example 0: expected an object of image, words, readings, found image, words",
        ),
        ([[1.0] * 23], JSON, "expected an object of .* found list"),
        (
            [{"image": np.zeros((4, 4, 1)).tolist(), "words": [0.5] * 5, "readings": [0, 0]}],
            JSON,
            "words: the model takes int32",
        ),
        ([{"image": [0] * 15, "words": [1] * 5, "readings": [0, 0]}], JSON, "image: expected examples of shape"),
        (",".join(["0.5"] * 23), CSV, "the model takes int32"),
        ("1,2", CSV, r"expected examples of shape \[23\]"),
    ],
)
def test_a_request_that_is_not_the_model_s_inputs_is_refused_by_name(
    made: Bundle, body: Any, form: str, said: str
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(DataError, match=said):
        read_examples(content.encode(), form, made.manifest.x, made.manifest.inputs)


def test_a_saved_model_of_several_trains_and_infers_as_the_keras_model(tmp_path: Path) -> None:
    def branches() -> Any:
        keras.utils.set_random_seed(1)
        one, words = keras.Input((3,), name="one"), keras.Input((4,), dtype="int32", name="a_words")
        hidden = layers.Concatenate()(
            [layers.Dense(4, activation="relu")(one), layers.Flatten()(layers.Embedding(5, 2)(words))]
        )
        return keras.Model(
            [one, words], {"kind": layers.Dense(3, activation="softmax")(hidden), "a_place": layers.Dense(2)(hidden)}
        )

    losses = {"kind": "sparse_categorical_crossentropy", "a_place": "mse"}
    theirs = branches()
    theirs.export(tmp_path / "saved", verbose=False)
    made = export(tmp_path / "saved", tmp_path / "made", loss=losses, loss_weights={"kind": 0.5}, batch_size=8)
    draw = np.random.default_rng(0)
    arrays = {
        "one": draw.normal(size=(8, 3)).astype(np.float32),
        "a_words": draw.integers(0, 5, (8, 4)).astype(np.int32),
        "kind": draw.integers(0, 3, 8).astype(np.int32),
        "a_place": draw.normal(size=(8, 2)).astype(np.float32),
    }
    x = joined(arrays, made.manifest.inputs)
    y = joined(arrays, [head.y for head in made.manifest.outputs])
    given = [arrays["one"], arrays["a_words"]]
    expected = theirs.predict(given, verbose=0)
    found = apart(LiteRTEngine(made).infer(x), [head.output for head in made.manifest.outputs])
    for head, part in zip(made.manifest.outputs, found, strict=True):
        np.testing.assert_allclose(part, expected[head.name], atol=1e-5)
    theirs.compile(keras.optimizers.SGD(0.1), losses, loss_weights={"kind": 0.5, "a_place": 1.0})
    loss = theirs.train_on_batch(given, {name: arrays[name] for name in losses})[0]
    fitted = LiteRTEngine(made).fit(ArrayDataset(x, y), FitSettings(learning_rate=0.1))
    assert fitted.metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    after = sorted(float(np.abs(v.numpy()).sum()) for v in theirs.trainable_variables)
    np.testing.assert_allclose(sorted(float(np.abs(v).sum()) for v in fitted.parameters.values()), after, rtol=1e-5)

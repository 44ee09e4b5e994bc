"""Models made for a task: each trains in simulation on made-up data, and its files say what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import fedgrass
from fedgrass.bundle import INFERENCE, Bundle
from fedgrass.data import ArrayDataset, DataSettings, load
from fedgrass.edge.admit import admit
from fedgrass.edge.judging import judge_here
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.score import Score
from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import ConfigurationError
from fedgrass.inference import write_bundle
from fedgrass.logs import Log
from fedgrass.protocol.fleet_score import fleet_score
from fedgrass.simulation.run import simulate
from fedgrass.tensors import Array

pytest.importorskip("tensorflow")

import keras

from fedgrass.associated_files import files_of
from fedgrass.authoring.architectures import log_mel
from fedgrass.authoring.create import create_bundle

pytestmark = pytest.mark.authoring

RATE = 2000


def sounds(count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Low, middle and high tones of any phase, in noise."""
    y = draw.integers(0, 3, count)
    time = np.arange(400) / RATE
    tones = np.sin(2 * np.pi * np.array([100, 300, 800])[y, None] * time + draw.uniform(0, 6, (count, 1)))
    return 0.3 * tones + draw.normal(0, 0.05, (count, 400)), y


def texts(count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Words of which one, anywhere, says what the text is."""
    x, y = draw.integers(2, 30, (count, 8)), draw.integers(0, 2, count)
    x[np.arange(count), draw.integers(0, 8, count)] = y
    return x, y


def readings(count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Ten readings that hang on two causes."""
    x = draw.normal(size=(count, 2)) @ np.random.default_rng(1).normal(size=(2, 10)) + draw.normal(0, 0.1, (count, 10))
    return x, x


def seasons(count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Two waves, and how they go on."""
    time = np.arange(30) + draw.uniform(0, 30, (count, 1))
    waves = np.stack([np.sin(time / 2), np.cos(time / 3)], axis=-1)
    return waves[:, :24], waves[:, 24:, :1]


def colours(count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Reddish and bluish images."""
    x, y = draw.uniform(0, 0.5, (count, 32, 32, 3)), draw.integers(0, 2, count)
    x[np.arange(count), ..., np.where(y, 0, 2)] += 0.5
    return x, y


Make = Callable[[int, np.random.Generator], tuple[Array, Array]]
TASKS: dict[str, tuple[tuple[int, ...], dict[str, Any], Make, float]] = {
    "audio-classifier": ((400,), {"classes": ("low", "middle", "high"), "sample_rate": RATE}, sounds, 0.05),
    "text-classifier": ((8,), {"classes": ("no", "yes"), "vocabulary": 30}, texts, 0.5),
    "anomaly-detector": ((10,), {"quantile": 0.95, "optimizer": "adam"}, readings, 0.01),
    "forecaster": ((24, 2), {"horizon": 6, "optimizer": "adam"}, seasons, 0.003),
}


def simulated(folder: Path, bundle: Bundle, make: Make, rate: float) -> Any:
    x, y = make(600, np.random.default_rng(0))
    manifest = bundle.manifest
    np.savez(folder / "data.npz", x=x.astype(manifest.x.dtype), y=y.astype(manifest.y.dtype))
    return simulate(
        folder / "out",
        bundle=bundle.folder,
        data=str(folder / "data.npz"),
        devices=4,
        cohort=4,
        rounds=3,
        workers=1,
        partition="iid",
        fleet={"fit": {"epochs": 20, "learning_rate": rate}},
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_model_made_for_a_task_learns_it_in_simulation(task: Any, tmp_path: Path) -> None:
    shape, options, make, rate = TASKS[task]
    bundle = create_bundle(task, shape, tmp_path / "model", name="mine", **options)
    report = simulated(tmp_path, bundle, make, rate)
    if "classes" in options:
        assert report.final.accuracy > 0.9
        assert report.final.metrics["auc"] > 0.95
    else:
        assert report.final.loss < 0.5 * report.first.loss
    if task == "anomaly-detector":
        _finds_anomalies(Bundle.open(tmp_path / "out" / "model"), report.final.metrics["error_threshold"])
        threshold = Score.read(tmp_path / "out" / "model")  # which the first version of a fleet brings
        assert threshold is not None
        assert threshold.threshold == report.final.metrics["error_threshold"]
        _is_admitted_with_a_threshold(Bundle.open(tmp_path / "out" / "model"), tmp_path)


def _finds_anomalies(model: Bundle, threshold: float) -> None:
    """What hangs on no common cause is reconstructed worse than the threshold, and what is normal is not."""
    draw = np.random.default_rng(5)
    normal, odd = readings(300, draw)[0], draw.normal(size=(300, 10)) * 2
    engine = LiteRTEngine(model)
    errors = [((engine.infer(x.astype(np.float32)) - x) ** 2).mean(axis=1) for x in (normal, odd)]
    assert (errors[0] > threshold).mean() < 0.15
    assert (errors[1] > threshold).mean() > 0.8


def _is_admitted_with_a_threshold(model: Bundle, folder: Path) -> None:
    """Beside what the application loads is how it scores: by this device's kept-back examples, or as its owner says."""
    assert json.loads(files_of(model.path(INFERENCE).read_bytes())["score.json"]) == {
        "score": "mean_squared_error",
        "quantile": 0.95,
    }
    x = readings(200, np.random.default_rng(6))[0].astype(np.float32)
    np.savez(folder / "mine.npz", x=x)
    runtime = RuntimeSettings(fleet="f", data=DataSettings(loader="npz", path=str(folder / "mine.npz")))
    store, log = ModelStore(folder / "store"), Log("test")
    engine = LiteRTEngine(model)
    kept = np.concatenate([batch.x for batch in load(runtime.data, model.manifest).validation.batches(1000)])
    errors = ((engine.infer(kept) - kept) ** 2).mean(axis=1)
    of_device = float(np.quantile(errors, 0.95))
    cases: list[tuple[float | str | None, bool, float, str]] = [
        # What the owner says, whether the version brings the fleet's threshold, and whose it is then.
        (None, True, of_device, "device"),
        ("fleet", False, of_device, "device"),
        ("fleet", True, 0.25, "fleet"),
        (0.5, True, 0.5, "owner"),
    ]
    for at, (owners, brings, wanted, origin) in enumerate(cases):
        version = write_bundle(model, model.parameters(), folder / f"version-{at}", version=f"9.{at}.0")
        if brings:
            content = fleet_score(version.manifest.anomaly_quantile, {"error_threshold": 0.25})
            assert content is not None
            (version.folder / "score.json").write_bytes(content)
        deployer = ModelDeployerSettings.model_validate({"anomaly_threshold": owners})
        found = admit(version.folder, store, runtime, deployer, log, judged=lambda case: judge_here(case, log))
        assert found is not None
        assert found.outcome == "active", found.reason
        score = Score.read(store.folder / "active")
        assert score is not None
        assert score.threshold is not None
        assert score.origin == origin
        assert score.fleet == (0.25 if brings else None)
        assert score.threshold == pytest.approx(wanted, rel=1e-5)
        np.testing.assert_allclose(score.of_examples(kept, engine.infer(kept)), errors, rtol=1e-5)
        above = np.array([score.threshold * factor for factor in (0.9, 1.0, 1.1)])
        assert score.alarms(above).tolist() == [False, False, True]
    with store.lock():
        store.roll_back("a test")
    before = Score.read(store.folder / "active")
    assert before is not None
    assert before.origin == "fleet", "an earlier model has its own again"
    _has_the_fleets_where_it_keeps_nothing_back(model, folder, runtime, log)


def _has_the_fleets_where_it_keeps_nothing_back(
    model: Bundle, folder: Path, runtime: RuntimeSettings, log: Log
) -> None:
    nothing = runtime.model_copy(update={"data": runtime.data.model_copy(update={"validation_fraction": 0.0})})
    version, store = write_bundle(model, model.parameters(), folder / "bare", version="9.9.0"), ModelStore(folder / "b")
    for content, threshold, origin in (
        (b'{"quantile": 0.95, "threshold": -1, "origin": "fleet"}', None, None),
        (b"[" * 100_000, None, None),
        (fleet_score(0.95, {"error_threshold": 0.25}) or b"", 0.25, "fleet"),
    ):
        (version.folder / "score.json").write_bytes(content)
        deployer = ModelDeployerSettings()
        found = admit(version.folder, store, nothing, deployer, log, judged=lambda case: judge_here(case, log))
        assert found is not None
        score = Score.read(store.folder / "active")
        assert (score and score.threshold, score and score.origin) == (threshold, origin), found.reason
        assert found.outcome == ("active" if origin else "refused")
        # Another file is another question only if the device asks anew.
        store.forget_verdict()


def test_a_frozen_backbone_learns_by_its_last_layer_alone(tmp_path: Path) -> None:
    """With weights from a file, as Keras saves them."""
    keras.utils.set_random_seed(1)
    network = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), include_top=False, weights=None, pooling="avg", include_preprocessing=False
    )
    network.save_weights(tmp_path / "small.weights.h5")
    bundle = create_bundle(
        "image-classifier",
        (32, 32, 3),
        tmp_path / "model",
        classes=("blue", "red"),
        backbone="mobilenet_v3_small",
        weights=tmp_path / "small.weights.h5",
    )
    assert [parameter.name for parameter in bundle.manifest.parameters] == ["output/kernel", "output/bias"]
    x, y = (part for part in colours(64, np.random.default_rng(0)))
    x, y = x.astype(np.float32), y.astype(np.int32)
    kernel, bias = bundle.parameters().values()
    logits = network(2 * x - 1, training=False).numpy() @ kernel + bias
    expected = keras.ops.softmax(logits).numpy()
    np.testing.assert_allclose(LiteRTEngine(bundle).infer(x[:16]), expected[:16], atol=1e-4)
    assert LiteRTEngine(bundle).evaluate(ArrayDataset(x, y))["examples"] == 64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "alexnet"}, "expected one of mobilenet, "),
        ({"backbone": "mobilenet_v2", "shape": (16, 16, 3)}, "at least 32 pixels"),
        ({"backbone": "mobilenet_v2", "shape": (32, 32, 1), "weights": "x"}, "3 colours"),
        ({"backbone": "mobilenet_v2", "weights": "x"}, r"are none of mobilenet_v2 without its top .*no_top\.h5"),
        ({"weights": "x"}, "has a backbone"),
        ({"task": "forecaster", "shape": (8, 2), "classes": ("a", "b")}, "forecaster has none"),
        ({"task": "text-classifier", "shape": (8,)}, "needs a file of 2 to"),
        ({"task": "audio-classifier", "shape": (100,)}, "at least 400 samples"),
        ({"vocabulary": 10}, "image-classifier has none"),
    ],
)
def test_options_that_do_not_fit_the_task_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "x.weights.h5").write_bytes(b"no weights")
    given = {"task": "image-classifier", "shape": (32, 32, 3), "classes": ("a", "b"), **options}
    if "weights" in given:
        given["weights"] = tmp_path / "x.weights.h5"
    if given["task"] == "forecaster" and "classes" not in options:
        given["classes"] = ()
    with pytest.raises(ConfigurationError, match=said):
        create_bundle(given.pop("task"), given.pop("shape"), tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_log_mel_bands_are_those_of_a_fourier_transform() -> None:
    rate, samples = 8000, 1500
    draw = np.random.default_rng(0)
    sound = draw.normal(0, 0.1, (2, samples)) + np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
    x = keras.Input((samples,))
    found = keras.Model(x, log_mel(keras, x, samples, rate)).predict(sound.astype(np.float32), verbose=0)
    frame, hop = 200, 80
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), 42) / 2595) - 1)
    frequencies = np.fft.rfftfreq(frame, 1 / rate)
    window = np.hanning(frame + 1)[:-1]
    for number in range(found.shape[1]):
        part = sound[:, number * hop : number * hop + frame] * window
        power = np.abs(np.fft.rfft(part)) ** 2
        for band in range(40):
            low, middle, high = edges[band : band + 3]
            triangle = np.interp(frequencies, [low, middle, high], [0, 1, 0], left=0, right=0)
            expected = np.log(power @ triangle + 1e-6) / 5 + 1.4
            np.testing.assert_allclose(found[:, number, band], expected, atol=2e-3)
    assert found.shape == (2, (samples - frame) // hop + 1, 40)


def test_labels_travel_in_the_application_s_models_and_stay_when_parameters_change(tmp_path: Path) -> None:
    words = tuple(f"word{i}" for i in range(40))
    bundle = create_bundle(
        "text-classifier", (8,), tmp_path / "one", classes=("good", "bad", "naïve"), vocabulary=words, name="reviews"
    )
    changed = {name: value * 2 for name, value in bundle.parameters().items()}
    second = write_bundle(bundle, changed, tmp_path / "two", version="1.1.0")
    for model in (bundle, second):
        for file in ("inference.tflite", "inference_int8.tflite"):
            if file not in model.manifest.files:
                continue
            content = model.path(file).read_bytes()
            found = files_of(content)
            assert found["labels.txt"].decode().splitlines() == ["good", "bad", "naïve"]
            assert found["vocabulary.txt"].decode().splitlines() == list(words)
            assert _metadata(content) == ("reviews", "x", "y", "labels.txt")
            Interpreter(model_content=content).get_signature_runner("infer")
    x = np.arange(8, dtype=np.int32)[np.newaxis]
    outputs = [
        Interpreter(model_path=str(model.path("inference.tflite"))).get_signature_runner("infer")(x=x)["y"]
        for model in (bundle, second)
    ]
    assert not np.allclose(*outputs)
    np.testing.assert_allclose(outputs[1], LiteRTEngine(second).infer(x), atol=1e-5)


def test_texts_become_the_numbers_that_keras_gives_their_words(tmp_path: Path) -> None:
    words = ("", "[UNK]", *["the", "cat", "dog", "don't", "dont", "3", "straße", "café", "sat", "on"])
    bundle = create_bundle("text-classifier", (6,), tmp_path, classes=("no", "yes"), vocabulary=words)
    assert bundle.manifest.data.vocabulary == words
    layer = keras.layers.TextVectorization(vocabulary=words[2:], output_sequence_length=6)
    draw = np.random.default_rng(0)
    parts = [
        *words[2:],
        "The",
        "DOG!",
        "(cat)",
        "don’t",
        "_sat_",
        "x.y",
        "\t",
        "\n",
        " ",
        "«on»",
        "STRASSE",
        "a@b",
        "--",
        "3.",
    ]
    texts = [draw.choice(["", " "]).join(draw.choice(parts, draw.integers(1, 12))) for _ in range(200)]
    texts = [text for text in texts if text.strip()]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text, "mood": "yes"}) + "\n" for text in texts))
    data = fedgrass.load_data(bundle, table, "jsonl", columns=["text"], label="mood", validation_fraction=0)
    found = next(iter(data.train.batches(300))).x
    # In an order of its own.
    assert sorted(found.tolist()) == sorted(layer(np.array(texts)).numpy().tolist())


def _metadata(content: bytes) -> tuple[str, str, str, str]:
    """Read names by the schema's field numbers, with flatbuffers alone: the model's, an input's, an output's, its file's."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    (entry,) = [
        model.Metadata(i) for i in range(model.MetadataLength()) if model.Metadata(i).Name() == b"TFLITE_METADATA"
    ]
    data = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert data[4:8] == b"M001"

    def field(table: Any, number: int) -> int:
        offset: int = table.Offset(4 + 2 * number)
        assert offset
        return offset + int(table.Pos)

    def inner(table: Any, number: int) -> Any:
        """Return the first table of a vector."""
        start = table.Vector(field(table, number) - table.Pos)
        return flatbuffers.table.Table(table.Bytes, table.Indirect(start))

    def text(table: Any, number: int) -> str:
        found: bytes = table.String(field(table, number))
        return found.decode()

    root = flatbuffers.table.Table(bytearray(data), int.from_bytes(data[:4], "little"))
    subgraph = inner(root, 3)
    x, y = inner(subgraph, 2), inner(subgraph, 3)
    return text(root, 0), text(x, 0), text(y, 0), text(inner(y, 6), 0)

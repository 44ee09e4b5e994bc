"""New parameters into a bundle, without TensorFlow."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from fedgrass import bundle
from fedgrass.bundle import Bundle, Parameters
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import BundleError
from fedgrass.inference import inference_accuracy, pruned, write_bundle
from fedgrass.tensors import Array

BASE = Bundle.open(Path(__file__).parents[2] / "examples" / "digits" / "bundle")


def some_parameters(seed: int = 0) -> Parameters:
    generator = np.random.default_rng(seed)
    return {
        key: value + generator.normal(0, 0.1, value.shape).astype(np.float32)
        for key, value in BASE.parameters().items()
    }


def infer(model: Bundle, x: Array) -> Array:
    interpreter = Interpreter(model_path=str(model.path(bundle.INFERENCE)))
    runner = interpreter.get_signature_runner("infer")
    return np.concatenate([runner(x=row[None])["y"] for row in x])


def test_the_written_inference_model_equals_infer_of_the_training_graph(tmp_path: Path) -> None:
    x = np.random.default_rng(1).uniform(size=(20, 8, 8, 1)).astype(np.float32)
    written = write_bundle(BASE, some_parameters(), tmp_path / "new", version="1.7.0")
    expected = LiteRTEngine(written).infer(x)
    np.testing.assert_allclose(infer(written, x), expected, atol=1e-5)
    assert np.abs(infer(BASE, x) - expected).max() > 0.01


def test_a_written_bundle_is_complete_and_its_graph_is_the_bases(tmp_path: Path) -> None:
    parameters = some_parameters()
    written = Bundle.open(write_bundle(BASE, parameters, tmp_path / "a" / "new", version="1.7.0").folder)
    written.verify()
    assert written.manifest.version == "1.7.0"
    assert written.manifest.graph_sha256 == BASE.manifest.graph_sha256
    assert written.manifest.parameters_sha256 != BASE.manifest.parameters_sha256
    for key, value in written.parameters().items():
        np.testing.assert_array_equal(value, parameters[key])


def test_writing_the_bases_own_parameters_gives_the_bases_bytes(tmp_path: Path) -> None:
    written = write_bundle(BASE, BASE.parameters(), tmp_path, version=BASE.manifest.version)
    assert written.manifest == BASE.manifest


def test_a_written_bundle_is_a_base_for_the_next(tmp_path: Path) -> None:
    first = write_bundle(BASE, some_parameters(1), tmp_path / "1", version="1.1.0")
    second = write_bundle(first, some_parameters(2), tmp_path / "2", version="1.2.0")
    direct = write_bundle(BASE, some_parameters(2), tmp_path / "3", version="1.2.0")
    assert second.manifest == direct.manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parameters, ArrayDataset]:
    """Parameters that know the digits, and digits that they were not trained on."""
    loaded = load_digits()
    digits = ArrayDataset((loaded.images[..., None] / 16).astype(np.float32), loaded.target.astype(np.int32))
    result = LiteRTEngine(BASE).fit(digits.take(1400), FitSettings(epochs=15, learning_rate=0.05))
    return result.parameters, ArrayDataset(digits.x[1400:], digits.y[1400:])


def test_the_int8_model_takes_at_most_30_percent_and_loses_at_most_a_point(
    trained: tuple[Parameters, ArrayDataset], tmp_path: Path
) -> None:
    parameters, kept = trained
    written = write_bundle(BASE, parameters, tmp_path, version="1.1.0")
    files, accuracy = written.manifest.files, inference_accuracy(written, kept)
    assert files[bundle.INFERENCE_INT8].bytes <= 0.30 * files[bundle.INFERENCE].bytes
    assert accuracy[bundle.INFERENCE] > 0.9
    assert accuracy[bundle.INFERENCE_INT8] >= accuracy[bundle.INFERENCE] - 0.01
    engine = LiteRTEngine(written)
    assert accuracy[bundle.INFERENCE] == pytest.approx(engine.evaluate(kept)["accuracy"])


def test_pruning_empties_the_smallest_weights_of_the_applications_models_only(
    trained: tuple[Parameters, ArrayDataset], tmp_path: Path
) -> None:
    parameters, kept = trained
    written = write_bundle(BASE, parameters, tmp_path, version="1.1.0", sparsity=0.3)
    for name, value in pruned(parameters, 0.3).items():
        zeroed = value == 0 if value.ndim > 1 else np.zeros(value.shape, bool)
        assert zeroed.mean() == pytest.approx(0.3 if value.ndim > 1 else 0.0, abs=0.01)
        np.testing.assert_array_equal(value[~zeroed], parameters[name][~zeroed])
        assert np.abs(parameters[name][zeroed]).max(initial=0) <= np.abs(parameters[name][~zeroed]).min(initial=1)
        np.testing.assert_array_equal(written.parameters()[name], parameters[name])
    packed = [len(zlib.compress(written.path(name).read_bytes())) for name in (bundle.INFERENCE, bundle.INFERENCE_INT8)]
    dense = write_bundle(BASE, parameters, tmp_path / "dense", version="1.1.0")
    assert packed[0] < 0.9 * len(zlib.compress(dense.path(bundle.INFERENCE).read_bytes()))
    assert packed[1] < 0.9 * len(zlib.compress(dense.path(bundle.INFERENCE_INT8).read_bytes()))
    assert min(inference_accuracy(written, kept).values()) > inference_accuracy(dense, kept)[bundle.INFERENCE] - 0.03


def test_a_quantized_model_that_is_not_wanted_is_not_left_over(tmp_path: Path) -> None:
    (tmp_path / bundle.INFERENCE_INT8).write_bytes(b"old")
    written = write_bundle(BASE, some_parameters(), tmp_path, version="1.1.0", int8=False)
    assert bundle.INFERENCE_INT8 not in written.manifest.files
    assert not (tmp_path / bundle.INFERENCE_INT8).exists()


def test_parameters_of_another_model_or_not_finite_are_refused(tmp_path: Path) -> None:
    good = some_parameters()
    with pytest.raises(BundleError, match="conv/bias"):
        write_bundle(BASE, good | {"conv/bias": np.zeros(2, np.float32)}, tmp_path, version="1.1.0")
    with pytest.raises(BundleError, match="not finite"):
        write_bundle(BASE, good | {"conv/bias": np.full_like(good["conv/bias"], np.nan)}, tmp_path, version="1.1.0")
    assert not list(tmp_path.iterdir())


def test_a_version_that_no_component_could_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="version"):
        write_bundle(BASE, some_parameters(), tmp_path, version="1.7")


def test_constants_that_do_not_cover_the_parameters_are_refused(tmp_path: Path) -> None:
    constants = BASE.manifest.constants
    lacking = Bundle(BASE.folder, BASE.manifest.model_copy(update={"constants": constants[1:]}))
    with pytest.raises(BundleError, match=constants[0].parameter):
        write_bundle(lacking, some_parameters(), tmp_path, version="1.1.0")
    beyond = constants[0].model_copy(update={"offset": 1 << 40})
    outside = Bundle(BASE.folder, BASE.manifest.model_copy(update={"constants": (beyond, *constants[1:])}))
    with pytest.raises(BundleError, match="does not fit"):
        write_bundle(outside, some_parameters(), tmp_path, version="1.1.0")

"""An export that would train otherwise than Keras does not succeed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from fedgrass.authoring import losses  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402
from fedgrass.authoring.export import export  # noqa: E402


def model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")], name="net")


def test_a_sound_export_says_and_keeps_how_far_it_is_from_keras(tmp_path: Path) -> None:
    said: list[str] = []
    written = export(model(), tmp_path, loss="mse", batch_size=4, optimizer="adam", tell=said.append)
    found = written.manifest.self_test
    assert found is not None
    assert found.loss is not None
    assert found.loss < 1e-5
    assert "largest differences" in said[-1]
    assert written.manifest.loss == "mean_squared_error"
    assert written.manifest.optimizer.rate == pytest.approx(0.001)


def test_a_gradient_that_is_wrong_by_a_hundredth_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = losses._LOSSES["mean_squared_error"]

    def wrong(*arguments: Any) -> losses.PerExample:
        found = sound(*arguments)
        return dataclasses.replace(found, gradient=1.01 * found.gradient)

    monkeypatch.setitem(losses._LOSSES, "mean_squared_error", wrong)
    with pytest.raises(UnsupportedModelError, match=r"head/\w+: a training that would differ.*--no-self-test"):
        export(model(), tmp_path / "bundle", loss="mse", batch_size=4)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "adagrad"])
def test_so_is_it_where_the_optimizer_hides_the_gradients_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Adam's first steps are the gradients' signs: parameters alone would say nothing."""
    sound = losses._LOSSES["mean_squared_error"]

    def wrong(*arguments: Any) -> losses.PerExample:
        found = sound(*arguments)
        return dataclasses.replace(found, gradient=1.01 * found.gradient)

    monkeypatch.setitem(losses._LOSSES, "mean_squared_error", wrong)
    with pytest.raises(UnsupportedModelError, match=r"head/\w+: a training that would differ"):
        export(model(), tmp_path / "bundle", loss="mse", batch_size=4, optimizer=optimizer)


def test_what_rounding_decides_refuses_no_sound_model(tmp_path: Path) -> None:
    """A bias before a normalization has a gradient of rounding alone, whose sign is Adam's step."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.ReLU(), layers.Dense(2)], name="net"
    )
    written = export(net, tmp_path, loss="mse", batch_size=8, optimizer="adam")
    assert written.manifest.self_test is not None
    assert written.manifest.self_test.parameters is not None
    assert written.manifest.self_test.parameters < 1e-4


@pytest.mark.parametrize(("length", "words", "batch"), [(8, 50, 4), (64, 2000, 16)])
def test_a_text_classifier_with_adam_is_created(tmp_path: Path, length: int, words: int, batch: int) -> None:
    from fedgrass.authoring.create import create_bundle

    written = create_bundle(
        "text-classifier", (length,), tmp_path, classes=("a", "b"), vocabulary=words, optimizer="adam", batch_size=batch
    )
    assert written.manifest.self_test is not None

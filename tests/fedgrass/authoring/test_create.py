"""Default architectures: each is exported, trains on a device's engine, and learns what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import ConfigurationError
from fedgrass.tensors import Array

pytest.importorskip("tensorflow")

from fedgrass.authoring.create import build_model, create, create_bundle

pytestmark = pytest.mark.authoring


def stripes(count: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Images of horizontal, vertical or no stripes."""
    y = generator.integers(0, 3, count)
    wave = np.sin(np.arange(12) * 2 + generator.uniform(0, 6, (count, 1)))
    x = generator.normal(0, 0.2, (count, 12, 12, 1))
    x[y == 0, ..., 0] += wave[y == 0, :, None]
    x[y == 1, ..., 0] += wave[y == 1, None, :]
    return x, y


def product(count: int, generator: np.random.Generator) -> tuple[Array, Array]:
    x = generator.uniform(-1, 1, (count, 3))
    return x, np.stack([x[:, 0] * x[:, 1], x[:, 2] ** 2], axis=1)


def waves(count: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Fast or slow oscillations of unknown phase."""
    y = generator.integers(0, 2, count)
    phase = np.arange(40)[None, :] * np.where(y, 1.2, 0.5)[:, None] + generator.uniform(0, 6, (count, 1))
    return np.stack([np.sin(phase), np.cos(phase)], axis=-1) + generator.normal(0, 0.3, (count, 40, 2)), y


@pytest.mark.parametrize(
    ("task", "shape", "classes", "outputs", "make"),
    [
        ("image-classifier", (12, 12, 1), ("rows", "columns", "none"), 1, stripes),
        ("regressor", (3,), (), 2, product),
        ("time-series", (40, 2), ("slow", "fast"), 1, waves),
    ],
)
def test_a_created_model_learns_on_a_device(
    tmp_path: Path, task: Any, shape: tuple[int, ...], classes: tuple[str, ...], outputs: int, make: Callable[..., Any]
) -> None:
    bundle = create_bundle(task, shape, tmp_path, classes=classes, outputs=outputs, name="mine")
    assert (bundle.manifest.class_names, bundle.manifest.name) == (classes, "mine")
    dtype = np.int32 if classes else np.float32
    parts = [
        (x.astype(np.float32), y.astype(dtype))
        for x, y in (make(count, np.random.default_rng(count)) for count in (1500, 300))
    ]
    train, kept = (ArrayDataset(x, y) for x, y in parts)
    engine = LiteRTEngine(Bundle.open(tmp_path))
    engine.fit(train, FitSettings(epochs=8, learning_rate=0.05))
    found = engine.evaluate(kept)
    if classes:
        assert found["accuracy"] > 0.9
    else:
        assert found["loss"] < 0.1 * float(np.var(parts[1][1]))


def test_the_command_writes_a_bundle_and_says_what_to_do_next(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(create)
    arguments = ["tabular-classifier", "--input-shape", "8", "--classes", "cat,dog", "--output", str(tmp_path / "new")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "fedgrass model publish" in result.output
    bundle = Bundle.open(tmp_path / "new")
    bundle.verify()
    assert bundle.manifest.class_names == ("cat", "dog")
    assert bundle.manifest.x.shape == (8,)


@pytest.mark.parametrize(
    ("task", "shape", "classes", "message"),
    [
        ("image-classifier", (28, 28), ("a", "b"), "takes 3 whole numbers"),
        ("image-classifier", (28, 0, 1), ("a", "b"), "at least 1"),
        ("tabular-classifier", (4,), ("a",), "at least 2"),
        ("regressor", (4,), ("a", "b"), "a regressor has none"),
    ],
)
def test_what_a_task_does_not_take_is_refused(
    tmp_path: Path, task: Any, shape: tuple[int, ...], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_bundle(task, shape, tmp_path / "new", classes=classes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 40, 1), (28, 28, 1), (224, 224, 3)])
def test_images_of_any_size_get_a_small_model(shape: tuple[int, ...]) -> None:
    model = build_model("image-classifier", shape, outputs=2, classifies=True)
    assert model.output_shape == (None, 2)
    assert model.count_params() < 300_000

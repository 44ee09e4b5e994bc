"""What an export says of the data: columns, and the pixels that a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

keras = pytest.importorskip("keras", reason="TensorFlow is not installed: pip install 'fedgrass[authoring]'")

from fedgrass.authoring.commands import _check_options  # noqa: E402
from fedgrass.authoring.export import export  # noqa: E402
from fedgrass.authoring.pixels import pixel_range  # noqa: E402
from fedgrass.errors import ConfigurationError  # noqa: E402

pytestmark = pytest.mark.authoring

LAYERS = keras.layers


def net(*layers: Any, shape: tuple[int, ...] = (8, 8, 3)) -> Any:
    return keras.Sequential([keras.Input(shape), *layers, LAYERS.Flatten(), LAYERS.Dense(2)])


def test_a_model_that_scales_its_images_takes_bytes() -> None:
    assert pixel_range(net(LAYERS.Rescaling(1 / 255))) == (0, 255)
    assert pixel_range(net(LAYERS.RandomFlip(), LAYERS.Resizing(4, 4), LAYERS.Rescaling(1 / 127.5, offset=-1))) == (
        0,
        255,
    )
    assert pixel_range(net(keras.Sequential([keras.Input((8, 8, 3)), LAYERS.Rescaling(1 / 255)]))) == (0, 255)
    assert pixel_range(net(LAYERS.Normalization(mean=[120, 120, 120], variance=[60, 60, 60]))) == (0, 255)
    assert pixel_range(net(LAYERS.Rescaling(2.0, offset=-1))) is None
    assert pixel_range(net(LAYERS.Conv2D(2, 3), LAYERS.Rescaling(1 / 255))) is None
    assert pixel_range(net()) is None
    assert pixel_range(Path("saved_model")) is None


def test_keras_applications_with_their_scaling_inside_take_bytes() -> None:
    whole = keras.applications.MobileNetV3Small(input_shape=(32, 32, 3), weights=None, classes=2)
    assert pixel_range(whole) == (0, 255)
    bare = keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=2)
    assert pixel_range(bare) is None


def test_what_is_said_of_the_data_stands_in_the_bundle(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), LAYERS.Dense(1)])
    said: list[str] = []
    bundle = export(
        model,
        tmp_path / "table",
        loss="mean_squared_error",
        batch_size=2,
        data={"columns": ("heat", "load"), "labels": ("wear",), "means": (20.0, 0.5)},
        prove=False,
        tell=said.append,
    )
    found = bundle.manifest.data
    assert (found.columns, found.labels, found.means, found.pixels) == (("heat", "load"), ("wear",), (20.0, 0.5), None)
    pictures = keras.Sequential([keras.Input((4, 4, 1)), LAYERS.Rescaling(1 / 255), LAYERS.Flatten(), LAYERS.Dense(1)])
    made = export(pictures, tmp_path / "images", loss="mean_squared_error", batch_size=2, prove=False, tell=said.append)
    assert made.manifest.data.pixels == (0, 255)
    assert any("pixels of 0 to 255" in line for line in said)


@pytest.mark.parametrize("data", [{"columns": "heat"}, {"means": ["warm"]}, {"pixels": 255}, {"colums": ["heat"]}, []])
def test_what_cannot_be_said_of_the_data_is_refused_by_name(data: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"EXPORT\['data'\].*; expected columns, labels, means, pixels"):
        _check_options(Path("net.py"), {"data": data})

"""``fedgrass model export`` takes every kind of file that it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedgrass.authoring.commands import export
from fedgrass.bundle import Bundle
from fedgrass.errors import ConfigurationError

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
layers = keras.layers

app = typer.Typer()
app.command()(export)

PYTHON = """
import keras

EXPORT = {"loss": "mean_squared_error", "batch_size": 7, "class_names": ("a", "b", "c")}

def build_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head", activation="softmax")], name="net")
"""


def model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), layers.Dense(3, name="head", activation="softmax")], name="net")


@pytest.mark.parametrize(
    ("file", "save"),
    [
        ("net.keras", lambda path: model().save(path)),
        ("net.py", lambda path: path.write_text(PYTHON)),
        ("net", lambda path: model().export(path, verbose=False)),
    ],
    ids=["keras", "python", "SavedModel"],
)
def test_a_model_in_any_kind_of_file_becomes_a_bundle(tmp_path: Path, file: str, save: Callable[[Path], Any]) -> None:
    save(tmp_path / file)
    options = ["--loss", "sparse_categorical_crossentropy", "--batch-size", "4", "--optimizer", "momentum"]
    output = ["--output", str(tmp_path / "bundle"), "--version", "2.3.4"]
    found = CliRunner().invoke(app, [str(tmp_path / file), *options, *output])
    assert found.exit_code == 0, found.output
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.verify()
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.batch_size) == ("net", "2.3.4", 4)
    assert (manifest.loss, manifest.optimizer.name) == ("sparse_categorical_crossentropy", "momentum")
    assert manifest.class_names == (("a", "b", "c") if file == "net.py" else ())
    assert {name: value.tolist() for name, value in bundle.parameters().items()} == {
        f"head/{variable.name}": variable.numpy().tolist() for variable in model().trainable_variables
    }


def own_loss(y: Any, z: Any) -> Any:
    return keras.ops.mean((y - z) ** 4)


@pytest.mark.parametrize("own", ["loss", "metric"])
def test_a_part_of_its_own_does_not_take_the_rest_that_a_model_was_compiled_with(tmp_path: Path, own: str) -> None:
    made = model()
    loss = own_loss if own == "loss" else keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    made.compile(keras.optimizers.Adam(3e-4, clipnorm=0.5), loss, metrics=[own_loss])
    made.save(tmp_path / "net.keras")
    given = ["--loss", "mse"] if own == "loss" else []
    options = [str(tmp_path / "net.keras"), *given, "--batch-size", "4", "--output", str(tmp_path / "bundle")]
    found = CliRunner().invoke(app, [*options, "--no-self-test"])
    assert found.exit_code == 0, found.output
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.optimizer.name, manifest.optimizer.rate, manifest.optimizer.clipnorm) == ("adam", 3e-4, 0.5)
    if own == "loss":
        assert "loss 'own_loss', which the model was compiled with, cannot be loaded and is not taken" in found.output
    else:
        assert (manifest.loss, manifest.loss_options.label_smoothing) == ("categorical_crossentropy", 0.1)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("net.keras", "not a zip archive", "net.keras: Keras cannot load it"),
        ("net.py", "x = 1", r"net.py: has no function build_model\(\)"),
        ("net.py", "x = 1\nimport nothing_of_this_name", r"net.py:2: it cannot be run \(ModuleNotFoundError"),
        ("net.py", "def build_model(:", r"net.py:1: it cannot be run \(SyntaxError"),
        ("net.py", "raise SystemExit(3)", r"net.py:1: it cannot be run \(SystemExit"),
        ("net.py", "def build_model(): pass", r"build_model\(\) returns None; end it with return model"),
        ("net.py", "def build_model():\n    return {}['a']", r"net.py:2: build_model\(\) fails \(KeyError"),
        ("net.py", "EXPORT = ['huber']\ndef build_model(): return 1", "EXPORT is a list; expected a dictionary"),
        ("net.py", "EXPORT = {'epochs': 3}\ndef build_model(): return 1", "EXPORT has 'epochs', which is not known"),
        ("net.py", "EXPORT = {'class_weight': {}}\ndef build_model(): return 1", "EXPORT has 'class_weight'"),
        (
            "net.py",
            "EXPORT = {'class_names': 'ab'}\ndef build_model(): return 1",
            "'class_names'. is 'ab'; expected a list",
        ),
        (
            "net.py",
            "EXPORT = {'batch_size': '4'}\ndef build_model(): return 1",
            "'batch_size'. is '4'; expected a whole",
        ),
        ("net.py", "EXPORT = {'learning_rate': -1}\ndef build_model(): return 1", "'learning_rate'. is -1; expected"),
        ("net.h5", "", "net.h5: expected a .keras file"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    arguments = [str(tmp_path / file), "--loss", "huber", "--batch-size", "4"]
    found = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "bundle")])
    assert found.exit_code != 0
    assert isinstance(found.exception, ConfigurationError)
    assert re.search(message, str(found.exception))


@pytest.mark.parametrize(
    ("options", "local"),
    [
        (["--local", "head"], ["last/kernel", "last/bias"]),
        (["--local", "bn"], ["norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance"]),
        (["--local", "first/bias", "--local", "last"], ["first/bias", "last/kernel", "last/bias"]),
    ],
)
def test_what_devices_keep_for_themselves_is_marked_and_said(
    tmp_path: Path, options: list[str], local: list[str]
) -> None:
    shape, first, last = keras.Input((4,)), layers.Dense(3, name="first"), layers.Dense(2, name="last")
    net = keras.Sequential([shape, first, layers.BatchNormalization(name="norm"), last], name="net")
    net.save(tmp_path / "net.keras")
    arguments = [
        str(tmp_path / "net.keras"),
        "--loss",
        "mse",
        "--batch-size",
        "4",
        "--output",
        str(tmp_path / "bundle"),
    ]
    found = CliRunner().invoke(app, [*arguments, *options])
    assert found.exit_code == 0, found.output
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert {parameter.name for parameter in manifest.local_parameters} == set(local)
    assert f"local: {', '.join(manifest.local or ())} stay on each device" in found.output
    refused = CliRunner().invoke(app, [*arguments, "--local", "none"])
    assert "names no parameter; the layers that train are first, norm, last" in str(refused.exception)

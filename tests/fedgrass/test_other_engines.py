"""The API and the commands with models that LiteRT does not train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

import fedgrass
from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.cli import cli
from fedgrass.engines.sklearn import initial_parameters
from fedgrass.errors import EngineError, FedgrassError
from tests.fedgrass.engines.models import digits_bundle

HERE = "tests.fedgrass.test_other_engines"
DRAW = np.random.default_rng(2)
X = DRAW.normal(size=(200, 3)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5] > 0).astype(np.int32)


def build() -> LogisticRegression:
    return LogisticRegression(C=2.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    y = TensorDescription(name="y", shape=(), dtype="int32")
    return new_bundle(
        tmp_path / "bundle",
        NewModel(
            engine="sklearn",
            name="sides",
            parameters=initial_parameters(build, features=3, classes=2),
            batch_size=16,
            x=TensorDescription(name="x", shape=(3,), dtype="float32"),
            y=y,
            output=TensorDescription(name="y", shape=(2,), dtype="float32"),
            loss="sparse_categorical_crossentropy",
        ),
    )


def trained(bundle: Bundle, folder: Path) -> tuple[Bundle, Any]:
    """Two devices and an aggregation by the API; returns the new model, and the plain mean of scikit-learn's own fits."""
    own = []
    for number, part in enumerate((slice(0, 100), slice(100, 200))):
        np.savez(folder / "data.npz", x=X[part], y=Y[part])
        data = fedgrass.load_data(bundle, folder / "data.npz", validation_fraction=0.0)
        fedgrass.train(bundle, data, folder / "updates" / f"d{number}.safetensors", thing=f"d{number}", builder=build)
        own.append(build().fit(X[part].astype(float), Y[part]))
    fedgrass.aggregate(bundle.folder, folder / "updates", folder / "next", fedgrass.strategy("fedavg"))
    mean = build().fit(X, Y)
    mean.coef_ = np.mean([model.coef_ for model in own], axis=0)
    mean.intercept_ = np.mean([model.intercept_ for model in own], axis=0)
    return fedgrass.open_bundle(folder / "next"), mean


def test_the_api_and_the_commands_take_a_bundles_own_engine(bundle: Bundle, tmp_path: Path) -> None:
    model, mean = trained(bundle, tmp_path)
    np.savez(tmp_path / "all.npz", x=X, y=Y)
    data = fedgrass.load_data(model, tmp_path / "all.npz", validation_fraction=0.0)
    figures = fedgrass.evaluate(model, data.train, builder=build)
    assert figures["accuracy"] == pytest.approx(mean.score(X, Y), abs=0.006)
    shown = CliRunner().invoke(
        cli,
        ["model", "evaluate", str(model.folder), str(tmp_path / "all.npz"), "--builder", f"{HERE}:build", "--json"],
        catch_exceptions=False,
    )
    told = json.loads(shown.stdout)
    assert told == pytest.approx(dict(figures))
    with pytest.raises(EngineError, match="'builder' is not set"):
        fedgrass.evaluate(model, data.train)


def test_a_model_becomes_the_estimator_that_scikit_learn_users_load(bundle: Bundle, tmp_path: Path) -> None:
    model, mean = trained(bundle, tmp_path)
    file = tmp_path / "exports" / "sides.joblib"
    command = ["model", "convert", str(model.folder), str(file), "--builder", f"{HERE}:build"]
    shown = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert "wrote" in shown.stdout
    loaded = joblib.load(file)  # our own
    assert type(loaded) is LogisticRegression
    np.testing.assert_allclose(loaded.predict_proba(X), mean.predict_proba(X), atol=1e-5)
    refused = CliRunner().invoke(cli, [*command[:3], str(tmp_path / "sides.onnx"), *command[4:]])
    assert isinstance(refused.exception, EngineError)
    assert "writes .joblib (scikit-learn)" in str(refused.exception)
    litert = CliRunner().invoke(cli, ["model", "convert", "examples/digits/bundle", str(tmp_path / "m.pt2")])
    assert "inference.tflite" in str(litert.exception)


def test_code_is_packed_into_the_bundle_if_it_builds_its_model(bundle: Bundle, tmp_path: Path) -> None:
    code = tmp_path / "code" / "of_sides.py"
    code.parent.mkdir()
    command = ["model", "pack", str(bundle.folder), str(code.parent), "--builder", "of_sides:build"]
    text = "from sklearn.linear_model import LinearRegression\n\ndef build():\n    return LinearRegression()\n"
    code.write_text(text)
    wrong = CliRunner().invoke(cli, command)
    assert isinstance(wrong.exception, FedgrassError)
    assert not (bundle.folder / "builder.zip").exists()
    code.write_text(text.replace("LinearRegression", "LogisticRegression"))
    shown = CliRunner().invoke(cli, command, catch_exceptions=False)
    packed = Bundle.open(bundle.folder)
    packed.verify()
    assert packed.manifest.files["builder.zip"].sha256 in shown.stdout
    assert packed.manifest.graph_sha256 == bundle.manifest.graph_sha256


def test_a_torch_model_becomes_a_program_that_runs_without_its_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from fedgrass.engines.torch import TorchEngine
    from fedgrass.engines.torch import initial_parameters as first

    builder = "tests.fedgrass.engines.models:torch_module"
    made = digits_bundle(tmp_path / "bundle", "torch", first(builder))
    engine = TorchEngine(made, builder=builder)
    engine.save(tmp_path / "digits.pt2")
    engine.save(tmp_path / "digits.pt")
    x = DRAW.random((7, 8, 8, 1), np.float32)
    code = f"import sys, torch; m = torch.export.load({str(tmp_path / 'digits.pt2')!r}).module(); "
    code += f"torch.save(m(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r}); "
    code += "assert not any(n.startswith(('fedgrass', 'tests')) for n in sys.modules)"
    torch.save(torch.from_numpy(x), tmp_path / "x.pt")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    given = torch.softmax(torch.load(tmp_path / "y.pt"), 1).detach().numpy()
    np.testing.assert_allclose(given, engine._outputs(x), atol=1e-5)
    assert set(torch.load(tmp_path / "digits.pt", weights_only=True)) >= set(made.parameters())
    with pytest.raises(EngineError, match=r"\.pt2"):
        engine.save(tmp_path / "digits.onnx")

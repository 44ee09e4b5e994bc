"""The package of docs/how-to/extend.md, installed as it stands there: one part of each kind, and each does what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.data.arrays import ArrayDataset
from fedgrass.data.loaders import open_source
from fedgrass.data.loaders.described import loader_of
from fedgrass.data_settings import DataSettings
from fedgrass.engines.base import FitSettings
from fedgrass.engines.registry import open_engine
from fedgrass.errors import ConfigurationError, DataError, EngineError
from fedgrass.protocol.messages import UpdateTask
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.attacks import Seen, attack_named
from fedgrass.strategies import STRATEGIES, strategy_named
from fedgrass.update.writer import encode_update
from tests.fedgrass.cloud.aggregator.conftest import header
from tests.fedgrass.cloud.aggregator.updates import flat, tiny_model, update_of
from tests.fixtures.places import ROOT

pytestmark = pytest.mark.xdist_group("extend")  # which one distribution serves

PAGE = (ROOT / "docs/how-to/extend.md").read_text()


def install(folder: Path, distribution: str, entry_points: str) -> None:
    """What pip leaves of a package beside its files."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's package, on the path."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "acme").mkdir()
    (folder / "acme/__init__.py").write_text('"""Parts for fedgrass."""\n')
    blocks = re.findall(r"^## An? ([^\n]+)$.*?```python\n(.*?)```", PAGE, re.M | re.S)
    for kind, source in blocks:
        (folder / f"acme/{kind.replace(' ', '_')}.py").write_text(source)
    (text,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    install(folder, "acme", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for module in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[module]


def fedgrass(packages: Path, *arguments: str) -> str:
    """What a command prints where the package is installed; it must succeed."""
    path = os.pathsep.join([str(packages), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "from fedgrass.cli import app; app()", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["fedpower", "acme.strategy:FedPower"])
def test_a_strategy(acme: Path, tmp_path: Path, name: str) -> None:
    base = tiny_model(tmp_path / "base", 30, 10)
    deltas = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    deltas /= np.linalg.norm(deltas, axis=1)[:, None]  # so that no bound changes one
    (tmp_path / "updates").mkdir()
    for index, delta in enumerate(deltas):
        content = update_of(base, f"t{index}", delta, num_examples=index + 1)
        (tmp_path / f"updates/t{index}.safetensors").write_bytes(content)
    fedgrass(
        acme,
        *("aggregate", "--base", str(base.folder), "--updates", str(tmp_path / "updates")),
        *("--strategy", name, "--option", "power=0.25", "--output", str(tmp_path / "new")),
    )
    weights = np.arange(1, 4) ** 0.25
    wanted = np.average(deltas.astype(np.float64), axis=0, weights=weights)
    found = flat(Bundle.open(tmp_path / "new").parameters())
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_strategy_s_settings(acme: Path) -> None:
    named = FleetSettings.model_validate({"strategy": {"name": "fedpower", "options": {"power": 1}}}).strategy
    assert not named.uses_one_instance
    with pytest.raises(ValueError, match="less than or equal to 1"):
        FleetSettings.model_validate({"strategy": {"name": "fedpower", "options": {"power": 2}}})
    with pytest.raises(ConfigurationError, match=r"'fedpower': option pover: .* Its options are clip, power"):
        strategy_named("fedpower", pover=1)
    assert STRATEGIES.installed() == ("fedpower",)
    with pytest.raises(ConfigurationError, match=r"expected one of bulyan, .*trust, fedpower, or module:Class"):
        strategy_named("fedmagic")


@pytest.mark.parametrize("codec", ["bfloat16", "topk:0.5+bfloat16+zstd"])
def test_a_codec(acme: Path, tmp_path: Path, codec: str) -> None:
    """From the settings over a device's file into the model."""
    assert FleetSettings.model_validate({"update": {"codec": codec}}).update.codec == codec
    base = tiny_model(tmp_path / "base", 30, 10)
    delta = np.random.default_rng(2).normal(size=40).astype(np.float32)
    delta[:3] = 0, np.float32(3e38), -np.float32(1e-40)
    local = {"w0": delta[:30], "w1": delta[30:]}
    content = encode_update(
        base.parameters(), local, header(base, "a", codec=codec), UpdateTask(codec=codec)
    ).to_bytes()
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates/a.safetensors").write_bytes(content)
    (tmp_path / "updates/longer.safetensors").write_bytes(content + b"0")
    said = fedgrass(
        acme,
        *("aggregate", "--base", str(base.folder), "--updates", str(tmp_path / "updates")),
        *("--output", str(tmp_path / "new")),
    )
    assert "1 updates, 1 refused" in said, "the longer one"
    found = flat(Bundle.open(tmp_path / "new").parameters())
    sent = found != 0
    np.testing.assert_allclose(found[sent], delta[sent], rtol=2.0**-7)
    assert sent.sum() >= (38 if codec == "bfloat16" else 20)


def test_an_attack(acme: Path) -> None:
    attack = attack_named("mirror")
    seen = Seen(np.array([1.0, 2.0]), np.array([[2.0, 2.0], [4.0, 2.0]]), 2.0, np.random.default_rng(0))
    assert attack.omniscient
    assert attack.craft is not None
    assert attack.craft(seen).tolist() == [-3.0, 2.0]


def test_a_simulation_with_parts_of_ones_own(acme: Path, tmp_path: Path) -> None:
    fedgrass(
        acme,
        *("simulate", "--rounds", "1", "--devices", "8", "--cohort", "6", "--workers", "1", "--output", str(tmp_path)),
        *("--strategy", "fedpower:power=0.5", "--attack", "mirror:0.2", "--codec", "bfloat16"),
    )
    (found,) = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert found["report"]["strategy"] == "fedpower"
    assert len(found["report"]["updates"]) == 6


def test_a_loader_and_an_engine(acme: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=(20, 3)).astype(np.float32)
    y = np.arange(20) % 5
    np.savetxt(tmp_path / "examples.txt", np.column_stack([x, y]))
    bundle = new_bundle(
        tmp_path / "bundle",
        NewModel(
            engine="keras",
            name="linear",
            parameters={"w": np.zeros((3, 1), np.float32)},
            x=TensorDescription(name="x", shape=(3,), dtype="float32"),
            y=TensorDescription(name="y", shape=(1,), dtype="float32"),
            output=TensorDescription(name="output", shape=(1,), dtype="float32"),
            loss="mean_squared_error",
            batch_size=20,
        ),
    )
    settings = DataSettings(loader="plain_text", path=str(tmp_path / "examples.txt"))
    source = open_source(settings, bundle.manifest)
    assert len(source) == 20
    engine = open_engine("linear", bundle)
    data = ArrayDataset(x, y.astype(np.float32)[:, None])
    found = engine.fit(data, FitSettings(epochs=1, learning_rate=0.1)).parameters["w"]
    np.testing.assert_allclose(found, 0.1 * x.T @ y[:, None] / 20, rtol=1e-4)
    with pytest.raises(DataError, match="larger than maxBytes"):
        open_source(DataSettings(loader="plain_text", path=settings.path, max_bytes=10), bundle.manifest)
    assert loader_of(tmp_path / "examples.numbers") == "plain_text"
    with pytest.raises(DataError, match="the plain_text loader has no window"):
        open_source(DataSettings(loader="plain_text", path=settings.path, window_rows=5), bundle.manifest)
    with pytest.raises(
        DataError,
        match="expected one of csv, images, jsonl, npy, npz, own, parquet, sounds, sqlite, texts, plain_text, or module:function",
    ):
        open_source(DataSettings(loader="plain_texts"), bundle.manifest)
    with pytest.raises(EngineError, match="expected one of flower, keras, litert, sklearn, torch, linear"):
        open_engine("linar", bundle)


PRODUCT = """
import keras

class Joint(keras.layers.Layer):
    def call(self, x):
        return keras.ops.prod(keras.ops.sigmoid(x), axis=-1, keepdims=True)

def build_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Joint(), keras.layers.Dense(2)])

EXPORT = {"loss": "mean_squared_error", "batch_size": 5, "learning_rate": 0.1}
"""


@pytest.mark.authoring
def test_a_gradient(acme: Path, tmp_path: Path) -> None:
    """A layer that is refused without the package is exported with it, and trains as in Keras."""
    (tmp_path / "model.py").write_text(PRODUCT)
    export = ("model", "export", str(tmp_path / "model.py"), "--output", str(tmp_path / "bundle"))
    said = fedgrass(acme, *export)
    assert "largest differences from the framework's: loss" in said
    with pytest.raises(AssertionError, match=r"(?s)layer .joint. .*in place of ops.prod"):
        fedgrass(tmp_path, *export)


def test_what_other_packages_cannot_register(acme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in name, a name that another has, a name that is none, and what is no such part."""
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = {
        "fedavg": "acme.strategy:FedPower",
        "fedpower": "subprocess:Popen",
        "../Fed": "acme.strategy:FedPower",
        "popen": "subprocess:Popen",
        "gone": "acme.nowhere:FedPower",
    }
    lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
    install(tmp_path, "other", f"[fedgrass.strategies]\n{lines}")
    assert type(strategy_named("fedavg")).__module__ == "fedgrass.strategies.fedavg"
    assert STRATEGIES.installed() == ("fedpower", "gone", "popen")
    for name, problem in {
        "fedpower": "registered as acme.strategy:FedPower and as subprocess:Popen",
        "../Fed": "expected one of",
        "popen": "is not a subclass of fedgrass.strategies.base.Strategy",
        "gone": "cannot be imported",
    }.items():
        with pytest.raises(ConfigurationError, match=problem):
            strategy_named(name)

"""Devices of the same fleet with other engines than LiteRT: the code comes with the model, the packages are the machine's own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedgrass import data
from fedgrass.builder_archive import add_builder, builder_sha256, pack_builder
from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.release import publish_model
from fedgrass.cloud.ending.deployment import configure
from fedgrass.data import DataSettings
from fedgrass.inference import write_bundle
from fedgrass.protocol.names import RUNTIME
from tests.end_to_end.conftest import Operator
from tests.fedgrass.engines.models import digits_bundle
from tests.fixtures.waiting import PATIENCE, eventually

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("fleet")]

SKLEARN = """
from sklearn.linear_model import LogisticRegression

def build():
    return LogisticRegression(max_iter=300)
"""
TORCH = """
import torch

def build():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def folders(*modules: str) -> list[str]:
    """Where this machine has packages, as a device's maker may put them in a place of their own."""
    found = [importlib.util.find_spec(name) for name in modules]
    return list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin))


def configured(operator: Operator, **settings: object) -> None:
    clients = operator.demo.clients()
    assert configure(clients.greengrass, clients.thing_group_arn, RUNTIME, settings)


def next_major(operator: Operator) -> str:
    return f"{int(operator.model.partition('.')[0]) + 1}.0.0"


@contextmanager
def published(operator: Operator, engine: str, bundle: Bundle, code: str, packages: list[str]) -> Iterator[str]:
    """Have the fleet train a model of another engine, as its operator does by hand; give the version that devices have."""
    [device, *_] = operator.fleet.devices.values()
    before = Bundle.open((device.store / "active").resolve())
    parameters = before.parameters()
    module = bundle.folder.parent / f"digits_by_{engine}.py"
    module.write_text(code)
    version = next_major(operator)
    configured(operator, packages=packages)
    try:
        packed = add_builder(bundle, pack_builder(module))
        builder = f"{module.stem}:build"
        done = operator.command("model", "publish", str(packed.folder), "--version", version, "--builder", builder)
        assert done.returncode == 0, done.stderr
        assert json.dumps({"engine": engine, "builders": {builder_sha256(packed): builder}}) in done.stdout
        eventually(lambda: operator.active_versions() == {version}, f"{version} on every device")
        yield version
    finally:
        configured(operator, engine="litert", packages=[])
        again = write_bundle(before, parameters, bundle.folder.parent / "before", version=next_major(operator))
        publish_model(again, operator.demo.clients())
        eventually(lambda: operator.active_versions() == {again.manifest.version}, "the former model on every device")


def released(operator: Operator) -> Bundle:
    """Run a round that devices judge, and return the version that they came to."""
    record = operator.run_round(gate={"devices_seconds": int(PATIENCE)}, update={"codec": "float32"})
    assert (record.outcome, record.uploaded, record.active) == ("released", 2, 2), record.reason
    assert {part.thing for part in operator.parts(record) if part.metrics} == {"device-1", "device-2"}
    assert operator.active_versions() == {record.version}
    return Bundle.open((operator.fleet.devices["device-1"].store / "active").resolve())


def test_devices_train_scikit_learn_by_code_that_came_with_the_model(operator: Operator, tmp_path: Path) -> None:
    zeros = {"coef": np.zeros((10, 64), np.float32), "intercept": np.zeros(10, np.float32)}
    bundle = digits_bundle(tmp_path / "bundle", "sklearn", zeros)
    with published(operator, "sklearn", bundle, SKLEARN, folders("sklearn")):
        new = released(operator)
        rows, counts = [], []
        for device in operator.fleet.devices.values():
            settings = DataSettings(loader="npz", path=str(device.folder / "data" / "data.npz"))
            [batch] = data.load(settings, bundle.manifest).train.batches(100_000)
            alone = LogisticRegression(max_iter=300).fit(batch.x.reshape(len(batch.x), -1), batch.y)
            rows.append(np.zeros((10, 64)))  # a class that a device lacks has no coefficients there
            rows[-1][alone.classes_] = alone.coef_
            counts.append(len(batch.y))
    expected = np.average(rows, axis=0, weights=counts)
    # The solver stops near its optimum, and coefficients are up to 1.9.
    np.testing.assert_allclose(new.parameters()["coef"], expected, atol=0.05)


def test_devices_train_pytorch_by_code_that_came_with_the_model(operator: Operator, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: scripts/torch_tests tries it")
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    first = {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
    bundle = digits_bundle(tmp_path / "bundle", "torch", first)
    with published(operator, "torch", bundle, TORCH, folders("torch", "sympy", "jinja2", "typing_extensions")):
        new = released(operator)
    kept = np.load(operator.fleet.folder / "kept.npz")

    def accuracy(parameters: dict[str, np.ndarray]) -> float:
        net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in parameters.items()})
        return float((net(torch.from_numpy(kept["x"])).argmax(1).numpy() == kept["y"]).mean())

    assert accuracy(new.parameters()) > accuracy(first) + 0.3

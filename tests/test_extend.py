"""The package of docs/how-to/extend.md, installed as it stands there: one part of each kind, and each does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.strategies import STRATEGIES, strategy_named
from tests.fedgrass.cloud.aggregator.updates import flat, tiny_model, update_of
from tests.fixtures.places import ROOT

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
        "popen": "is no subclass of fedgrass.strategies.base.Strategy",
        "gone": "cannot be imported",
    }.items():
        with pytest.raises(ConfigurationError, match=problem):
            strategy_named(name)

"""Flower apps run from their directories: messages and legacy ones, their own rounds, and what is said of faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedgrass.errors import ConfigurationError, EngineError
from fedgrass.simulation.flower.commands import app
from fedgrass.simulation.flower.run import run_app

pytest.importorskip("flwr", reason="flwr is not installed: scripts/torch_tests tries it")

PROJECT = Path(__file__).parents[1] / "engines" / "flower_project"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the app under a package of its own, so that no test has imported another's."""
    name = f"app_{abs(hash(tmp_path))}"
    shutil.copytree(PROJECT / "counting", tmp_path / "app" / name)
    (tmp_path / "app/pyproject.toml").write_text(
        (PROJECT / "pyproject.toml").read_text().replace("counting.", f"{name}.")
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "app"


def edit(project: Path, file: str, old: str, new: str) -> None:
    [path] = project.rglob(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_app_runs_with_its_own_strategy_rounds_and_queries(project: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(project), "--devices", "3", "--workers", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["messages"] == {"query": 3, "train": 6, "evaluate": 6}
    assert (found["devices"], found["failed"]) == (3, 0)
    np.testing.assert_array_equal(np.load("model.npy"), np.full((2, 3), 1.0, np.float32))
    known, trained, judged = Path("result.txt").read_text().splitlines()
    assert known == "[0, 1, 2]"
    # The state of each device counts its rounds, whichever process it was in; configuration keeps its types.
    assert (
        "2: {'train_loss': 0.25, 'calls': 2.0, 'total': 2.0, 'partition': 1.0, 'epochs': 1.0, 'typed': 1.0}" in trained
    )
    assert judged == "{0: {'mean': 0.0}, 1: {'mean': 0.5}, 2: {'mean': 1.0}}"


def test_settings_lie_over_the_apps(project: Path) -> None:
    found = run_app(project, devices=2, workers=1, run_config={"num-server-rounds": 1, "step": 4.0})
    assert found.messages["train"] == 2
    assert (np.load("model.npy") == 4).all()
    with pytest.raises(ConfigurationError, match="has no 'rounds'; it has num-server-rounds"):
        run_app(project, run_config={"rounds": 1})


def test_an_app_from_before_messages_runs(project: Path) -> None:
    edit(project, "pyproject.toml", "server_app:app", "server_app:legacy")
    edit(project, "pyproject.toml", "client_app:app", "client_app:legacy")
    found = run_app(project, devices=2, workers=1)
    assert found.messages == {"train": 4, "evaluate": 4}
    assert found.failed == 0


def test_what_a_client_raises_is_told_as_itself_and_the_run_goes_on_without_it(project: Path) -> None:
    place = "    config, state ="
    edit(project, "client_app.py", place, f"    [0, 1][context.node_config['partition-id']]\n{place}")
    said: list[str] = []
    found = run_app(project, devices=3, workers=1, said=said.append)
    assert found.failed == 2
    assert "device 2: the client app raised" in said[0]
    assert "client_app.py" in said[0]
    assert "IndexError: list index out of range" in said[0]
    assert (np.load("model.npy") == 1).all()


def test_what_a_server_raises_is_told_as_itself(project: Path) -> None:
    edit(project, "server_app.py", "    asked =", "    context.run_config['missing']\n    asked =")
    said: list[str] = []
    with pytest.raises(EngineError, match="KeyError: 'missing'"):
        run_app(project, devices=2, workers=1, said=said.append)
    assert "server_app.py" in said[0]


def test_what_is_no_app_or_lacks_a_package_is_named(project: Path, tmp_path: Path) -> None:
    edit(project, "client_app.py", "import numpy as np", "import nothing_of_that_name")
    with pytest.raises(ConfigurationError, match=r"ModuleNotFoundError: No module named 'nothing_of_that_name'"):
        run_app(project)
    with pytest.raises(ConfigurationError, match=r"found no pyproject\.toml"):
        run_app(tmp_path)
    edit(project, "pyproject.toml", "[tool.flwr.app.components]", "[tool.flwr.app.parts]")
    with pytest.raises(ConfigurationError, match=r"expected \[tool\.flwr\.app\.components\]"):
        run_app(project)

"""The wheel, installed outside the checkout: what it holds, and that it works from there."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from fedgrass.data.digits import digits_bundle
from tests.fixtures.places import ROOT

pytestmark = pytest.mark.xdist_group("wheel")  # which one environment serves

SCRIPT = """
from pathlib import Path

import fedgrass

bundle = fedgrass.open_bundle(Path("bundle"))
reveal_type(bundle)
reveal_type(fedgrass.read_report)
report = fedgrass.simulate(Path("out"), rounds=1)
version: str = bundle.manifest.version
count: int = report.final.examples
fedgrass.strategy(7)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clean virtual environment that has the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*build, "--no-index", "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    [wheel] = folder.glob("fedgrass-*.whl")
    [packages] = (folder / "venv/lib").glob("python*/site-packages")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "venv"),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    # The dependencies, without what makes this environment's own fedgrass importable.
    [ours] = [path for path in sys.path if path.endswith("site-packages") and Path(path).is_relative_to(sys.prefix)]
    (packages / "dependencies.pth").write_text(ours)
    return folder


def run(place: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(elsewhere), "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"}
    return subprocess.run(argv, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)


def test_only_fedgrass_is_in_site_packages(place: Path) -> None:
    [wheel] = place.glob("fedgrass-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    [information] = {name.split("/")[0] for name in names} - {"fedgrass"}
    assert information.endswith(".dist-info")
    for needed in (
        "fedgrass/py.typed",
        "fedgrass/data/digits_bundle/model.json",
        "fedgrass/cloud/console/templates/base.html",
        "fedgrass/cli/page.html.j2",
    ):
        assert needed in names


def test_commands_run_outside_the_checkout(place: Path) -> None:
    fedgrass = str(place / "venv/bin/fedgrass")
    where = run(place, str(place / "venv/bin/python"), "-c", "import fedgrass; print(fedgrass.__file__)")
    assert where.stdout.startswith(str(place / "venv")), where
    simulated = run(place, fedgrass, "simulate", "--rounds", "1", "--workers", "1", "--output", "simulated")
    assert simulated.returncode == 0, simulated.stderr
    assert (place / "elsewhere/simulated/report.json").exists()
    inspected = run(place, fedgrass, "model", "inspect", str(digits_bundle()))
    assert inspected.returncode == 0, inspected.stderr
    assert (
        run(place, str(place / "venv/bin/python"), "-c", "import fedgrass.local.fleet, fedgrass.local.demo.run").stderr
        == ""
    )


def test_each_command_has_its_help_outside_the_checkout(place: Path) -> None:
    code = """
import click, typer
from fedgrass.cli import cli
def every(command, words):
    print(*words)
    command.get_help(click.Context(command, info_name=words[-1]))
    for name, one in getattr(command, "commands", {}).items():
        every(one, [*words, name])
every(typer.main.get_command(cli), ["fedgrass"])
"""
    done = run(place, str(place / "venv/bin/python"), "-c", code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 20
    assert run(place, str(place / "venv/bin/fedgrass"), "--help").returncode == 0


def test_what_needs_the_repository_says_so(place: Path) -> None:
    done = run(place, str(place / "venv/bin/python"), "-m", "fedgrass.cloud.infrastructure.publish", "--no-gdk")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_a_user_s_script_is_type_checked(place: Path) -> None:
    script = place / "elsewhere" / "script.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    python = str(place / "venv/bin/python")
    checked = run(
        place,
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
        "--follow-imports=silent",
        "script.py",
    )
    assert 'Revealed type is "fedgrass.bundle.Bundle"' in checked.stdout, checked
    assert "SimulationReport" not in checked.stdout, "attributes of the report are known"
    [error] = [line for line in checked.stdout.splitlines() if " error: " in line]
    assert "strategy_named" in error

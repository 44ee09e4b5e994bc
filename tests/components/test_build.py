"""The builder, the recipes and the GDK projects."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fedgrass.bundle import MANIFEST, Bundle, Manifest
from fedgrass.cloud.aggregator.recipe import global_model_recipe
from tests.fixtures.gdk import gdk_schema

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [ROOT, *sorted(path.parent for path in (ROOT / "components").glob("*/gdk-config.json"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXAMPLE = ROOT / "examples" / "application" / "recipe.yaml"


def lowered(value: Any) -> Any:
    """Keys in lower case, as the GDK compares them with its schema."""
    if isinstance(value, dict):
        return {key.lower(): lowered(item) for key, item in value.items()}
    return [lowered(item) for item in value] if isinstance(value, list) else value


def model() -> tuple[Manifest, dict[str, str]]:
    manifest = Bundle.open(ROOT / "examples" / "digits" / "bundle").manifest
    return manifest, {name: f"s3://b/{name}" for name in (*manifest.files, MANIFEST)}


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy to build in: tests run side by side."""
    subprocess.run(
        [
            "cp",
            "-a",
            *(str(ROOT / name) for name in ("components", "recipes", "fedgrass", "gdk-config.json", "recipe.yaml")),
            tmp_path,
        ],
        check=True,
    )
    return tmp_path


def build(checkout: Path, project: Path) -> None:
    command = json.loads((project / "gdk-config.json").read_text())["component"].popitem()[1]["build"][
        "custom_build_command"
    ]
    assert command[0] == "python3"
    subprocess.run([sys.executable, *command[1:]], cwd=project, check=True, stdout=subprocess.DEVNULL)


def test_a_build_in_the_components_folder_and_one_at_the_root_give_the_same_bytes(checkout: Path) -> None:
    trainer = checkout / "components" / "trainer"
    build(checkout, trainer)
    alone = tree(trainer / "greengrass-build")
    (checkout / "components" / "trainer" / "__main__.py").touch()  # another time, the same content
    build(checkout, checkout)
    assert tree(trainer / "greengrass-build") == alone
    assert alone.keys() == {
        "artifacts/com.fedgrass.Trainer/NEXT_PATCH/trainer.zip",
        "recipes/com.fedgrass.Trainer.yaml",
    }
    assert (checkout / "greengrass-build" / "recipes" / "com.fedgrass.Suite.yaml").is_file()


def test_an_archive_holds_one_component_and_nothing_of_the_cloud_or_the_others(checkout: Path) -> None:
    build(checkout, checkout)
    for project in (checkout / "components").glob("*/gdk-config.json"):
        name = project.parent.name
        [archive] = project.parent.glob("greengrass-build/artifacts/*/NEXT_PATCH/*.zip")
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
        allowed = (f"components/{name}/", "fedgrass/") if name == "runtime" else (f"components/{name}/",)
        assert names
        assert [entry for entry in names if not entry.startswith(allowed)] == []
        assert [entry for entry in names if "/cli/" in entry or "__pycache__" in entry] == []
        parts = tuple(f"fedgrass/{part}/" for part in ("authoring", "cli", "cloud", "local", "simulation"))
        assert [entry for entry in names if entry.startswith(parts)] == []


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_each_gdk_config_satisfies_the_gdks_schema(project: Path) -> None:
    schema = gdk_schema("config")
    jsonschema.validate(json.loads((project / "gdk-config.json").read_text()), schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_satisfies_the_gdks_schema(path: Path) -> None:
    schema = gdk_schema("recipe")
    jsonschema.validate(lowered(yaml.safe_load(path.read_text())), schema)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_each_project_names_the_component_of_its_recipe(project: Path) -> None:
    [name] = json.loads((project / "gdk-config.json").read_text())["component"]
    recipe = project / "recipe.yaml"
    assert recipe.is_symlink()
    assert recipe.resolve().parent == ROOT / "recipes"
    assert yaml.safe_load(recipe.read_text())["ComponentName"] == name


@pytest.mark.parametrize("path", [*RECIPES, EXAMPLE, None], ids=lambda path: path.stem if path else "GlobalModel")
def test_each_recipe_keeps_to_what_nucleus_lite_takes(path: Path | None) -> None:
    text = path.read_text() if path else global_model_recipe("f", *model()).decode()
    recipe = yaml.safe_load(text)
    assert len(text.encode()) <= 16_000
    # HARD is a systemd unit that must be up: not there, ours never starts; it restarts, ours is stopped.
    for dependency in recipe.get("ComponentDependencies", {}).values():
        assert dependency["DependencyType"] == "SOFT"
    for manifest in recipe["Manifests"]:
        assert manifest["Platform"]["runtime"] == "*"
        lifecycle = manifest["Lifecycle"]
        assert lifecycle
        assert lifecycle.keys() <= {"install", "startup", "run"}
        assert lifecycle.keys() & {"startup", "run"}, "waited for, for 300 s"
        assert "Artifacts" in manifest
        for step in lifecycle.values():
            script = step if isinstance(step, str) else step["Script"]
            variables = re.findall(r"\{([^}]*)\}?", script)
            assert set(variables) <= {"artifacts:path", "artifacts:decompressedPath", "work:path", "kernel:rootPath"}
    access = recipe.get("ComponentConfiguration", {}).get("DefaultConfiguration", {}).get("accessControl", {})
    assert len(json.dumps(access)) <= 2_700
    assert sum(len(policies) for policies in access.values()) <= 8


def test_what_devices_install_is_locked_with_the_packages_of_further_engines(tmp_path: Path) -> None:
    for name in ("scripts/lock", "pyproject.toml", "constraints.txt", "constraints-flower.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    requirements = tmp_path / "components" / "runtime" / "requirements.txt"
    requirements.parent.mkdir(parents=True)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    # In place of uv, which asks an index: notes what it is asked for.
    uv.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho numpy==1.0 > components/runtime/requirements.txt\n')
    uv.chmod(0o755)

    def lock(extras: str) -> tuple[int, str]:
        environment = {"PATH": f"{uv.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", str(tmp_path / "scripts/lock"), "--device", extras],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    assert lock("sklearn,images") == (0, "")
    asked = (tmp_path / "asked").read_text()
    assert "--python-version 3.10 --extra sklearn --extra images --generate-hashes pyproject.toml --extra edge" in asked
    assert asked.rstrip().endswith("--output-file components/runtime/requirements.txt")
    first = requirements.read_text().splitlines()[0]
    assert first.endswith("made from pyproject.toml and constraints.txt by scripts/lock --device sklearn,images.")
    assert lock("torch,flower") == (0, "")
    assert "--python-version 3.11" in (tmp_path / "asked").read_text()
    assert "constraints-flower.txt" in requirements.read_text()
    before = requirements.read_text()
    assert lock("sklern") == (2, "scripts/lock --device sklern: pyproject.toml has no such extra\n")
    assert requirements.read_text() == before

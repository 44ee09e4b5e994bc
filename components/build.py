#!/usr/bin/env python3
"""Build the component of the present folder for the Greengrass Development Kit, or, at the root, all of them.

``gdk component build`` runs this (``build_system: custom``), and so do our own scripts, so both give the same
``greengrass-build/`` tree. Nothing but the standard library is needed. Archives are reproducible: fixed order, times and
permissions, and no compression, whose output differs between zlib versions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What a device does not run: the command line, the cloud's side, and what makes and tries models.
NOT_ON_DEVICES = tuple(f"fedgrass/{part}/" for part in ("authoring", "cli", "cloud", "local", "simulation"))

EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def sources(folder: str) -> list[Path]:
    """Return the files that the archive of ``components/<folder>`` holds, with their paths from the root."""
    roots = [f"components/{folder}"]
    if folder == "runtime":
        roots.append("fedgrass")
    found = [
        path.relative_to(ROOT)
        for root in roots
        for pattern in ("*.py", "requirements.txt")
        for path in (ROOT / root).rglob(pattern)
        if "greengrass-build" not in path.parts
    ]
    return sorted(path for path in found if not str(path).startswith(NOT_ON_DEVICES))


def write_archive(target: Path, files: list[Path]) -> None:
    """Write a zip whose bytes depend on nothing but the files' names and content."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.as_posix(), EARLIEST_ZIP_TIME)
            # A plain file, rw-r--r--, whatever this checkout's umask: permissions are part of the archive's bytes.
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, (ROOT / file).read_bytes())


def build(project: Path, output: Path | None = None) -> Path:
    """Build the GDK project in ``project`` into its ``greengrass-build`` folder, or another; returns that folder."""
    try:
        component = json.loads((project / "gdk-config.json").read_text())["component"]
        [(name, settings)] = component.items()
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{project}: expected a GDK project with one component in gdk-config.json ({error})"
        ) from error
    recipe = (project / "recipe.yaml").resolve()
    output = output or project / "greengrass-build"
    # From nothing: a file that was removed from a component must not stay in its archive.
    shutil.rmtree(output, ignore_errors=True)
    artifacts = output / "artifacts" / name / settings["version"]
    artifacts.mkdir(parents=True)
    (output / "recipes").mkdir()
    shutil.copyfile(recipe, output / "recipes" / recipe.name)
    # The umbrella component has a recipe and no artifact.
    if project != ROOT:
        write_archive(artifacts / f"{project.name}.zip", sources(project.name))
    return output


def projects() -> list[Path]:
    """Return every component's folder, dependencies first, and the root, which is the umbrella component."""
    order = ("runtime", "model_deployer", "trainer", "heartbeat")
    return [*(ROOT / "components" / name for name in order), ROOT]


def main() -> None:
    """Build what the present folder is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "project", nargs="?", type=Path, default=Path.cwd(), help="folder of a GDK project (default: here)"
    )
    chosen = parser.parse_args().project.resolve()
    for project in projects() if chosen == ROOT else [chosen]:
        output = build(project)
        sys.stdout.write(f"{output.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()

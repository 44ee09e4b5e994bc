"""Install the venv that the fedgrass components on a device run from: ``<work>/venv``.

Runs under the host's own Python, so it uses nothing but the standard library. Packages are hash-pinned wheels; where
``<work>/wheelhouse`` exists, they come from there and no network is needed. Every step can run twice: a venv is known by
the digest of what it was made from, built under another name, and put in place by renaming a link.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 13)


def log(text: str) -> None:
    """Write a line to the component's log."""
    sys.stderr.write(f"runtime: {text}\n")
    sys.stderr.flush()


def digest_of(files: list[Path], base: Path) -> str:
    """Return one digest over names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(base).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def point(link: Path, target: Path) -> None:
    """Make ``link`` lead to ``target`` in one step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def run(*argv: str) -> None:
    """Run a command, its output in the component's log; end with a message if it fails."""
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode  # noqa: S603
    if code != 0:
        raise SystemExit(f"runtime: {' '.join(argv[:4])} … ended with code {code}; its own words are above")


def install_packages(requirements: Path, work: Path) -> Path:
    """Return the venv with exactly these packages, made now if it is not there."""
    tag = f"{digest_of([requirements], requirements.parent)}-{sys.version_info.major}.{sys.version_info.minor}"
    venv = work / "venvs" / tag
    complete = venv / ".complete"
    if complete.exists():
        log(f"packages are in place ({tag})")
        return venv
    shutil.rmtree(venv, ignore_errors=True)
    log(f"installing packages ({tag})")
    # The host's pip can fill the venv from outside; one of its own would cost every device 12 MB and some seconds.
    borrowed = importlib.util.find_spec("pip") is not None
    run(sys.executable, "-m", "venv", *(["--without-pip"] if borrowed else []), str(venv))
    pip = [sys.executable, "-m", "pip", "--python", str(venv)] if borrowed else [str(venv / "bin/python"), "-m", "pip"]
    wheelhouse = work / "wheelhouse"
    offline = ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse.is_dir() else []
    run(
        *pip,
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--require-hashes",
        *offline,
        "--requirement",
        str(requirements),
    )
    complete.touch()
    return venv


def install_library(source: Path, work: Path) -> Path:
    """Return a folder that holds this version of the ``fedgrass`` package, copied now if it is not there."""
    package = source / "fedgrass"
    folder = work / "library" / digest_of(list(package.rglob("*.py")), package)
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.copytree(package, partial / "fedgrass")
        partial.rename(folder)
    return folder


def remove_others(keep: Path) -> None:
    """Delete what earlier versions left beside ``keep``."""
    for other in keep.parent.iterdir():
        if other != keep:
            shutil.rmtree(other, ignore_errors=True)


def main() -> None:
    """Install, or find that it is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="the unpacked archive")
    parser.add_argument("--work", type=Path, required=True, help="the component's work folder")
    arguments = parser.parse_args()
    source, work = arguments.source.resolve(), arguments.work.resolve()
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SystemExit(
            f"runtime: Python {sys.version.split()[0]} found at {sys.executable}; 3.{OLDEST[1]} to 3.{NEWEST[1]} is needed. "
            "Install one and make it the first python3 on the PATH of the Greengrass user"
        )
    venv = install_packages(source / "components" / "runtime" / "requirements.txt", work)
    library = install_library(source, work)
    [site_packages] = venv.glob("lib/python*/site-packages")
    path_file = site_packages / "fedgrass.pth"
    fresh = path_file.with_suffix(".partial")
    fresh.write_text(f"{library}\n")
    fresh.replace(path_file)
    point(work / "venv", venv)
    remove_others(venv)
    remove_others(library)
    log(f"ready: {work / 'venv'}")


if __name__ == "__main__":
    main()

"""Install the venv that the fedgrass components on a device run from: ``<work>/venv``.

Runs under the host's own Python, so it uses nothing but the standard library. Packages are hash-pinned wheels; where
``<work>/wheelhouse`` exists, they come from there and no network is needed. Every step can run twice: a venv is known by
the digest of what it was made from, built under another name, and put in place by renaming a link. It is ready when what it
holds could be loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

GRACE_SECONDS = 6.0
"""Components look every 2 s whether their library is another, and end a training within 3."""
NEEDED_MB = 400
"""Room on the disk for the packages while they are unpacked; docs/devices.md has what stays of it."""
LOADED = ("numpy", "pydantic", "awscrt.io", "awsiot.greengrasscoreipc", "ai_edge_litert.interpreter")
"""Modules with code of their own for the processor: what fails here would fail in the trainer."""
OF_ENGINES = {
    "flwr": ("flwr", 200),
    "scikit-learn": ("sklearn", 300),
    "tensorflow": ("tensorflow", 2500),
    "torch": ("torch", 2000),
}
"""By package that `scripts/lock --device` may add: the module that is loaded too, and further megabytes of room."""
NEEDS = "a 64-bit x86_64 or aarch64 Python with glibc, on aarch64 glibc 2.30 with the libstdc++ of GCC 9"


def log_event(name: str, **fields: str) -> None:
    """Write a line to the component's log, as `fedgrass.logs` does, which is not installed yet."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "level": "info", "event": name, "logger": "com.fedgrass.Runtime", **fields}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def this_device() -> str:
    """Return the processor, the C library and the Python of this device."""
    bits = 8 * struct.calcsize("P")
    return f"{platform.machine()} ({bits}-bit Python), {c_library()}, Python {platform.python_version()} at {sys.executable}"


def c_library() -> str:
    """Return ``glibc`` and its version, or that it is another C library."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "no glibc"
    except (ValueError, OSError):
        return "no glibc (musl?)"


def why_not() -> str:
    """Return why there are no wheels for this device; empty if there are some."""
    if struct.calcsize("P") != 8 or platform.machine() not in ("x86_64", "aarch64"):
        return "there are no wheels of LiteRT for this processor"
    library = c_library()
    if not library.startswith("glibc"):
        return "there are no wheels of LiteRT for this C library"
    # "glibc 2.31" gives (2, 31).
    found = tuple(int(part) for part in library.split()[-1].split(".")[:2] if part.isdigit())
    if platform.machine() == "aarch64" and found < (2, 30):
        return "LiteRT cannot be loaded with this C library"
    return ""


def digest_of(files: list[Path], base: Path) -> str:
    """Return one digest over names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        # Name and length go in too, so that moving bytes from one file to the next changes the digest.
        digest.update(f"{file.relative_to(base).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def point(link: Path, target: Path) -> None:
    """Make ``link`` lead to ``target`` in one step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    # Renamed over the old link: no moment in which a component finds none.
    fresh.replace(link)


def run(*argv: str, temporary: Path) -> None:
    """Run a command, its output in the component's log; end with a message if it fails."""
    # /tmp may be small, full or mounted noexec.
    environment = {**os.environ, "TMPDIR": str(temporary)}
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False, env=environment).returncode  # noqa: S603
    if code != 0:
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise SystemExit(
            f"runtime: {' '.join(argv[:4])} … ended {how}; its own words are above. This device: {this_device()}"
        )


def make_venv(venv: Path, temporary: Path) -> list[str]:
    """Make an empty venv, and return the pip that fills it from outside: one of its own would cost every device 12 MB."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    has_pip = importlib.util.find_spec("pip") is not None
    if "venv" in missing or (missing and not has_pip):
        raise SystemExit(
            f"runtime: {sys.executable} has no module {missing[0]!r}{'' if has_pip else ' and no pip'}. "
            "Install it: `apt install python3-venv` (Debian, Ubuntu, Raspberry Pi OS, JetPack), "
            "`dnf install python3-pip` (Fedora, RHEL), python3-venv and python3-pip in a Yocto image"
        )
    run(sys.executable, "-m", "venv", "--without-pip", str(venv), temporary=temporary)
    if has_pip:
        return [sys.executable, "-m", "pip"]
    log_event("pip_borrowed")
    lender = temporary / "pip"
    run(sys.executable, "-m", "venv", str(lender), temporary=temporary)
    return [str(lender / "bin/python"), "-m", "pip"]


def install_packages(requirements: Path, work: Path) -> Path:
    """Return the venv with exactly these packages, made now if it is not there."""
    # By Python's version too: compiled wheels of one do not load in another.
    tag = f"{digest_of([requirements], requirements.parent)}-{sys.version_info.major}.{sys.version_info.minor}"
    venv = work / "venvs" / tag
    complete = venv / ".complete"
    # Written last: a venv that a power cut left half made has no such file.
    if complete.exists():
        log_event("packages_in_place", tag=tag)
        return venv
    shutil.rmtree(venv, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free >> 20
    needed = NEEDED_MB + sum(megabytes for _, megabytes in of_engines(requirements))
    if free < needed:
        raise SystemExit(f"runtime: {work}: {free} MB of disk are free, {needed} are needed to install the packages")
    log_event("packages_installing", tag=tag)
    temporary = work / ".temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        pip = make_venv(venv, temporary)
        fill(venv, pip, requirements, work / "wheelhouse", temporary)
        # Before it is put in place: what cannot be loaded leaves the former venv at work.
        load(venv, temporary, [*LOADED, *(module for module, _ in of_engines(requirements))])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    complete.touch()
    return venv


def fill(venv: Path, pip: list[str], requirements: Path, wheelhouse: Path, temporary: Path) -> None:
    """Install the packages into a venv with whichever pip there is.

    ``--target`` is what pips of all ages know; ``--python`` came with 22.3.

    Parameters
    ----------
    venv
        The venv to fill; it has no pip of its own.
    pip
        The command that runs pip.
    requirements
        The pinned packages, each with its digests.
    wheelhouse
        Folder of wheels; if it exists, nothing is downloaded.
    temporary
        Where pip unpacks: a device's ``/tmp`` may be too small.

    Raises
    ------
    SystemExit
        If pip fails.
    """
    [site_packages] = venv.glob("lib/python*/site-packages")
    offline = ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse.is_dir() else []
    run(
        *pip,
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-cache-dir",
        "--no-deps",
        # Bytecode is written when a module is first imported, and many never are: it spares disk.
        "--no-compile",
        "--only-binary=:all:",
        "--require-hashes",
        *offline,
        "--target",
        str(site_packages),
        "--requirement",
        str(requirements),
        temporary=temporary,
    )


def of_engines(requirements: Path) -> list[tuple[str, int]]:
    """Return module and megabytes of each engine that the packages are for, beside LiteRT."""
    names = {line.partition("==")[0] for line in requirements.read_text().splitlines()}
    return [known for name, known in OF_ENGINES.items() if name in names]


def load(venv: Path, temporary: Path, modules: list[str]) -> None:
    """End with a message unless the packages can be loaded: a wheel's label may promise more than it keeps."""
    # In one process, which names each before it loads it: the last one named is the one that failed.
    code = "import sys\nfor name in sys.argv[1:]:\n    print(name, flush=True)\n    __import__(name)"
    command = [str(venv / "bin/python"), "-c", code, *modules]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment, cwd=temporary
    )
    if done.returncode != 0:
        named = [line for line in done.stdout.decode(errors="replace").splitlines() if line in modules]
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        said = f"signal {-done.returncode}" if done.returncode < 0 else " ".join(last)
        raise SystemExit(
            f"runtime: {named[-1] if named else 'Python'} cannot be loaded here: {said}. "
            f"This device: {this_device()}; needed: {NEEDS}"
        )


def install_library(source: Path, work: Path) -> Path:
    """Return a folder that holds this version of the ``fedgrass`` package, copied now if it is not there."""
    package = source / "fedgrass"
    folder = work / "library" / digest_of(list(package.rglob("*.py")), package)
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.copytree(package, partial / "fedgrass")
        partial.rename(folder)
    return folder


def remove_others(*keep: Path) -> None:
    """Delete what earlier versions left beside each of ``keep``, once what runs from it has had the time to leave."""
    others = [other for one in keep for other in one.parent.iterdir() if other != one]
    if others:
        time.sleep(GRACE_SECONDS)
    for other in others:
        shutil.rmtree(other, ignore_errors=True)


def install(source: Path, work: Path) -> None:
    """Install, or find that it is installed."""
    if why := why_not():
        raise SystemExit(f"runtime: {why}. This device: {this_device()}; needed: {NEEDS}")
    venv = install_packages(source / "components" / "runtime" / "requirements.txt", work)
    library = install_library(source, work)
    [site_packages] = venv.glob("lib/python*/site-packages")
    path_file = site_packages / "fedgrass.pth"
    # Not .pth, so that Python does not read it half written.
    fresh = path_file.with_suffix(".partial")
    fresh.write_text(f"{library}\n")
    fresh.replace(path_file)
    point(work / "venv", venv)
    # Last: components still run from the former ones until they see the change.
    remove_others(venv, library)
    log_event("runtime_ready", venv=str(work / "venv"), device=this_device())


def main() -> None:
    """Install, or end with one line that says what stands in the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="the unpacked archive")
    parser.add_argument("--work", type=Path, required=True, help="the component's work folder")
    arguments = parser.parse_args()
    try:
        install(arguments.source.resolve(), arguments.work.resolve())
    except OSError as error:
        raise SystemExit(f"runtime: {error.filename or 'install'}: {error.strerror or error}") from None


if __name__ == "__main__":
    main()

"""Zip archives of our code: the same sources give the same bytes, so that a digest can name them."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedgrass.checkout import checkout
from fedgrass.errors import InfrastructureError

# Named one by one: functions start faster with less, and what they import must not pull in NumPy.
_FUNCTIONS = (
    "fedgrass/cloud/__init__.py",
    "fedgrass/cloud/ending/*.py",
    "fedgrass/cloud/rounds/*.py",
    "fedgrass/cloud/session.py",
    "fedgrass/__init__.py",
    "fedgrass/buckets.py",
    "fedgrass/errors.py",
    "fedgrass/events.py",
    "fedgrass/logs.py",
    "fedgrass/references.py",
    "fedgrass/partial.py",
    "fedgrass/parts.py",
    "fedgrass/registry.py",
    "fedgrass/strategies/*.py",
    "fedgrass/update/codecs/*.py",  # for their names
    "fedgrass/protocol/*.py",
)
_IMAGE = ("cloud/image/*", "fedgrass/**/*.py")
# What neither the job nor a silo runs.
_NOT_IN_IMAGE = (
    "fedgrass/authoring/",
    "fedgrass/cli/",
    "fedgrass/cloud/console/",
    "fedgrass/cloud/infrastructure/",
    "fedgrass/local/",
    "fedgrass/simulation/",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold

# As in the template; boto3 is part of Lambda's runtime.
_DEPENDENCIES = ("pydantic",)
_PYTHON = "3.13"
_PLATFORM = "manylinux2014_aarch64"


def functions_archive(*, dependencies: bool = True) -> bytes:
    """Return the archive of the functions.

    Parameters
    ----------
    dependencies
        Also pack the third-party libraries that Lambda's runtime lacks, as wheels for its platform that pip gets from
        its package index. The local stand-in has them anyway.

    Raises
    ------
    InfrastructureError
        If pip cannot get the wheels.
    """
    return _archive(_sources(_FUNCTIONS) | (_dependencies() if dependencies else {}))


def image_source() -> bytes:
    """Return the archive that CodeBuild makes the aggregator's image of."""
    return _archive({name: content for name, content in _sources(_IMAGE).items() if not name.startswith(_NOT_IN_IMAGE)})


def definition() -> Path:
    """Return the state machine's definition."""
    return checkout() / "cloud" / "state_machine.asl.json"


def template() -> Path:
    """Return the fleet's CloudFormation template."""
    return checkout() / "cloud" / "template.yaml"


def _sources(patterns: Iterable[str]) -> dict[str, bytes]:
    root = checkout()
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for pattern in patterns
        for path in root.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def _archive(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        # Sorted, one date, one mode: the archive's digest names it, and must not change with the checkout's.
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16  # readable by Lambda's user
            archive.writestr(entry, files[name])
    return packed.getvalue()


def _dependencies() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder),
            # For Lambda's platform, not this machine's: pydantic's core is compiled.
            *("--only-binary=:all:", "--platform", _PLATFORM, "--python-version", _PYTHON, "--implementation", "cp"),
            *("--constraint", str(checkout() / "constraints.txt"), *_DEPENDENCIES),
        ]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
        if result.returncode:
            raise InfrastructureError(
                f"pip could not get {', '.join(_DEPENDENCIES)} for Python {_PYTHON} on {_PLATFORM}: "
                f"{result.stderr.strip()[-500:]}"
            )
        files: dict[str, bytes] = {}
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                files |= {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        return files

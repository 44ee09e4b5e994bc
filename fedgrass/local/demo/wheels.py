"""A wheel cache that the local devices share, so that three of them do not download the same packages three times."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from fedgrass.checkout import checkout
from fedgrass.errors import TransferError
from fedgrass.files import sha256_of


def fill(cache: Path) -> dict[str, str]:
    """Download what a device installs, once, and return the environment in which pip takes it from there.

    Several at a time share one download: the others wait for it.

    Raises
    ------
    TransferError
        If pip cannot download; its own words are in the message.
    """
    requirements = checkout() / "components" / "runtime" / "requirements.txt"
    # Another set of requirements, or another Python, is another cache.
    tag = f"{sha256_of(requirements)[:16]}-{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / tag
    # Made last: a download that was broken off is done again.
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / ".complete"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            _download(requirements, folder)
            complete.touch()
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def _download(requirements: Path, folder: Path) -> None:
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--require-hashes", "--only-binary=:all:", "--requirement", str(requirements), "--dest", str(folder)]
    finished = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if finished.returncode != 0:
        raise TransferError(f"pip could not download the devices' packages: {finished.stderr.strip()[-1500:]}")

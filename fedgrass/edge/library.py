"""Which fedgrass library a process runs from, and whether com.fedgrass.Runtime has put another in its place.

No nucleus restarts what runs from the venv: the dependency on Runtime is SOFT, because a HARD one keeps a component from
starting on nucleus lite.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path


def present() -> tuple[str, str]:
    """Return what tells one installation from the next: where the venv's link leads, and the library that it names."""
    # Runtime swaps a link to a new venv, or only the library that the venv's .pth file names.
    named = ""
    with suppress(OSError):
        named = (Path(sysconfig.get_path("purelib")) / "fedgrass.pth").read_text()
    return os.path.realpath(sys.prefix), named

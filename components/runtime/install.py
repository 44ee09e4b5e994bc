"""Install the venv that the fedgrass components on a device run from; see environment.py, which does it.

This file says which Python is needed to one that is too old for that, so nothing newer than Python 3.6 may stand in it.
"""

import runpy
import sys
from pathlib import Path

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    raise SystemExit(
        f"runtime: Python {sys.version.split()[0]} found at {sys.executable}; 3.10 to 3.13 is needed. Install one and make it "
        "the first python3 on the PATH of the Greengrass user"
    )
runpy.run_path(str(Path(__file__).resolve().parent / "environment.py"), run_name="__main__")

"""What a recipe's platform requirement means.

Source: "AWS IoT Greengrass component recipe reference" (``Manifests[].Platform``), developer guide.
"""

from __future__ import annotations

import re


def fits(wanted: str, found: str | None) -> bool:
    """Tell whether a platform attribute meets what a manifest asks of it: ``*``, ``/a regular expression/`` or a value."""
    if wanted == "*":
        return True
    # The device does not know the attribute, so only "*" can be met.
    if found is None:
        return False
    if len(wanted) > 1 and wanted[0] == wanted[-1] == "/":
        return re.fullmatch(wanted[1:-1], found) is not None
    return wanted == found

"""The project's checkout: what is built and deployed from its files, which no wheel holds (components, AWS's templates)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from fedgrass.errors import ConfigurationError

_BUILD = "components/build.py"


@cache
def checkout() -> Path:
    """Return the checkout's folder: the one that this package lies in, else the present folder or one above it.

    Raises
    ------
    ConfigurationError
        If there is none: fedgrass was installed as a wheel, and the command was started elsewhere.
    """
    # Two files of it, so that some other project's components/ folder is not taken for ours.
    for folder in _candidates():
        if (folder / _BUILD).is_file() and (folder / "cloud" / "template.yaml").is_file():
            return folder
    raise ConfigurationError(
        "this needs the files of fedgrass's repository (components/, cloud/), which are not part of the installed package: "
        "run it in a clone of the repository"
    )


@cache
def build_tool() -> ModuleType:
    """Return ``components/build.py``, which the Greengrass Development Kit runs too."""
    # Loaded by its path: `components` is not an installed package, and another package of that name may be.
    spec = importlib.util.spec_from_file_location("components.build", checkout() / _BUILD)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{_BUILD}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _candidates() -> Iterator[Path]:
    here = Path.cwd()
    yield from (Path(__file__).resolve().parent.parent, here, *here.parents)

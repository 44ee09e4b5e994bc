"""What settings name as ``module:object`` is judged by its source, before any of it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedgrass.errors import ConfigurationError
from fedgrass.references import function, split_reference, subclass

BASE = "roots_of_test.Base"
RAN = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"
SOURCES = {
    "roots_of_test.py": "class Base: ...\nclass Known(Base): ...\n",
    "direct.py": "from roots_of_test import Base\nclass Mine(Base): ...\n",
    "renamed.py": "import roots_of_test as r\nclass Mine(r.Known): ...\n",
    "passed_on.py": "from direct import Mine\n",
    "deeper/__init__.py": "from .inner import Mine\n",
    "deeper/inner.py": "from renamed import Mine as Other\nclass Between(Other): ...\nclass Mine(Between): ...\n",
    "generic.py": "from roots_of_test import Base\nclass Mine(Base[int] if False else Base): ...\n",
    "stranger.py": "class Mine: ...\nclass Other(Mine): ...\ndef Plain(): ...\n",
    "made.py": "import roots_of_test\nMine = type('Mine', (roots_of_test.Base,), {})\n",
    "circle.py": "from circle import Mine\n",
    "broken.py": "class Mine(Base:\n",
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source if name == "broken.py" else RAN + source)
        monkeypatch.delitem(
            sys.modules, name.removesuffix(".py").removesuffix("/__init__").replace("/", "."), raising=False
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def ran(sources: Path) -> set[str]:
    return {path.stem for path in sources.rglob("*.ran")}


@pytest.mark.parametrize("module", ["direct", "renamed", "passed_on", "deeper", "deeper.inner"])
def test_a_class_that_its_source_declares_below_the_base_is_imported(sources: Path, module: str) -> None:
    assert subclass(f"{module}:Mine", [BASE]).__name__ == "Mine"


@pytest.mark.parametrize(
    "reference",
    [
        "stranger:Mine",
        "stranger:Other",
        "stranger:Plain",
        "made:Mine",
        "circle:Mine",
        "broken:Mine",
        "direct:Absent",
        "absent:Mine",
    ],
)
def test_what_its_source_does_not_declare_so_is_refused_and_not_a_line_of_it_runs(
    sources: Path, reference: str
) -> None:
    with pytest.raises(ConfigurationError, match="was not imported"):
        subclass(reference, [BASE])
    assert ran(sources) == set()


@pytest.mark.parametrize(
    "reference", ["subprocess:Popen", "os.path:join", "x", "a:b:c", "a.:b", "a:b c", "é:b", "a:", ""]
)
def test_modules_of_python_itself_and_malformed_names_are_refused(reference: str) -> None:
    with pytest.raises(ConfigurationError):
        split_reference(reference)


def test_a_function_is_one_that_its_module_declares(sources: Path) -> None:
    assert function("stranger:Plain")() is None
    for reference in ("stranger:Mine", "direct:Base"):
        with pytest.raises(ConfigurationError):
            function(reference)
    assert ran(sources) == {"stranger"}

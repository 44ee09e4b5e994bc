"""A device with a trainer on it that trains in no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    QuickEngine.reset()
    made = Place(tmp_path)
    made.have_model()
    yield made
    QuickEngine.reset()
    made.stop()

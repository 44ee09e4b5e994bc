"""When a device counts its examples again, which takes a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from components.trainer.counting import Counting
from fedgrass.bundle import INFERENCE, PARAMETERS, Bundle, FileDescription
from fedgrass.edge.settings import RuntimeSettings
from tests.fedgrass.edge import digits

OTHER = FileDescription(bytes=1, sha256="0" * 64)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeSettings:
    path = digits.write_data(tmp_path / "data.npz", 50)
    return RuntimeSettings.model_validate({"fleet": "f", "data": {"path": str(path)}})


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    return Bundle(bundle.folder, bundle.manifest.model_copy(update=changes))


def of_a_round(bundle: Bundle, number: int) -> Bundle:
    files = {**bundle.manifest.files, PARAMETERS: OTHER, INFERENCE: OTHER}
    return changed(bundle, version=f"1.{number}.0", files=files)


def test_the_model_of_each_round_has_the_same_examples(runtime: RuntimeSettings) -> None:
    counting, first = Counting(Clock()), Bundle.open(digits.BUNDLE)
    assert counting.is_due(runtime, first, problem=False)
    for number in (1, 2, 3):
        assert not counting.is_due(runtime, of_a_round(first, number), problem=False)


@pytest.mark.parametrize("changes", [{"vocabulary": 9}, {"class_names": ("one", "two")}, {"name": "another"}])
def test_a_model_that_describes_its_data_otherwise_is_counted_for(
    runtime: RuntimeSettings, changes: dict[str, object]
) -> None:
    counting, first = Counting(Clock()), Bundle.open(digits.BUNDLE)
    assert counting.is_due(runtime, first, problem=False)
    assert counting.is_due(runtime, changed(of_a_round(first, 1), **changes), problem=False)


def test_while_something_is_wrong_the_next_model_may_be_what_mends_it(runtime: RuntimeSettings) -> None:
    counting, first = Counting(Clock()), Bundle.open(digits.BUNDLE)
    assert counting.is_due(runtime, first, problem=False)
    assert not counting.is_due(runtime, first, problem=True)
    assert counting.is_due(runtime, of_a_round(first, 1), problem=True)
    assert not counting.is_due(runtime, of_a_round(first, 1), problem=True)


def test_a_file_that_was_rewritten_and_settings_are_seen_at_once_and_a_folder_after_ten_minutes(
    runtime: RuntimeSettings,
) -> None:
    clock = Clock()
    counting, model = Counting(clock), Bundle.open(digits.BUNDLE)
    assert counting.is_due(runtime, model, problem=False)
    os.utime(runtime.data.file, (1, 1))
    assert counting.is_due(runtime, model, problem=False)
    other = runtime.model_copy(update={"data": runtime.data.model_copy(update={"seed": 7})})
    assert counting.is_due(other, model, problem=False)
    clock.now = 599.0
    assert not counting.is_due(other, model, problem=False)
    clock.now = 600.0
    assert counting.is_due(other, model, problem=False)

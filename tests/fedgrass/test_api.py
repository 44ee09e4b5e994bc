"""The Python API: light to import, the same functions as the commands, reports as tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedgrass
from fedgrass.data import ArrayDataset
from fedgrass.errors import DataError, RecordError
from fedgrass.round_reports import UpdateRow

BUNDLE = Path(__file__).resolve().parents[2] / "examples" / "digits" / "bundle"


def test_importing_it_imports_no_other_package() -> None:
    code = "import sys; before = set(sys.modules); import fedgrass; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names == {"fedgrass"}


def test_type_checkers_see_the_names_that_there_are() -> None:
    assert sorted(fedgrass.__all__) == sorted(fedgrass.API)
    assert set(fedgrass.API) <= set(dir(fedgrass))


def test_a_name_stays_what_it_is_when_it_is_asked_for_again() -> None:
    for name in [*fedgrass.API, *fedgrass.API]:  # a module of that name would take its place once it is imported
        assert callable(getattr(fedgrass, name)), name


def test_a_misspelt_name_is_told_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match=r"'agregate'; the API is adapt, aggregate"):
        _ = fedgrass.agregate


def test_devices_train_by_hand_and_their_updates_are_aggregated_into_a_better_model(tmp_path: Path) -> None:
    bundle = fedgrass.open_bundle(BUNDLE)
    random = np.random.default_rng(0)
    y = np.arange(100, dtype=np.int32) % 10
    x = (random.random((100, 8, 8, 1)) * 0.1 + (y / 10)[:, None, None, None]).astype(np.float32)
    for number in range(2):
        part = slice(50 * number, 50 * number + 50)
        np.savez(tmp_path / "data.npz", x=x[part], y=y[part])
        data = fedgrass.load_data(bundle, tmp_path / "data.npz")
        fedgrass.train(bundle, data, tmp_path / "updates" / f"d{number}.safetensors", thing=f"d{number}")
    (tmp_path / "updates" / "mallory.safetensors").write_bytes(b"nonsense")

    result = fedgrass.aggregate(BUNDLE, tmp_path / "updates", tmp_path / "next", fedgrass.strategy("fedavg"))

    table = fedgrass.rows(result)
    assert [(row.thing, row.used) for row in table] == [("d0", True), ("d1", True), ("mallory", False)]
    assert all(isinstance(row, UpdateRow) for row in table)
    assert sum(row.weight for row in table) == pytest.approx(1)
    assert table[-1].reason == "corrupt_header"
    everything = ArrayDataset(x, y)
    after = fedgrass.evaluate(fedgrass.open_bundle(tmp_path / "next"), everything)
    assert after["loss"] < fedgrass.evaluate(bundle, everything)["loss"]


def test_examples_that_do_not_fit_the_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fedgrass.evaluate(
            fedgrass.open_bundle(BUNDLE), ArrayDataset(np.zeros((4, 7), np.float32), np.zeros(4, np.int32))
        )


def test_a_file_that_is_no_report_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(RecordError, match="cannot be read"):
        fedgrass.read_report(path)
    path.write_text('{"schema": 1}')
    with pytest.raises(RecordError, match=r"report.json: not a report of a round: fleet"):
        fedgrass.read_report(path)

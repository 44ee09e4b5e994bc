"""What the operator puts there for evaluation: examples, and which of them are known to be anomalies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.cloud.aggregator.evaluate import load_evaluation_set
from fedgrass.errors import DataError


class _Bucket:
    def __init__(self, **arrays: Any) -> None:
        file = io.BytesIO()
        np.savez(file, **arrays)
        self._content = file.getvalue()

    def read(self, key: str, *, max_bytes: int) -> bytes:
        return self._content


X = np.zeros((10, 2), np.float32)


def test_known_anomalies_come_with_the_examples_they_are_of(tmp_path: Path) -> None:
    anomaly = (np.arange(10) > 6).astype(np.int8)
    found = load_evaluation_set(_Bucket(x=X, y=X, anomaly=anomaly), "f", tmp_path)  # type: ignore[arg-type]
    assert found is not None
    given = [batch.anomaly for batch in found.batches(4)]
    assert [len(part) for part in given if part is not None] == [4, 4, 2]
    assert np.concatenate(given).tolist() == anomaly.tolist()  # type: ignore[arg-type]


def test_a_set_without_them_has_none(tmp_path: Path) -> None:
    found = load_evaluation_set(_Bucket(x=X, y=X), "f", tmp_path)  # type: ignore[arg-type]
    assert found is not None
    assert all(batch.anomaly is None for batch in found.batches(4))


def test_marks_may_be_a_column_or_floats(tmp_path: Path) -> None:
    anomaly = np.float64(np.arange(10) > 6)[:, np.newaxis]
    found = load_evaluation_set(_Bucket(x=X, y=X, anomaly=anomaly), "f", tmp_path)  # type: ignore[arg-type]
    assert found is not None
    [batch] = found.batches(10)
    assert batch.anomaly is not None
    assert batch.anomaly.tolist() == (np.arange(10) > 6).tolist()


def test_scikit_learns_marks_are_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"anomaly -1 is neither 0 nor 1.*anomaly == -1"):
        load_evaluation_set(_Bucket(x=X, y=X, anomaly=np.array([1] * 8 + [-1] * 2)), "f", tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("anomaly", [np.zeros(9, int), np.zeros((10, 2), int), np.full(10, np.nan), np.full(10, "ok")])
def test_anomalies_that_are_none_of_the_examples_are_refused(anomaly: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="anomaly"):
        load_evaluation_set(_Bucket(x=X, y=X, anomaly=anomaly), "f", tmp_path)  # type: ignore[arg-type]

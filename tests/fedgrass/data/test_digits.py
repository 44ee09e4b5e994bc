"""The handwritten digits are scikit-learn's, and cost no import of it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.data.digits import digits
from fedgrass.errors import DataError


def test_they_are_what_scikit_learn_loads() -> None:
    found, expected = digits((8, 8, 1)), load_digits()
    np.testing.assert_array_equal(found.x, (expected.images[..., np.newaxis] / 16).astype(np.float32))
    np.testing.assert_array_equal(found.y, expected.target)
    assert [found.x.dtype.name, found.y.dtype.name] == ["float32", "int32"]


def test_scikit_learn_is_not_imported_for_them() -> None:
    code = "import sys; from fedgrass.data.digits import digits; digits((64,)); sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_it_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits((64,))

"""What Keras would import for nothing is absent while a command imports TensorFlow, and there for the user's code after it."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from fedgrass.authoring import unused


def test_packages_are_absent_within_and_as_before_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused, "_UNUSED", ("json", "colorsys"))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with unused.without_unused():
        assert importlib.import_module("json") is json, "what is imported already stays"
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
    assert importlib.import_module("colorsys").rgb_to_hsv(0, 0, 0) == (0, 0, 0)
    assert sys.modules["json"] is json

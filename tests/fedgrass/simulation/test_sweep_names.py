"""What the folders of a sweep's runs are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError
from fedgrass.simulation.sweep import combinations

LETTERS = st.text(st.characters(categories=("Lu", "Ll", "Lo", "Nd")), max_size=300)


@given(st.lists(LETTERS, min_size=1, max_size=4, unique=True))
def test_any_value_gives_a_name_that_a_file_system_takes_and_two_never_share_one(values: list[str]) -> None:
    found = combinations({"fleet.name": values})
    assert [one["fleet.name"] for one in found.values()] == values
    for name in found:
        assert 0 < len(name.encode()) <= 200
        assert "/" not in name
        assert "\0" not in name


def test_long_values_that_differ_at_their_end_are_two_runs(tmp_path: Path) -> None:
    found = combinations({"data": ["ü" * 300 + "1", "ü" * 300 + "2"]})
    for name in found:
        (tmp_path / name).mkdir()
    assert len(found) == 2
    with pytest.raises(ConfigurationError, match="each value once"):
        combinations({"data": ["x" * 300, "x" * 300]})

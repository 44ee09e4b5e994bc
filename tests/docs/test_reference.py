"""The reference says what the code does."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from fedgrass.update.header import Reason
from scripts.pages.__main__ import FOLDER, PAGES, page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_the_one_that_the_code_gives(name: str) -> None:
    assert page(name) == (FOLDER / f"{name}.md").read_text(), "run scripts/reference"


def test_each_reason_to_quarantine_an_update_has_its_cause_and_remedy() -> None:
    rows = re.findall(r"^\| (`.+?`) \| (.+) \| (.+) \|$", (FOLDER / "quarantine.md").read_text(), re.MULTILINE)
    named = {code for codes, _, _ in rows for code in re.findall(r"`(\w+)`", codes)}
    assert named == set(get_args(Reason))
    assert all(len(cell.strip()) > 5 for row in rows for cell in row[1:])

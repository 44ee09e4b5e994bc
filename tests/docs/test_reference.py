"""The reference says what the code does."""

from __future__ import annotations

import pytest

from scripts.pages.__main__ import FOLDER, PAGES, page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_the_one_that_the_code_gives(name: str) -> None:
    assert page(name) == (FOLDER / f"{name}.md").read_text(), "run scripts/reference"

"""The list of all runs: each once, however many executions it has, with links; reads do not grow with the table."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.protocol.run_pieces import RunPiece, newest_runs
from tests.fedgrass.cloud.console.conftest import FLEET, Browser, Fleet, visible
from tests.fixtures.doubles import double


class Pieces:
    """A table of runs' pieces, which counts what is asked of it."""

    def __init__(self, runs: dict[int, int]) -> None:
        self.items = {
            item["key"]: item
            for run, count in runs.items()
            for item in (
                RunPiece(fleet=FLEET, run=run, first=run + n, last=run + n, execution="e").to_item()
                for n in range(count)
            )
        }
        self.asked = 0

    def query(self, **wanted: Any) -> dict[str, Any]:
        values = wanted["ExpressionAttributeValues"]
        keys = sorted((key for key in self.items if values[":first"] <= key <= values[":below"]), reverse=True)
        self.asked += wanted["Limit"]
        more = {"LastEvaluatedKey": keys[wanted["Limit"] - 1]} if len(keys) > wanted["Limit"] else {}
        return {"Items": [self.items[key] for key in keys[: wanted["Limit"]]], **more}


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(1, 7))
def test_pages_have_each_run_once_the_newest_first(lengths: list[int], limit: int) -> None:
    runs = {1 + 20 * position: length for position, length in enumerate(lengths)}
    table = Pieces(runs)
    found: list[int] = []
    before = 0
    for _ in range(len(runs) + 1):
        pieces, before = newest_runs(double(table), FLEET, limit, before)
        assert len(pieces) <= limit
        assert all(piece.last == piece.run + runs[piece.run] - 1 for piece in pieces), "each run's newest piece"
        found += [piece.run for piece in pieces]
        if not before:
            break
    assert found == sorted(runs, reverse=True)
    table.asked = 0
    newest_runs(double(table), FLEET, limit)
    assert table.asked <= 10 * 2 * limit


def test_every_run_is_listed_with_its_end_and_a_link(fleet: Fleet, browser: Browser) -> None:
    sample = fleet.fill(devices=2, rounds=30, run=10)
    table = fleet.account.rounds_table
    assert visible(browser.get("/runs/")).count("10 of at most 10") == 3
    page = browser.get("/runs/")
    assert re.findall(r'href="/runs/(\d+)"', page) == ["21", "11", "1"]
    assert "It has had all its rounds." in page
    cut = sample.record(31).model_copy(
        update={
            "phase": "closed",
            "outcome": "cancelled",
            "reason": "<script>no</script>",
            "run": None,
            "settings": sample.record(30).settings.overridden({"rounds": 5}),
        }
    )
    table.put_item(Item=cut.to_item())
    table.put_item(Item=RunPiece(fleet=FLEET, run=31, first=31, last=31, execution="e").to_item())
    words = visible(browser.get("/runs/"))
    assert "Round 31 cancelled" in words
    assert "0 of at most 5" in words
    assert "<script>no" not in browser.get("/runs/")


def test_the_run_that_goes_on_is_told_from_those_that_ended(fleet: Fleet, browser: Browser) -> None:
    sample = fleet.fill(devices=2, rounds=12, run=10)
    before = sample.record(12)
    fleet.open(before.model_copy(update={"phase": "collecting", "outcome": None, "closed_at": None}))
    assert visible(browser.get("/runs/")).count("goes on") == 1


@pytest.mark.parametrize("before", ["0", "1", "-5", "999999", "1000000", "9" * 40, "x", "٣"])
def test_any_place_in_an_empty_list_is_shown(fleet: Fleet, browser: Browser, before: str) -> None:
    assert "run yet" in browser.get("/runs/") or "None here" in browser.get("/runs/")
    browser.get(f"/runs/?before={before}")


def test_a_run_whose_rounds_are_gone_is_left_out(fleet: Fleet, browser: Browser) -> None:
    fleet.account.rounds_table.put_item(Item=RunPiece(fleet=FLEET, run=7, first=7, last=9, execution="e").to_item())
    assert "/runs/7" not in browser.get("/runs/")

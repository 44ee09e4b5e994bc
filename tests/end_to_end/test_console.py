"""A person with a browser drives a fleet of real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from fedgrass.protocol import tables
from tests.end_to_end.conftest import Operator
from tests.fixtures.browser import PATIENCE_MS, chromium, serious_findings
from tests.fixtures.waiting import eventually

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("fleet")]


@pytest.fixture(scope="module")
def page(operator: Operator) -> Iterator[Page]:
    with chromium() as browser, operator.console() as address:
        page = browser.new_page(base_url=address)
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page


def outcome_of(page: Page, number: int, outcome: str) -> None:
    """Wait until the history shows how a round ended, which the page does by itself."""
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=str(number), exact=True))
    expect(row.get_by_text(outcome, exact=True)).to_be_visible(timeout=PATIENCE_MS)


def test_each_page_shows_the_fleet_that_runs(operator: Operator, page: Page) -> None:
    page.goto("/")
    for thing in operator.fleet.devices:
        row = page.get_by_role("row").filter(has_text=thing)
        expect(row.get_by_text("alive", exact=True)).to_be_visible()
    page.get_by_role("link", name="device-1").click()
    expect(page.get_by_text("com.fedgrass.Trainer").first).to_be_visible()
    for name in ("Rounds", "Models", "Settings"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
        assert serious_findings(page) == []


def test_a_round_is_started_watched_and_taken_back(operator: Operator, page: Page) -> None:
    before, number = operator.model, operator.next_round
    page.goto("/rounds/")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", name=f"Round {number} is open")).to_be_visible()
    outcome_of(page, number, "released")
    made = operator.model
    assert made != before
    assert operator.active_versions() == {made}
    page.get_by_role("link", name=str(number), exact=True).click()
    expect(page.get_by_text(f"{made} came from {before} and 2 updates")).to_be_visible()

    page.goto("/models/")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=before, exact=True))
    row.get_by_text("Roll back", exact=True).click()
    row.get_by_role("button", name=f"Deploy {before} to the fleet").click()
    expect(page.get_by_role("status")).to_contain_text(f"Model {before} is the fleet's model again")
    eventually(lambda: operator.active_versions() == {before})
    assert operator.model == before


def test_a_model_that_was_held_is_released_by_hand(operator: Operator, page: Page) -> None:
    before, number = operator.model, operator.next_round
    page.goto("/rounds/")
    page.get_by_role("link", name="Start with other settings").click()
    page.get_by_label("Release", exact=True).select_option("never")
    page.get_by_role("button", name="Start").click()
    outcome_of(page, number, "held")
    assert operator.model == before
    version = tables.load_round(operator.demo.rounds_table, operator.fleet.fleet, number).version

    page.goto("/models/")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=version, exact=True))
    row.get_by_text("Release", exact=True).click()
    row.get_by_role("button", name=f"Deploy {version} to the fleet").click()
    expect(page.get_by_role("status")).to_contain_text(f"Model {version} is released")
    eventually(lambda: operator.active_versions() == {version})
    assert operator.model == version
    packages = operator.fleet.aws.client("sagemaker").list_model_packages(
        ModelPackageGroupName=operator.fleet.outputs.model_package_group
    )["ModelPackageSummaryList"]
    assert any(package["ModelPackageDescription"].endswith(f" {version}") for package in packages)


def test_an_open_round_is_cancelled(operator: Operator, page: Page) -> None:
    before, number = operator.model, operator.next_round
    page.goto("/rounds/")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", name=f"Round {number} is open")).to_be_visible()
    page.get_by_text(f"Cancel round {number}").click()
    page.get_by_role("button", name="End it now").click()
    outcome_of(page, number, "cancelled")
    assert operator.model == before

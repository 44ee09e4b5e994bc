"""What each page shows of a fleet of 70 devices after 30 rounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fedgrass.cloud.console.conftest import Browser, browser_of, fresh_fleet, visible


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests: pages that are only looked at change nothing."""
    with fresh_fleet() as fleet:
        fleet.fill(devices=70, rounds=30)
        browser = browser_of(fleet.account)
        assert browser.wait_for_index().complete
        yield browser


def test_the_fleet_page_shows_each_device_with_state_reason_model_and_resources(browser: Browser) -> None:
    page = visible(browser.get("/"))
    assert "70 known" in page
    assert "66 alive" in page
    assert "4 silent" in page
    assert "no: memory: 92 % used, the limit is 85 %" in page
    assert "press-00006 silent 20 min ago" in page
    assert "1.30.0" in page
    assert "uploaded" in page


@pytest.mark.parametrize(
    ("query", "shown", "hidden"),
    [
        ("state=silent", {"press-00006"}, {"press-00001"}),
        ("state=unable", {"press-00004"}, {"press-00006"}),
        ("state=able", {"press-00001"}, {"press-00004", "press-00006"}),
        ("name=0000", {"press-00001"}, {"press-00012"}),
        ("version=1.29.0", {"press-00001", "press-00014"}, {"press-00002"}),
        ("state=nonsense", {"press-00001", "press-00006"}, set()),
    ],
)
def test_devices_are_filtered(browser: Browser, query: str, shown: set[str], hidden: set[str]) -> None:
    page = browser.get(f"/?{query}")
    assert all(f"/devices/{thing}" in page for thing in shown)
    assert not any(f"/devices/{thing}" in page for thing in hidden)


def test_a_large_fleet_comes_in_pages_that_keep_the_filter(browser: Browser) -> None:
    first = browser.get("/")
    assert "/devices/press-00025" in first
    assert "/devices/press-00026" not in first
    assert "1–25 of 70" in first
    last = browser.get("/?name=press&page=99")
    assert "/devices/press-00051" in last
    assert "51–70 of 70" in last
    assert "name=press&amp;page=2" in last


def test_a_devices_page_shows_its_heartbeat_components_and_rounds(browser: Browser) -> None:
    page = visible(browser.get("/devices/press-00001"))
    assert "com.fedgrass.Trainer 1.0.0" in page
    assert "refused 1.30.0" in page
    assert "able to train" in page
    assert "uploaded" in page
    assert "knows no device" in browser.get("/devices/nobody", 404)


def test_the_rounds_page_has_history_curves_and_pages(browser: Browser) -> None:
    page = browser.get("/rounds/")
    assert page.count("<svg") == 3
    assert "Round 30: " in page
    assert 'href="/rounds/6"' in page
    assert 'href="/rounds/5"' not in page
    assert "68 of 70" in visible(page)
    second = browser.get("/rounds/?page=2")
    assert 'href="/rounds/5"' in second
    assert 'href="/rounds/6"' not in second


def test_a_rounds_page_shows_its_lineage_down_to_each_update_and_what_was_quarantined(browser: Browser) -> None:
    page = browser.get("/rounds/30")
    words = visible(page)
    assert "1.30.0 came from 1.29.0 and 68 updates, by fedavg" in words
    assert "updates/mill/000030/press-00003/update.safetensors" in page
    assert "not finite: 2" in words
    assert "has values that are not finite" in words
    assert "updates/mill/000030/press-00070/update.safetensors" not in page
    assert "updates/mill/000030/press-00070/update.safetensors" in browser.get("/rounds/30?updates=3")
    assert "after=press-00025" in page
    assert "/devices/press-00050" in browser.get("/rounds/30?after=press-00025")


def test_a_round_without_a_record_is_not_found(browser: Browser) -> None:
    assert "there is no record of it" in browser.get("/rounds/99", 404)


def test_the_models_page_shows_versions_with_figures_and_where_they_are_active(browser: Browser) -> None:
    page = visible(browser.get("/models/"))
    assert "The next round starts from 1.30.0" in page
    assert "1.30.0 current round 30" in page
    assert "1.0.0 the operator" in visible(browser.get("/models/?page=2"))
    assert "Deploy 1.29.0 to the fleet" in page
    assert "Deploy 1.30.0 to the fleet" not in page

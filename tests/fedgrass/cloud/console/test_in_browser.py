"""The console in a real browser: everybody can use each page, in light and dark, and a phone shows all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from fedgrass.cloud.console.app import create_app
from fedgrass.cloud.console.security import Access
from tests.fedgrass.cloud.console.conftest import NOW, TOKEN, Fleet
from tests.fedgrass.cloud.console.served import PAGES, console_of_a_busy_fleet, served
from tests.fixtures.browser import PATIENCE_MS, chromium, serious_findings

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def busy(chrome: Browser) -> Iterator[tuple[str, Fleet]]:
    with console_of_a_busy_fleet() as served:
        yield served


@pytest.mark.parametrize("address", [*PAGES.values(), "/nothing"])
def test_axe_finds_nothing_serious_on_a_page_in_light_and_dark(
    busy: tuple[str, Fleet], chrome: Browser, address: str
) -> None:
    complaints: list[str] = []
    page = chrome.new_page(color_scheme="light")
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(busy[0] + address)
    assert serious_findings(page) == []
    page.emulate_media(color_scheme="dark")
    assert serious_findings(page, "color-contrast", "link-in-text-block") == []
    page.close()
    # Such as what the Content-Security-Policy stops, or a script's mistake.
    assert [text for text in complaints if "404" not in text] == []


def test_axe_finds_what_is_wrong(busy: tuple[str, Fleet], chrome: Browser) -> None:
    page = chrome.new_page()
    page.goto(busy[0] + "/settings/")
    page.evaluate("() => document.querySelectorAll('label').forEach((label) => label.remove())")
    assert any(finding.startswith("label (critical)") for finding in serious_findings(page))
    page.close()


def test_a_phone_scrolls_no_page_sideways(busy: tuple[str, Fleet], chrome: Browser) -> None:
    page = chrome.new_page(viewport={"width": 360, "height": 740})
    for address in PAGES.values():
        page.goto(busy[0] + address)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360, address
    page.close()


def test_the_open_round_goes_on_without_the_page_being_loaded_again(busy: tuple[str, Fleet], chrome: Browser) -> None:
    address, fleet = busy
    page = chrome.new_page()
    page.goto(address + "/rounds/")
    page.evaluate("() => { window.loadedOnce = true; }")
    expect(page.get_by_text("37 of 60 that end the collecting")).to_be_visible()
    fleet.account.rounds_table.update_item(
        Key={"fleet": "mill", "key": "round#000042"},
        UpdateExpression="SET uploaded = :more",
        ExpressionAttributeValues={":more": 44},
    )
    expect(page.get_by_text("44 of 60 that end the collecting")).to_be_visible(timeout=PATIENCE_MS)
    assert page.evaluate("() => window.loadedOnce")
    page.close()


def test_a_stranger_logs_in_with_the_token(busy: tuple[str, Fleet], chrome: Browser) -> None:
    app = create_app(busy[1].account, Access(token=TOKEN), clock=NOW.timestamp)
    with served(app) as address:
        page = chrome.new_page()
        page.goto(address + "/rounds/")
        assert serious_findings(page) == []
        page.get_by_label("Token").fill("not the token at all")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("That is not the token")).to_be_visible()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Devices")).to_be_visible(timeout=PATIENCE_MS)
        page.close()

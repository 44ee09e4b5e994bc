"""What other pages, other names and strangers cannot do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedgrass.cloud.console.security import Access
from fedgrass.errors import ConfigurationError
from tests.fedgrass.cloud.console.conftest import TOKEN, Fleet, browser_of, fresh_fleet

OWN = {"Origin": "http://localhost"}
POSTS = [
    "/rounds/start",
    "/runs/new",
    "/runs/1/end",
    "/runs/1/resume",
    "/rounds/aggregate",
    "/rounds/new",
    "/settings/",
    "/models/1.1.0/release",
    "/models/1.1.0/roll-back",
    "/logout",
]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One for all tests: what is refused changes nothing."""
    with fresh_fleet() as fleet:
        fleet.fill(devices=3, rounds=1)
        yield fleet


def executions(fleet: Fleet) -> int:
    arn = fleet.account.stack.state_machine_arn
    return len(fleet.account.step_functions.list_executions(stateMachineArn=arn)["executions"])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8321", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io"]
)
def test_a_name_that_is_not_the_consoles_is_refused_as_in_dns_rebinding(fleet: Fleet, host: str) -> None:
    for address in ("/", "/static/console.css", "/login"):
        answer = browser_of(fleet.account).client.get(address, headers={"Host": host})
        assert answer.status_code == 400
        assert "--name" in answer.text


@pytest.mark.parametrize("host", ["localhost", "localhost:8321", "127.0.0.1:9", "[::1]:8321"])
def test_every_name_of_loopback_is_served(fleet: Fleet, host: str) -> None:
    assert browser_of(fleet.account).client.get("/static/console.css", headers={"Host": host}).status_code == 200


def test_every_route_that_takes_a_form_is_in_these_tests(fleet: Fleet) -> None:
    app = browser_of(fleet.account).client.application
    routes = {str(rule) for rule in app.url_map.iter_rules() if rule.methods and "POST" in rule.methods}
    assert {route.replace("<version>", "1.1.0").replace("<int:number>", "1") for route in routes} == {*POSTS, "/login"}


@pytest.mark.parametrize("address", POSTS)
@pytest.mark.parametrize(
    "origin",
    [
        {},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost.evil.example"},
    ],
)
def test_a_form_of_another_page_is_refused_even_with_the_right_token(
    fleet: Fleet, address: str, origin: dict[str, str]
) -> None:
    browser = browser_of(fleet.account)
    browser.get("/rounds/")
    with browser.client.session_transaction() as session:
        token = session["csrf"]
    answer = browser.client.post(address, data={"csrf": token, "rounds": "1"}, headers=origin)
    assert answer.status_code == 403
    assert executions(fleet) == 0


@pytest.mark.parametrize("address", POSTS)
@pytest.mark.parametrize("token", [None, "", "x" * 43])
def test_a_form_without_its_token_is_refused(fleet: Fleet, address: str, token: str | None) -> None:
    browser = browser_of(fleet.account)
    browser.get("/rounds/")
    data = {"rounds": "1"} if token is None else {"rounds": "1", "csrf": token}
    assert browser.client.post(address, data=data, headers=OWN).status_code == 403
    assert executions(fleet) == 0


def test_a_form_before_any_page_was_seen_is_refused(fleet: Fleet) -> None:
    assert browser_of(fleet.account).client.post("/rounds/start", data={"csrf": ""}, headers=OWN).status_code == 403


@pytest.mark.parametrize(
    "address", ["/", "/rounds/", "/rounds/1", "/rounds/live", "/models/", "/settings/", "/devices/press-00001"]
)
def test_with_a_token_a_stranger_sees_the_log_in_page_only(fleet: Fleet, address: str) -> None:
    client = browser_of(fleet.account, Access(token=TOKEN)).client
    answer = client.get(address)
    assert (answer.status_code, answer.location) == (303, "/login")
    assert "press-" not in answer.text


def test_the_right_token_opens_the_console_and_logging_out_closes_it(fleet: Fleet) -> None:
    browser = browser_of(fleet.account, Access(token=TOKEN))
    assert browser.post("/login", "/login", token="wrong").status_code == 403
    assert browser.client.get("/").status_code == 303
    opened = browser.post("/login", "/login", token=TOKEN)
    assert (opened.status_code, opened.location) == (303, "/")
    cookie = opened.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "press-00001" in browser.get("/")
    browser.post("/logout", "/")
    assert browser.client.get("/").status_code == 303


def test_the_token_and_credentials_are_on_no_page(fleet: Fleet) -> None:
    browser = browser_of(fleet.account, Access(token=TOKEN))
    browser.post("/login", "/login", token=TOKEN)
    for address in ("/", "/rounds/", "/rounds/1", "/models/", "/settings/", "/rounds/new", "/login"):
        page = browser.client.get(address).text
        assert TOKEN not in page
        assert "_token" not in page


def test_every_answer_binds_the_browser(fleet: Fleet) -> None:
    client = browser_of(fleet.account).client
    for address in ("/", "/nothing", "/static/console.css"):
        headers = client.get(address).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
    assert client.get("/").headers["Cache-Control"] == "no-store"


def test_what_devices_say_is_text_and_never_markup(fleet: Fleet) -> None:
    evil = "<script>alert(1)</script>"
    fleet.account.devices_table.update_item(
        Key={"fleet": "mill", "thing": "press-00001"},
        UpdateExpression="SET able = :no, reason = :evil",
        ExpressionAttributeValues={":no": False, ":evil": evil},
    )
    page = browser_of(fleet.account).get("/")
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page


def test_loopback_needs_no_token_and_keeps_to_its_names() -> None:
    assert Access.of("127.0.0.1").token is None
    assert Access.of("::1").hosts == Access.of("localhost").hosts
    assert "evil.example" not in Access.of("127.0.0.1").hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "console.example", "::"])
def test_an_address_that_others_reach_demands_a_token(host: str) -> None:
    with pytest.raises(ConfigurationError, match="FEDGRASS_CONSOLE_TOKEN"):
        Access.of(host, ["console.example"])
    assert Access.of(host, ["console.example"], TOKEN).token == TOKEN


def test_a_listener_on_every_address_must_be_told_its_name() -> None:
    with pytest.raises(ConfigurationError, match="--name"):
        Access.of("0.0.0.0", token=TOKEN)
    assert Access.of("192.168.1.4", token=TOKEN).hosts == ("192.168.1.4",)


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 16"):
        Access.of("127.0.0.1", token="secret")

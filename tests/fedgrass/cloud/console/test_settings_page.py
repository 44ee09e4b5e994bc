"""The settings: saved as typed, checked by their own model, and never lost."""

from __future__ import annotations

import json

import pytest

from fedgrass.protocol import tables
from fedgrass.protocol.records import DeviceModel
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.console.conftest import Browser, Fleet, typed, visible
from tests.fixtures.waiting import eventually


def test_settings_are_saved_as_typed(fleet: Fleet, browser: Browser) -> None:
    before = tables.load_settings(fleet.account.rounds_table, "mill")
    seen = browser.get("/settings/").split('name="seen" value="')[1].split('"')[0]
    form = {**typed(before), "fit.epochs": "3", "gate.tolerance": "0.01", "rollout.per_minute": "60"}
    del form["inference.int8"]
    answer = browser.post("/settings/", "/settings/", **form, seen=seen)
    assert answer.status_code == 303, visible(answer.text)
    after = tables.load_settings(fleet.account.rounds_table, "mill")
    assert after == before.overridden(
        {
            "fit": {"epochs": 3},
            "gate": {"tolerance": 0.01},
            "rollout": {"per_minute": 60},
            "inference": {"int8": False},
        }
    )
    assert "default: 1" in visible(browser.get("/settings/"))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("fit.epochs", "0", "greater than or equal to 1"),
        ("fit.epochs", "many", "valid integer"),
        ("gate.tolerance", "nan", "less than or equal to 1"),
        ("update.codec", "nonsense", "nonsense"),
        ("strategy.options", "{", "Not valid JSON"),
        ("release", "sometimes", "every_round"),
    ],
)
def test_a_wrong_setting_is_named_at_its_field_and_nothing_is_saved(
    fleet: Fleet, browser: Browser, name: str, value: str, problem: str
) -> None:
    before = tables.load_settings(fleet.account.rounds_table, "mill")
    answer = browser.post("/settings/", "/settings/", **{**typed(before), name: value})
    assert answer.status_code == 422
    field = answer.text.split(f'id="{name}-error"')[1].split("</p>")[0]
    assert problem in field.replace("&#39;", "'")
    assert f'href="#{name}"' in answer.text
    assert tables.load_settings(fleet.account.rounds_table, "mill") == before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"strategy.name": "nonsense"}, "nonsense"),
        ({"min_updates": "9"}, "a round could open that can never succeed"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    fleet: Fleet, browser: Browser, changes: dict[str, str], problem: str
) -> None:
    before = tables.load_settings(fleet.account.rounds_table, "mill")
    answer = browser.post("/settings/", "/settings/", **{**typed(before), **changes})
    assert answer.status_code == 422
    assert problem in answer.text
    assert tables.load_settings(fleet.account.rounds_table, "mill") == before


def test_settings_that_someone_else_changed_meanwhile_are_not_overwritten_unseen(
    fleet: Fleet, browser: Browser
) -> None:
    before = tables.load_settings(fleet.account.rounds_table, "mill")
    seen = browser.get("/settings/").split('name="seen" value="')[1].split('"')[0]
    theirs = before.overridden({"fit": {"epochs": 9}})
    tables.save_settings(fleet.account.rounds_table, "mill", theirs)
    answer = browser.post("/settings/", "/settings/", **typed(before), seen=seen)
    assert answer.status_code == 409
    assert "Someone else changed the settings" in answer.text
    assert tables.load_settings(fleet.account.rounds_table, "mill") == theirs


def test_settings_that_cannot_be_read_are_mended_by_saving(fleet: Fleet, browser: Browser) -> None:
    stored = json.dumps({"no_such_setting": 1})
    fleet.account.rounds_table.put_item(Item={"fleet": "mill", "key": "settings", "json": stored})
    page = browser.get("/settings/")
    assert "no_such_setting" in page
    assert "Devices" in browser.get("/")
    seen = page.split('name="seen" value="')[1].split('"')[0]
    answer = browser.post("/settings/", "/settings/", **typed(FleetSettings()), seen=seen)
    assert answer.status_code == 303
    assert tables.load_settings(fleet.account.rounds_table, "mill") == FleetSettings()


def test_what_models_of_their_own_bring_the_devices_is_shown_on_their_page(fleet: Fleet, browser: Browser) -> None:
    metrics = {"accuracy": 0.5, "loss": 1.0, "tuned_accuracy": 0.75, "tuned_loss": 0.5}
    said = DeviceModel(
        fleet="mill", thing="press#model", version="1.1.0", outcome="active", metrics=metrics, received_at=1
    )
    fleet.account.devices_table.put_item(Item=said.to_item())
    shown = "Models of their own: better on 1 of 1 devices; accuracy by device: median 0.5 → 0.75"
    eventually(lambda: shown in visible(browser.get("/")), "the device was read")

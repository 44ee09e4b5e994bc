"""A schedule is typed into plain fields, and drawn before anything starts."""

from __future__ import annotations

import pytest

from fedgrass.cloud.console.forms import form_of, read
from fedgrass.cloud.console.preview import draw
from fedgrass.protocol import tables
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.console.conftest import FLEET, Browser, Fleet, typed, visible

CURVED = FleetSettings().overridden(
    {
        "rounds": 12,
        "fit": {"learning_rate": 0.4, "epochs": 8},
        "schedule": {"learning_rate": {"kind": "step", "rounds": 5, "factor": 0.1}},
    }
)


def test_a_form_gives_back_the_settings_that_it_shows() -> None:
    by_loss = FleetSettings().overridden({"cohort": {"size": 2, "over_ask": 1, "by_loss": {"candidates": 3}}})
    for settings in (FleetSettings(), CURVED, by_loss):
        form, found = read(typed(settings))
        assert found == settings, form.error or form.wrong
    names = {one.name: one.kind for one in form_of(CURVED).fields}
    assert names["schedule.learning_rate.kind"] == "choice"
    assert names["schedule.epochs.rounds"] == "number"
    assert "schedule.learning_rate" not in names, "no JSON"


def test_a_schedule_is_drawn_and_nothing_starts(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=2, rounds=1)
    tables.save_settings(fleet.account.rounds_table, FLEET, CURVED)
    page = browser.get("/runs/new")
    assert "0.4 in round 1, 0.004 in round 12" in visible(page)
    form = {**typed(CURVED), "schedule.epochs.kind": "exponential", "schedule.epochs.rounds": "4"}
    answer = browser.post("/runs/new", "/runs/new", **form, preview="schedule.epochs")
    assert answer.status_code == 200
    assert "8 in round 1, 1 in round 12" in visible(answer.text)
    assert answer.text.count("<svg") == 2
    machine = fleet.account.stack.state_machine_arn
    assert not fleet.account.step_functions.list_executions(stateMachineArn=machine)["executions"]
    answer = browser.post("/settings/", "/settings/", **form, preview="schedule.epochs")
    assert "8 in round 1, 1 in round 12" in visible(answer.text)
    assert tables.load_settings(fleet.account.rounds_table, FLEET) == CURVED
    started = browser.post("/runs/new", "/runs/new", **form, once="0" * 32)
    assert started.status_code == 303
    [execution] = fleet.account.step_functions.list_executions(stateMachineArn=machine)["executions"]
    assert fleet.input_of(execution["executionArn"]) == {"schedule": {"epochs": {"kind": "exponential", "rounds": 4}}}


@pytest.mark.parametrize(
    ("changes", "where", "problem"),
    [
        ({"schedule.epochs.rounds": "0"}, 'id="schedule.epochs.rounds-error"', "greater than or equal to 1"),
        ({"schedule.epochs.kind": "sine"}, 'id="schedule.epochs.kind-error"', "cosine"),
        (
            {"schedule.epochs.least": "5", "schedule.epochs.most": "2"},
            "Schedule: epochs",
            "most (2) is less than least",
        ),
        ({"schedule.epochs.factor": "nan"}, 'id="schedule.epochs.factor-error"', "finite"),
    ],
)
def test_what_is_wrong_stands_at_its_field_or_curve(
    fleet: Fleet, browser: Browser, changes: dict[str, str], where: str, problem: str
) -> None:
    tables.save_settings(fleet.account.rounds_table, FLEET, CURVED)
    answer = browser.post("/runs/new", "/runs/new", **{**typed(CURVED), **changes}, preview="schedule.epochs")
    assert answer.status_code == 422
    assert problem in answer.text.split(where)[1].split("</fieldset>")[0]


def test_a_very_long_schedule_is_drawn_with_few_points() -> None:
    for rounds, kind in ((1, "cosine"), (2, "step"), (100_000, "exponential")):
        settings = CURVED.overridden(
            {"rounds": rounds, "schedule": {"learning_rate": {"kind": kind, "rounds": 1_000_000, "factor": 0.5}}}
        )
        form = form_of(settings)
        draw(form, settings)
        [chart] = [section.chart for section in form.sections if section.chart]
        assert 2 <= len(chart.points) <= 100

"""What people and scripts are shown of a round that waits, and of the fleet."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fedgrass.cli import cli
from fedgrass.cloud.rounds.record_model import record_model
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.protocol.records import round_key
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet
from tests.fedgrass.cloud.rounds.test_missing import GONE, collecting, gone


@pytest.fixture
def account(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    found = SimpleNamespace(fleet=FLEET, rounds_table=fleet.rounds, devices_table=fleet.services.devices)
    for module in ("rounds", "fleet"):
        monkeypatch.setattr(f"fedgrass.cli.{module}.Account", SimpleNamespace(of=lambda _fleet: found))
        monkeypatch.setattr(f"fedgrass.cli.{module}.time.time", lambda: fleet.now.timestamp())
    monkeypatch.setattr("fedgrass.cli.rounds.last_failure", lambda _account: None)
    monkeypatch.setattr("fedgrass.cli.rounds.lost_events", lambda _account: [])
    return fleet


def run(*words: str) -> str:
    shown = CliRunner().invoke(cli, [*words, "--fleet", FLEET])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_a_round_that_waits_says_for_whom_and_why(account: Fleet) -> None:
    collecting(account)
    record_update(account.services, account.update("a"))
    gone(account, "c")
    said = run("round", "status")
    assert f"no answer yet of c: no: {GONE['reason']}" in said
    assert "no answer yet of b: idle" in said
    found = json.loads(run("round", "status", "--json"))
    assert found["round"]["phase"] == "collecting"
    assert "collect_token" not in found["round"]
    assert [part["thing"] for part in found["devices"]] == ["a"]
    assert [(one["thing"], one["gone"]) for one in found["waiting"]] == [("b", False), ("c", True)]


@pytest.mark.parametrize(("task", "said"), [("fit", "1.0.0 → 1.1.0"), ("evaluate", "1.0.0"), ("statistics", "1.0.0")])
def test_a_round_that_makes_no_model_names_none(account: Fleet, task: str, said: str) -> None:
    account.heartbeats("a", "b", "c")
    account.open(task=task)
    account.rounds.update_item(
        Key={"fleet": FLEET, "key": round_key(1)},
        UpdateExpression="SET participants = :three",
        ExpressionAttributeValues={":three": 3},
    )
    lines = [line.strip("│ ") for line in run("round", "status", "1").splitlines()]
    assert [
        line.removeprefix("base → ").split(maxsplit=1)[1] for line in lines if "model " in line and "1.0.0" in line
    ] == [said]
    assert next(line for line in lines if line.startswith("used")).endswith("3 used")


def test_the_fleet_says_that_a_trainer_is_gone(account: Fleet) -> None:
    gone(account, "c")
    assert f"no: {GONE['reason']}" in run("fleet", "list")
    lines = [json.loads(line) for line in run("fleet", "list", "--json").splitlines()]
    assert [(line["thing"], line["heartbeat"]["trainer_runs"]) for line in lines] == [
        ("a", True),
        ("b", True),
        ("c", False),
    ]
    assert [line["alive"] for line in lines] == [True, True, True]


def test_the_fleet_says_what_models_of_their_own_bring_by_the_devices_last_words(account: Fleet) -> None:
    collecting(account)
    assert "own models" not in run("fleet", "list")
    for thing, fleets, own in (("a", 0.5, 0.75), ("b", 0.625, 0.5)):
        metrics = {"accuracy": fleets, "loss": 1.0, "tuned_accuracy": own, "tuned_loss": 0.5}
        record_model(account.services, account.model(thing, version="1.0.0", metrics=metrics, reason="fine-tuned: …"))
    record_model(account.services, account.model("c", version="1.0.0", metrics={"accuracy": 1.0}))
    said = run("fleet", "list")
    # By hand: of a its own, of b the fleet's.
    assert "own models: better on 1 of 2 devices; accuracy by device: median 0.5625 → 0.6875" in said
    assert "gain: median 0.125, least tenth 0" in said

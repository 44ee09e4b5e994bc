"""The command line: settings read from words, and failures as one clear message."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from fedgrass.account import Account
from fedgrass.bundle import GRAPH, Bundle
from fedgrass.cli import app, cli
from fedgrass.cli.device import changed
from fedgrass.cli.rounds import merge, parse_setting
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.messages import FitTask
from fedgrass.protocol.secure import encoded_key
from fedgrass.protocol.tables import load_settings
from tests.fedgrass.partly_local import partly_local
from tests.fixtures.tables import create_tables

BUNDLE = Path(__file__).resolve().parents[3] / "examples" / "digits" / "bundle"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("rounds=5", {"rounds": 5}),
        ("fit.epochs=3", {"fit": {"epochs": 3}}),
        ("strategy.name=median", {"strategy": {"name": "median"}}),
        ('strategy.options={"clip": {"norm": 1}}', {"strategy": {"options": {"clip": {"norm": 1}}}}),
        ("reason=a=b", {"reason": "a=b"}),
    ],
)
def test_a_setting_is_read_from_a_word(text: str, parsed: dict[str, Any]) -> None:
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("text", ["", "rounds", "=5"])
def test_a_word_that_is_no_setting_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="name=value"):
        parse_setting(text)


def test_several_settings_are_joined_and_the_last_one_counts() -> None:
    assert merge(["fit.epochs=3", "fit.learning_rate=0.5", "fit.epochs=4", "rounds=2"]) == {
        "fit": {"epochs": 4, "learning_rate": 0.5},
        "rounds": 2,
    }


def test_inspecting_a_model_shows_what_it_holds() -> None:
    shown = CliRunner().invoke(cli, ["model", "inspect", str(BUNDLE)])
    assert shown.exit_code == 0
    assert "every file matches its digest" in shown.output
    assert "conv/kernel" in shown.output


def test_a_damaged_model_ends_in_one_message_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(BUNDLE, folder)
    (folder / GRAPH).write_bytes(b"damaged")
    monkeypatch.setattr("sys.argv", ["fedgrass", "model", "inspect", str(folder)])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert GRAPH in message.replace("\n", "")
    assert "Traceback" not in message


def test_without_a_region_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr("sys.argv", ["fedgrass", "fleet", "list"])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 1
    assert "no AWS region" in capsys.readouterr().err


def test_inspecting_a_model_says_what_devices_keep_for_themselves(tmp_path: Path) -> None:
    bundle = partly_local(Bundle.open(BUNDLE), tmp_path / "head", "head")
    shown = CliRunner().invoke(cli, ["model", "inspect", str(bundle.folder)])
    assert "650 of them, which each device keeps for itself" in shown.output
    assert "digit/kernel (local)" in shown.output
    assert "conv/kernel (local)" not in shown.output


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", -1.0), ("learning_rate", math.nan), ("epochs", 1_000_000)]
)
def test_training_on_one_device_with_a_value_out_of_range_names_the_option(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"--{name.replace('_', '-')}: .*found {value!r}"):
        changed(FitTask(), **{name: value})
    assert changed(FitTask(epochs=3), epochs=None, learning_rate=0.1) == FitTask(epochs=3, learning_rate=0.1)


def test_helpers_of_other_accounts_are_pinned_by_the_keys_that_their_owners_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [encoded_key(bytes([number]) * 32) for number in (1, 2)]
    given = [f"{number}11111111111-audit={key}" for number, key in enumerate(keys, start=1)]
    with mock_aws():
        resource = boto3.resource("dynamodb", region_name="us-east-1")
        create_tables(resource.meta.client, rounds="rounds", devices="devices")
        tables_of = SimpleNamespace(rounds_table=resource.Table("rounds"), devices_table=resource.Table("devices"))
        monkeypatch.setattr(Account, "of", lambda _fleet: tables_of)
        done = CliRunner().invoke(cli, ["fleet", "helpers", *given, "--fleet", "mill"])
        assert done.exit_code == 0, done.exception
        secure = load_settings(tables_of.rounds_table, "mill").secure
        assert secure is not None
        assert [(one.name, one.key) for one in secure.helpers] == [
            ("111111111111-audit", keys[0]),
            ("211111111111-audit", keys[1]),
        ]
        # What is no key, or a device that tells none, pins nobody.
        for wrong, said in ((["111111111111-audit=AAAA"], "not a public key"), (["press-1"], "tells no helper's key")):
            refused = CliRunner().invoke(cli, ["fleet", "helpers", given[1], *wrong, "--fleet", "mill"])
            assert said in str(refused.exception)
        assert load_settings(tables_of.rounds_table, "mill").secure == secure

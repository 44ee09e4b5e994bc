from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cloud.aggregator.commands import aggregate
from cloud.aggregator.offline import aggregate_folder
from fedgrass.bundle import Bundle
from fedgrass.errors import ConfigurationError
from tests.cloud.aggregator.conftest import update_bytes


def test_a_folder_is_aggregated_like_a_round(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "u" / "c").mkdir(parents=True)
    for seed, thing in enumerate("ab"):
        (tmp_path / "u" / f"{thing}.safetensors").write_bytes(update_bytes(digits, thing, seed, tmp_path))
    (tmp_path / "u" / "c" / "update.safetensors").write_bytes(update_bytes(digits, "c", 3, tmp_path))
    (tmp_path / "u" / "d.safetensors").write_bytes(b"no update")
    (tmp_path / "u" / "notes.txt").write_bytes(b"passed over")
    found = aggregate_folder(digits.folder, tmp_path / "u", tmp_path / "out")
    assert [u.thing for u in found.updates] == ["a", "b", "c"]
    assert [(q.thing, q.reason) for q in found.quarantined] == [("d", "corrupt_header")]
    made = Bundle.open(tmp_path / "out")
    made.verify()
    assert made.manifest.version == "1.1.0"
    assert made.manifest.graph_sha256 == digits.manifest.graph_sha256
    assert found.parameters is not None
    assert all(v.tobytes() == found.parameters[n].tobytes() for n, v in made.parameters().items())


def test_without_a_good_update_nothing_is_written(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    assert aggregate_folder(digits.folder, tmp_path / "u", tmp_path / "out").parameters is None
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        aggregate_folder(digits.folder, tmp_path / "nowhere", tmp_path / "out")


def test_the_command_does_the_same_and_names_what_it_refused(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    for seed, thing in enumerate("abc"):
        (tmp_path / "u" / f"{thing}.safetensors").write_bytes(update_bytes(digits, thing, seed, tmp_path))
    (tmp_path / "u" / "d.safetensors").write_bytes(b"no update")
    app = typer.Typer()
    app.command()(aggregate)
    places = ["--base", str(digits.folder), "--updates", str(tmp_path / "u"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*places, "--strategy", "fedadam", "--option", "learning_rate=0.5"])
    assert done.exit_code == 0, done.output
    assert "3 updates, 1 refused" in done.output
    assert "d.safetensors: corrupt_header" in done.output
    assert (tmp_path / "out" / "server.safetensors").exists()
    Bundle.open(tmp_path / "out").verify()
    wrong = CliRunner().invoke(app, [*places, "--option", "speed"])
    assert isinstance(wrong.exception, ConfigurationError)

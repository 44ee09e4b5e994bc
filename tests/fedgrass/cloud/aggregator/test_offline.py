from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.commands import aggregate
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.errors import ConfigurationError
from tests.fedgrass.cloud.aggregator.conftest import update_bytes


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
    bounded = CliRunner().invoke(app, [*places, "--max-norm-over-median", "0.5"])
    assert "no good update among 4" in str(bounded.exception)
    wrong = CliRunner().invoke(app, [*places, "--option", "speed"])
    assert isinstance(wrong.exception, ConfigurationError)


def test_input_that_cannot_be_right_is_told_before_anything_is_written(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    app = typer.Typer()
    app.command()(aggregate)
    base = ["--base", str(digits.folder)]
    places = [*base, "--updates", str(tmp_path / "u"), "--output", str(tmp_path / "out")]

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code != 0
        return f"{done.output} {done.exception}"

    assert "holds no update" in said(*places)
    (tmp_path / "u" / "a.safetensors").write_bytes(update_bytes(digits, "a", 1, tmp_path))
    own = str(digits.folder)
    assert "base's own folder" in said(*base, "--updates", str(tmp_path / "u"), "--output", own)
    below_a_file = str(tmp_path / "u" / "a.safetensors" / "out")
    assert "cannot be written" in said(*base, "--updates", str(tmp_path / "u"), "--output", below_a_file)
    assert "Its options are clip, weighting" in said(*places, "--option", "speed=1")
    assert "trimmed_mean" in said(*places, "--strategy", "fedmagic")
    assert "--max-norm" in said(*places, "--max-norm", "-1")
    assert not (tmp_path / "out").exists()


def test_the_progress_bar_is_for_terminals_only(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "a.safetensors").write_bytes(update_bytes(digits, "a", 1, tmp_path))
    app = typer.Typer()
    app.command()(aggregate)
    places = ["--base", str(digits.folder), "--updates", str(tmp_path / "u"), "--output", str(tmp_path / "out")]
    quiet = CliRunner().invoke(app, places)
    assert quiet.output == f"1 updates, 0 refused; the new model is in {tmp_path / 'out'}\n"
    shown = CliRunner().invoke(app, places, env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"})
    assert "1 updates" in shown.output.replace("1 updates, 0 refused", "")

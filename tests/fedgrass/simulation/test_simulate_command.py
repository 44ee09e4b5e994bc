"""``fedgrass simulate`` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedgrass.errors import ConfigurationError, DataError, EngineError
from fedgrass.simulation import cluster
from fedgrass.simulation.commands import app
from fedgrass.simulation.store import Store, open_report
from tests.fedgrass.simulation.conftest import refused, result, run
from tests.fixtures.waiting import PATIENCE, eventually

SMALL = ["--devices", "30", "--cohort", "8", "--examples", "24", "--set", "gate.tolerance=1", "--workers", "1"]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_option() -> None:
    shown = invoke("--help")
    assert shown.exit_code == 0
    for option in (
        "--partition",
        "--strategy",
        "--codec",
        "--attack",
        "--stragglers",
        "--dropout",
        "--resume",
        "compare",
    ):
        assert option in shown.output


def test_options_reach_the_simulation_and_several_runs_are_compared(tmp_path: Path) -> None:
    rest = ["--rounds", 2, "--epochs", 2, "--learning-rate", 0.2, "--seed", 3]
    chosen = ["--strategy", "trimmed_mean:attackers=0.3", "--codec", "float16", "--attack", "label_flip:0.2"]
    one = invoke(*SMALL, *rest, "--output", tmp_path / "a" / "run")
    assert one.exit_code == 0, one.output
    assert "2 rounds" in one.output
    two = invoke(*SMALL, *rest, *chosen, "--set", "checks.max_norm=9", "--output", tmp_path / "b" / "run")
    assert two.exit_code == 0, two.output
    simulation = open_report(tmp_path / "b" / "run")[0].simulation
    assert simulation.fleet.strategy.options == {"attackers": 0.3}
    assert (simulation.fleet.update.codec, simulation.attack, simulation.fleet.checks.max_norm) == (
        "float16",
        "label_flip:0.2",
        9,
    )
    assert (simulation.fleet.fit.epochs, simulation.fleet.fit.learning_rate, simulation.seed) == (2, 0.2, 3)
    both = invoke("compare", tmp_path / "a" / "run", tmp_path / "b" / "run", "--output", tmp_path / "both")
    assert both.exit_code == 0, both.output
    found = json.loads((tmp_path / "both" / "report.json").read_text())
    assert len(found["runs"]) == 2  # though both folders have the same name
    assert (tmp_path / "both" / "chart.png").stat().st_size > 10_000
    assert "trimmed_mean" in (tmp_path / "both" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--strategy", "fedmagic"], "fedmagic"),
        (["--codec", "int3"], "int3"),
        (["--attack", "bribe"], "sign_flip"),
        (["--partition", "dirichlet:x"], "not a number"),
        (["--set", "colour=red"], "colour"),
        (["--set", "colour"], "NAME=JSON"),
        (["--cohort", 31], "31"),
        (["--ray", "localhost:1"], "--ray"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_begun(
    tmp_path: Path, arguments: list[object], match: str
) -> None:
    found = invoke(*SMALL, "--output", tmp_path / "out", *arguments)
    assert isinstance(found.exception, ConfigurationError)
    assert match in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_data_and_folders_that_are_none_are_named(tmp_path: Path) -> None:
    missing = invoke(*SMALL, "--data", tmp_path / "none.txt", "--output", tmp_path / "out")
    assert isinstance(missing.exception, DataError)
    nothing = invoke("compare", tmp_path, "--output", tmp_path / "both")
    assert isinstance(nothing.exception, DataError)


def test_the_instances_of_a_processing_job_become_one_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").mkdir()
    config = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2", "algo-3"]}
    (tmp_path / "config" / "resourceconfig.json").write_text(json.dumps(config))
    monkeypatch.setenv("FEDGRASS_ML_ROOT", str(tmp_path))
    asked: list[tuple[str, ...]] = []

    def ray(*arguments: str) -> int:
        asked.append(arguments)
        return 1

    monkeypatch.setattr(cluster, "_ray", ray)
    with pytest.raises(SystemExit):
        cluster.cluster_of("sagemaker")
    assert asked == [("--address=algo-1:6379", "--block")]
    (tmp_path / "config" / "resourceconfig.json").write_text(json.dumps({**config, "current_host": "algo-1"}))
    with pytest.raises(EngineError, match="ray start --head"):
        cluster.cluster_of("sagemaker")
    assert asked[1][0] == "--head"
    assert cluster.cluster_of("") is None


def test_ctrl_c_keeps_the_rounds_that_are_done_and_resume_goes_on(tmp_path: Path) -> None:
    arguments = [*SMALL, "--rounds", "8", "--codec", "int8"]
    broken = tmp_path / "broken"
    command = [str(Path(sys.executable).with_name("fedgrass")), "simulate", *arguments, "--output", str(broken)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    eventually(lambda: (broken / "rounds.jsonl").exists() and (broken / "rounds.jsonl").read_bytes())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    done = open_report(broken)[0].rounds
    assert process.returncode == (0 if done == 8 else 130), said
    assert done == 8 or "--resume" in said
    assert invoke(*arguments, "--output", broken, "--resume").exit_code == 0
    assert invoke(*arguments, "--output", tmp_path / "whole").exit_code == 0
    assert result(broken) == result(tmp_path / "whole")


def test_ctrl_c_of_a_sweep_keeps_whole_rounds_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = ["sweep", *SMALL[:-2], "--rounds", "6", "--vary", "epochs=1", "--vary", "epochs=2", "--output"]
    broken = tmp_path / "broken"
    command = [str(Path(sys.executable).with_name("fedgrass")), "simulate", *arguments, str(broken), "--processes", "1"]
    with (tmp_path / "said").open("wb") as said:
        # A group of its own: as from a terminal, Ctrl-C reaches every process of it.
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    first = broken / "epochs=1" / "rounds.jsonl"
    eventually(lambda: process.poll() is not None or (first.exists() and first.read_bytes()))
    with suppress(ProcessLookupError):  # it was faster
        os.killpg(process.pid, signal.SIGINT)
    code = process.wait(PATIENCE)
    reports = [open_report(folder)[0] for folder in broken.iterdir() if (folder / "report.json").is_file()]
    ended = len(reports) == 2 and all(report.rounds == 6 for report in reports)
    assert code == (0 if ended else 130), (tmp_path / "said").read_text()
    assert ended or "go on with the same command" in (tmp_path / "said").read_text()
    assert invoke(*arguments, broken).exit_code == 0
    assert [open_report(broken / f"epochs={n}")[0].rounds for n in (1, 2)] == [6, 6]


def test_a_sweep_runs_every_combination_and_one_that_fails_takes_no_other_with_it(tmp_path: Path, plain: Path) -> None:
    as_plain = [*SMALL[:-2], "--rounds", 3, "--epochs", 2, "--deadline", 3600, "--output", tmp_path / "s"]
    varied = ["--vary", "fit.learning_rate=0.2", "--vary", "engine=litert"]
    first = invoke("sweep", *as_plain, *varied, "--vary", "engine=no.such:Engine", "--processes", 2)
    assert first.exit_code == 1
    assert "no.such" in first.output
    good = tmp_path / "s" / "fit.learning_rate=0.2,engine=litert"
    assert result(good) == result(plain)
    assert (tmp_path / "s" / "index.html").is_file()
    # What is done stays done, and is compared again.
    written = (good / "report.json").stat().st_mtime_ns
    again = invoke("sweep", *as_plain, *varied, "--json")
    assert again.exit_code == 0, again.output
    assert [json.loads(line)["run"] for line in again.output.splitlines()] == [good.name]
    assert (good / "report.json").stat().st_mtime_ns == written
    other = invoke("sweep", *as_plain, *varied, "--examples", 30)
    assert isinstance(other.exception, ConfigurationError)
    assert "another examples" in str(other.exception)


@pytest.mark.parametrize(
    ("varied", "said"),
    [
        ([], "nothing varies"),
        (["rounds=many"], "--vary rounds=many: expected int"),
        (["fit.epochs"], "expected NAME=VALUE"),
        (["fit.epoch=1"], "fit.epoch"),
        (["seed=1", "seed=1"], "give each value once"),
        ([f"{name}={value}" for name in ("seed", "cohort", "rounds") for value in range(11)], "1331 runs"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_starts(varied: list[str], said: str, tmp_path: Path) -> None:
    arguments = [part for text in varied for part in ("--vary", text)]
    found = invoke("sweep", "--output", tmp_path / "s", *arguments)
    assert isinstance(found.exception, ConfigurationError)
    assert said in str(found.exception)
    assert not (tmp_path / "s").exists()


def test_a_folder_has_one_process_at_a_time_and_no_rounds_are_lost_to_another(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run(folder, rounds=2)
    wanted = result(folder)
    with Store(folder).alone(), refused(f"in use by process {os.getpid()}"):
        run(folder, rounds=3, resume=True)
    with refused("holds 2 rounds, and 1 are asked for"):
        run(folder, rounds=1, resume=True)
    with refused("holds a simulation"):
        run(folder, rounds=3)
    assert result(folder) == wanted
    run(folder, rounds=2, resume=True)
    assert result(folder) == wanted


def test_a_simulation_that_came_to_no_round_does_not_keep_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(DataError):
        run(folder, data=str(tmp_path / "none.npz"))
    (folder / "kept" / "of-another").touch()
    run(folder, rounds=1)
    assert [one.report.round for one in Store(folder).rounds()] == [1]
    assert not (folder / "kept" / "of-another").exists()


def test_a_sweeps_processes_end_with_the_one_that_leads_when_it_is_killed() -> None:
    script = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from fedgrass.simulation import sweep
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=sweep._begin, initargs=(context.Event(),))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 3600)
    time.sleep(3600)
"""
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    other = int(first.stdout.readline())
    first.kill()
    first.wait()
    eventually(lambda: not Path(f"/proc/{other}").exists() or " Z " in Path(f"/proc/{other}/stat").read_text())

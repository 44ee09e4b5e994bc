"""What a simulation promises about its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.data.digits import digits_bundle
from fedgrass.errors import DataError
from fedgrass.simulation.records import SimulatedRound
from fedgrass.simulation.store import Store, open_report
from tests.fedgrass.simulation.conftest import refused, result, run


def test_a_simulation_learns_and_leaves_a_report_and_a_model_that_can_be_published(plain: Path) -> None:
    report, rounds = open_report(plain)
    assert report.final.accuracy is not None
    assert report.first.accuracy is not None
    assert report.final.accuracy > report.first.accuracy + 0.05
    assert [r.report.round for r in rounds] == [1, 2, 3]
    assert all(len(r.report.updates) == r.asked == 8 for r in rounds)
    model = Bundle.open(plain / "model")
    model.verify()
    assert model.manifest.version == report.final_version == "1.3.0"
    assert model.manifest.parameters_sha256 == report.final_parameters_sha256
    assert (plain / "index.html").read_text().count("<tr>") >= 3
    assert (plain / "chart.png").read_bytes().startswith(b"\x89PNG")
    lines = (plain / "rounds.csv").read_text().splitlines()
    assert lines[0].startswith("round,outcome,version,accuracy")
    assert len(lines) == 4


def test_between_releases_a_model_is_the_next_rounds_base_only(tmp_path: Path, plain: Path) -> None:
    report = run(tmp_path / "s", {"release_every": 2})
    _, rounds = open_report(tmp_path / "s")
    assert [r.report.outcome for r in rounds] == ["advanced", "released", "advanced"]
    assert (report.final_version, report.final) == ("1.3.0", open_report(plain)[0].final)
    assert result(tmp_path / "s")[1] == result(plain)[1]


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"update": {"codec": "int8"}, "strategy": {"name": "fedadam", "options": {"clip": {"over_median": 0.9}}}}, {}),
        ({"strategy": {"name": "median"}, "checks": {"max_norm": 50}}, {"attack": "nan:0.2", "dropout": 0.2}),
    ],
    ids=["server state, clipping, error feedback", "robust, attacked, dropouts"],
)
def test_the_number_of_processes_does_not_change_a_byte(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    run(tmp_path / "one", settings, **options, workers=1)
    run(tmp_path / "three", settings, **options, workers=3)
    assert result(tmp_path / "one") == result(tmp_path / "three")


def test_other_machines_give_the_same_bytes_as_this_one(tmp_path: Path, elsewhere: str) -> None:
    settings = {"strategy": {"name": "fedavg", "options": {"clip": {"over_median": 0.9}}}}
    run(tmp_path / "one", settings, attack="nan:0.2")
    run(tmp_path / "three", settings, attack="nan:0.2", workers=3, ray=elsewhere)
    assert result(tmp_path / "three") == result(tmp_path / "one")
    with refused("one place"):
        run(tmp_path / "robust", {"strategy": {"name": "median"}}, ray=elsewhere)
    with refused("resume with --workers"):
        run(tmp_path / "one", settings, attack="nan:0.2", rounds=4, resume=True, ray=elsewhere)


def test_late_updates_count_once_in_a_later_round_and_for_less(tmp_path: Path, elsewhere: str) -> None:
    settings = {"strategy": {"name": "fedbuff", "options": {"staleness": 2}}, "quorum": 0.5}
    options: dict[str, Any] = {"rounds": 4, "stragglers": "0.4:3x"}
    run(tmp_path / "whole", settings, **options)
    rounds = Store(tmp_path / "whole").rounds()
    used = [(r.report.round, entry) for r in rounds for entry in r.report.updates]
    late = [(number, entry) for number, entry in used if entry.late_for is not None]
    assert late
    assert len({entry.key for _, entry in used}) == len(used)
    assert all(0 < entry.age <= number - (entry.late_for or 0) <= 2 for number, entry in late)
    assert not any(r.report.quarantined for r in rounds)

    def interrupt(simulated: SimulatedRound) -> None:
        if simulated.report.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", settings, **options, done=interrupt)
    run(tmp_path / "broken", settings, **options, resume=True, workers=2)
    assert result(tmp_path / "broken") == result(tmp_path / "whole")
    run(tmp_path / "two", settings, **options, workers=2, ray=elsewhere)
    assert result(tmp_path / "two") == result(tmp_path / "whole")


def test_another_seed_gives_another_result_and_the_same_seed_the_same(plain: Path, tmp_path: Path) -> None:
    run(tmp_path / "same", workers=2)
    run(tmp_path / "other", seed=1)
    assert result(tmp_path / "same") == result(plain)
    assert result(tmp_path / "other")[1] != result(plain)[1]


def test_an_interrupted_simulation_that_is_resumed_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    # Who is asked depends on what was reported before the interruption, too.
    by_loss = {"size": 8, "over_ask": 1.0, "by_loss": {"candidates": 3}}
    settings = {"update": {"codec": "int4"}, "strategy": {"name": "fedavgm"}, "cohort": by_loss}

    def interrupt(simulated: SimulatedRound) -> None:
        if simulated.report.round == 2:
            raise KeyboardInterrupt

    run(tmp_path / "whole", settings, rounds=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", settings, rounds=4, done=interrupt)
    assert open_report(tmp_path / "broken")[0].rounds == 2
    with (tmp_path / "broken" / "rounds.jsonl").open("ab") as file:
        file.write(b'{"asked": 1')  # as a power cut might leave it
    report = run(tmp_path / "broken", settings, rounds=4, resume=True, workers=2)
    assert (report.rounds, report.timing.rounds) == (4, 2)
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


def test_more_rounds_can_be_asked_for_when_resuming_and_nothing_else(plain: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", rounds=1)
    with refused("another partition"):
        run(tmp_path / "a", partition="iid", resume=True)
    with refused("--resume"):
        run(tmp_path / "a")
    run(tmp_path / "a", resume=True)
    assert result(tmp_path / "a") == result(plain)
    with refused("holds no simulation"):
        run(tmp_path / "b", resume=True)


UNBOUNDED = {"max_examples_over_median": 0, "clip_norm_over_median": 0}
"""Without the default bounds, which leave attackers little to do."""


def test_a_robust_strategy_holds_against_attackers_that_ruin_the_mean(tmp_path: Path) -> None:
    attacked: dict[str, Any] = {"attack": "sign_flip:0.2", "rounds": 5, "partition": "iid", "cohort": 12}
    settings = {"fit": {"epochs": 4}, "checks": UNBOUNDED}
    mean = run(tmp_path / "mean", settings, **attacked)
    robust = run(tmp_path / "median", {**settings, "strategy": {"name": "median"}}, **attacked)
    assert mean.final.accuracy is not None
    assert robust.final.accuracy is not None
    assert robust.final.accuracy > mean.final.accuracy + 0.15


def test_the_gate_keeps_the_base_when_attackers_make_the_model_worse(plain: Path, tmp_path: Path) -> None:
    settings = {"gate": {"tolerance": 0.02}, "checks": UNBOUNDED}
    report = run(tmp_path / "gate", settings, bundle=plain / "model", attack="scale:0.3:-100", rounds=2)
    assert report.outcomes == {"held": 2}
    assert report.final == report.first == open_report(plain)[0].final
    assert result(tmp_path / "gate")[1] == result(plain)[1]


def test_values_that_are_no_numbers_are_quarantined_and_the_others_are_used(tmp_path: Path) -> None:
    run(tmp_path / "nan", attack="nan:0.3", cohort=30, rounds=1)
    [simulated] = Store(tmp_path / "nan").rounds()
    assert {entry.reason for entry in simulated.report.quarantined} == {"not_finite"}
    assert (len(simulated.report.quarantined), len(simulated.report.updates)) == (9, 21)


def test_dropouts_and_stragglers_are_counted_and_the_clock_goes_to_the_deadline(tmp_path: Path) -> None:
    settings = {"deadline_seconds": 180}
    run(tmp_path / "slow", settings, cohort=30, rounds=1, dropout=0.2, stragglers="0.3:10x")
    [simulated] = Store(tmp_path / "slow").rounds()
    assert simulated.late == 9 or simulated.late + simulated.dropped > 9
    assert simulated.dropped > 0
    assert len(simulated.report.updates) == simulated.asked - simulated.late - simulated.dropped
    assert simulated.seconds == 180
    assert (simulated.report.finished_at - simulated.report.started_at).total_seconds() == 180


def test_a_round_without_enough_updates_changes_nothing(tmp_path: Path) -> None:
    settings = {"deadline_seconds": 1}
    report = run(tmp_path / "none", settings, rounds=2)
    assert report.outcomes == {"insufficient_updates": 2}
    assert result(tmp_path / "none")[1] == (digits_bundle() / "parameters.safetensors").read_bytes()


def test_privacy_noise_can_be_repeated(tmp_path: Path) -> None:
    settings = {"privacy": {"mode": "local", "clip_norm": 1.0, "noise_multiplier": 0.01}}
    for name in ("a", "b"):
        run(tmp_path / name, settings, rounds=1)
    assert result(tmp_path / "a") == result(tmp_path / "b")
    central = {"privacy": {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 0.01}}
    run(tmp_path / "c", central, rounds=1, workers=2)
    assert result(tmp_path / "c")[1] != result(tmp_path / "a")[1]


def test_a_tree_of_noise_asks_each_device_once_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    settings = {
        "strategy": {"name": "dp_ftrl", "options": {"rounds": 4, "momentum": 0.5}},
        "privacy": {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 0.01},
    }
    run(tmp_path / "whole", settings, rounds=5, workers=2)
    rounds = [[entry.thing for entry in one.report.updates] for one in Store(tmp_path / "whole").rounds()]
    assert len([thing for some in rounds[:4] for thing in some]) == 30 == len({t for some in rounds[:4] for t in some})
    run(tmp_path / "parts", settings, rounds=2)
    run(tmp_path / "parts", settings, rounds=5, resume=True)
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


def test_a_device_whose_parameters_are_not_finite_fails_alone(tmp_path: Path) -> None:
    run(tmp_path / "diverged", attack="scale:0.3:1e60", cohort=30, rounds=1)
    [simulated] = Store(tmp_path / "diverged").rounds()
    assert len(simulated.failed) == 9
    assert all(reason.startswith("diverged") for reason in simulated.failed.values())
    assert len(simulated.report.updates) == 21


def test_your_own_examples_are_taken_from_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz", x=rng.random((100, 8, 8, 1), np.float32), y=rng.integers(0, 10, 100).astype(np.int32)
    )
    report = run(tmp_path / "mine", data=str(tmp_path / "mine.npz"), rounds=1, partition="shards:2")
    assert report.final.examples == 20
    with pytest.raises(DataError, match="labels"):
        run(tmp_path / "few", data=str(tmp_path / "mine.npz"), partition="shards:11")
    np.savez(tmp_path / "wide.npz", x=np.zeros((100, 9), np.float32), y=np.zeros(100, np.int32))
    with pytest.raises(DataError, match="shape"):
        run(tmp_path / "wide", data=str(tmp_path / "wide.npz"))


def test_a_file_of_ones_own_judges_the_models_and_leaves_all_the_data_to_the_devices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 8, 8, 1), np.float32), np.arange(60, dtype=np.int32) % 10
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    np.savez(tmp_path / "judge.npz", x=x[:30], y=y[:30])
    options: dict[str, Any] = {
        "data": str(tmp_path / "mine.npz"),
        "examples": 0,
        "devices": 10,
        "cohort": 10,
        "partition": "shards:2",
    }
    report = run(tmp_path / "s", evaluation=str(tmp_path / "judge.npz"), rounds=1, **options)
    assert report.final.examples == 30
    assert sum(update.num_examples for update in open_report(tmp_path / "s")[1][0].report.updates) == 60
    with refused("another evaluation"):
        run(tmp_path / "s", evaluation="", rounds=2, resume=True, **options)
    np.savez(tmp_path / "wide.npz", x=np.zeros((9, 9), np.float32), y=np.zeros(9, np.int32))
    with pytest.raises(DataError, match="shape"):
        run(tmp_path / "w", evaluation=str(tmp_path / "wide.npz"), rounds=1, **options)
    with pytest.raises(DataError, match="nowhere"):
        run(tmp_path / "n", evaluation=str(tmp_path / "nowhere.npz"), rounds=1, **options)


def test_a_report_is_the_same_document_as_a_real_rounds(plain: Path) -> None:
    line = json.loads((plain / "rounds.jsonl").read_text().splitlines()[-1])
    entry = line["report"]["updates"][0]
    assert set(entry) >= {"thing", "key", "bytes", "num_examples", "weight", "norm", "metrics"}
    assert entry["key"].startswith("updates/simulation/000003/device-")
    assert line["report"]["evaluation"]["accuracy"] == open_report(plain)[0].final.accuracy

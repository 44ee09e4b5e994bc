from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.bundle import Bundle, Parameters
from fedgrass.cloud.aggregator.evaluate import BEST, Evaluator, publish_best
from fedgrass.cloud.aggregator.report import summary
from fedgrass.cloud.ending.announcement import task_of
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import BundleError, DataError, EngineError, ReleaseError, TransferError
from fedgrass.protocol.messages import ServerState
from fedgrass.protocol.names import GLOBAL_MODEL, evaluation_key, model_prefix, report_key, report_prefix
from fedgrass.protocol.report import Best, Evaluation, RoundReport
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round, load_state
from fedgrass.update import write_update
from tests.fedgrass.cloud.aggregator.conftest import (
    FLEET,
    GROUP_ARN,
    ROUND,
    Fleet,
    header,
    three_updates,
    trained,
)

VERSION = f"1.{ROUND}.0"
NEW = model_prefix(FLEET, VERSION)


def published(fleet: Fleet, folder: Path) -> Bundle:
    folder.mkdir()
    for key in fleet.keys(NEW):
        (folder / key.removeprefix(NEW)).write_bytes(fleet.object(key) or b"")
    bundle = Bundle.open(folder)
    bundle.verify()
    return bundle


def test_a_round_releases_the_mean_weighted_by_examples(fleet: Fleet, tmp_path: Path) -> None:
    three_updates(fleet)
    report = fleet.run()
    assert report.outcome == "released"
    base = fleet.base.parameters()
    found = published(fleet, tmp_path / "published").parameters()
    for name, before in base.items():
        deltas = [np.float64(trained(base, seed)[name] - before) * (seed + 1) / 6 for seed in range(3)]
        np.testing.assert_allclose(found[name], before + sum(deltas), rtol=1e-6, atol=1e-9)
    assert [(u.thing, u.num_examples) for u in report.updates] == [("press-a", 200), ("press-b", 100), ("press-c", 300)]
    assert sum(u.weight for u in report.updates) == pytest.approx(1)
    assert report.model is not None
    assert report.model.version == VERSION
    assert report.bytes_read == sum(u.bytes for u in report.updates) > 0


def test_a_released_model_is_deployed_beside_what_was_there(fleet: Fleet) -> None:
    fleet.greengrass.deploy(
        {"targetArn": GROUP_ARN, "components": {"com.fedgrass.Suite": {"componentVersion": "1.0.0"}}}
    )
    three_updates(fleet)
    report = fleet.run()
    assert fleet.greengrass.latest["components"] == {
        "com.fedgrass.Suite": {"componentVersion": "1.0.0"},
        GLOBAL_MODEL: {"componentVersion": VERSION},
    }
    assert report.release is not None
    assert report.release.deployment_id == fleet.greengrass.latest["deploymentId"]
    assert report.release.component_arn in fleet.greengrass.components


def test_the_report_is_in_the_bucket_and_its_summary_fits_an_exit_message(fleet: Fleet) -> None:
    three_updates(fleet)
    report = fleet.run()
    content = fleet.object(report_key(FLEET, ROUND))
    assert content is not None
    assert RoundReport.model_validate_json(content) == report
    assert set(report.seconds) >= {"base", "list", "aggregate", "write", "evaluate", "release"}
    line = summary(report.model_copy(update={"reason": "x" * 5000}))
    assert len(line.encode()) <= 1024
    assert json.loads(line)["version"] == VERSION


def test_bad_updates_leave_no_trace_in_the_model(fleet: Fleet, tmp_path: Path) -> None:
    three_updates(fleet)
    clean = fleet.run()
    assert clean.model is not None
    spoilt = bytearray(fleet.put_update("press-aa", 9))
    spoilt[-4:] = np.float32(np.nan).tobytes()  # the very last number: everything before it was read in good faith
    for key in fleet.keys(report_prefix(FLEET, ROUND)) | fleet.keys(NEW):
        fleet.s3.delete_object(Bucket="fedgrass-test", Key=key)
    fleet.greengrass.components.clear()
    fleet.put("press-aa", bytes(spoilt))
    fleet.put("press-ab", b"\x00" * 64)
    again = fleet.run()
    assert again.model is not None
    assert again.model.parameters_sha256 == clean.model.parameters_sha256
    assert [(q.thing, q.reason) for q in again.quarantined] == [
        ("press-aa", "not_finite"),
        ("press-ab", "corrupt_header"),
    ]


def test_too_few_good_updates_change_nothing(fleet: Fleet) -> None:
    fleet.put_update("press-a", 1)
    fleet.put("press-b", b"rubbish, but long enough to have a header")
    report = fleet.run()
    assert report.outcome == "insufficient_updates"
    assert "minimum is 2" in report.reason
    assert [q.thing for q in report.quarantined] == ["press-b"]
    assert report.model is None
    assert not fleet.keys(NEW)
    assert not fleet.greengrass.components
    assert not fleet.greengrass.deployments


def test_no_update_at_all_is_an_outcome_not_an_error(fleet: Fleet) -> None:
    assert fleet.run().outcome == "insufficient_updates"


def digits_data(count: int = 200) -> tuple[Any, Any]:
    found = load_digits()
    return (found.images[:count, :, :, None] / 16).astype(np.float32), found.target[:count].astype(np.int32)


def test_both_models_are_evaluated_on_the_operators_data(fleet: Fleet) -> None:
    three_updates(fleet)
    fleet.settings = FleetSettings.model_validate({"gate": {"tolerance": 1.0}})
    fleet.put_evaluation_set(*digits_data())
    report = fleet.run()
    assert report.outcome == "released"
    assert report.evaluation is not None
    assert report.evaluation_base is not None
    assert report.evaluation.examples == 200
    assert report.evaluation.accuracy is not None
    assert f"{report.evaluation.accuracy:.4f}" in report.reason
    assert report.evaluation.loss != report.evaluation_base.loss


@pytest.mark.parametrize("changes", [{}, {"forget_best": True}, {"another set": True}, {"below_best": 10.0}])
def test_the_best_figures_so_far_lie_beside_a_model_and_bind_the_next_round(
    fleet: Fleet, changes: dict[str, Any]
) -> None:
    three_updates(fleet)
    fleet.put_evaluation_set(*digits_data())
    content = fleet.object(evaluation_key(FLEET))
    assert content is not None
    digest = "0" * 64 if changes.pop("another set", False) else hashlib.sha256(content).hexdigest()
    had = Best(evaluation_set=digest, loss=0.0 if digest[0] == "0" else 1e9, accuracy=2.0)
    prefix = fleet.current.parameters_key.removesuffix("parameters.safetensors")
    publish_best(fleet.clients.bucket, prefix, had)
    fleet.settings = FleetSettings.model_validate({"gate": {"tolerance": 1.0, **changes}})
    report = fleet.run()
    assert report.evaluation is not None
    assert report.evaluation_base is not None
    assert report.best is not None
    left = fleet.object(NEW + BEST)
    if not changes and digest[0] != "0":
        assert (report.outcome, report.hold, left) == ("held", "best_accuracy", None)
        return
    assert (report.outcome, report.hold) == ("released", None)
    assert left is not None
    best = Best.model_validate_json(left)
    accuracy = max(report.evaluation.accuracy or 0, report.evaluation_base.accuracy or 0)
    assert best.accuracy == (2.0 if "below_best" in changes else accuracy)
    assert best.loss == min(report.evaluation.loss, report.evaluation_base.loss)
    assert best.evaluation_set == hashlib.sha256(content).hexdigest()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_base_without_figures_keeps_no_better_model_back(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    three_updates(fleet)
    fleet.put_evaluation_set(*digits_data())
    real, seen = Evaluator.evaluate, list[int]()

    def first_is_nan(self: Evaluator, parameters: Parameters) -> Evaluation:
        seen.append(1)
        if len(seen) == 1:
            raise EngineError("the loss on the evaluation set is nan")
        return real(self, parameters)

    monkeypatch.setattr(Evaluator, "evaluate", first_is_nan)
    report = fleet.run()
    assert report.outcome == "released"
    assert "base's is not finite" in report.reason


def test_without_an_evaluation_set_the_gate_passes_and_says_so(fleet: Fleet) -> None:
    three_updates(fleet)
    report = fleet.run()
    assert report.outcome == "released"
    assert "no evaluation set" in report.reason


def test_a_worse_model_is_held_and_kept_for_the_record(fleet: Fleet, tmp_path: Path) -> None:
    x, _ = digits_data()
    # The base's own answers are its labels: any other model is worse.
    labels = LiteRTEngine(fleet.base).infer(x).argmax(axis=1).astype(np.int32)
    fleet.put_evaluation_set(x, labels)
    parameters = fleet.base.parameters()
    for thing in ("press-a", "press-b"):
        path = tmp_path / thing
        write_update(path, parameters, {n: -v + 0.3 for n, v in parameters.items()}, header(fleet.base, thing))
        fleet.put(thing, path.read_bytes())
    report = fleet.run()
    assert report.outcome == "held"
    assert "accuracy" in report.reason
    assert report.model is not None
    assert report.evaluation is not None
    assert not fleet.keys(NEW)
    assert not fleet.greengrass.deployments
    assert fleet.object(report_prefix(FLEET, ROUND) + "parameters.safetensors") is not None


def test_settings_may_hold_every_model_back(fleet: Fleet) -> None:
    three_updates(fleet)
    fleet.settings = FleetSettings(release="never")
    report = fleet.run()
    assert report.outcome == "held"
    assert not fleet.greengrass.components


@pytest.mark.parametrize("release", ["every_round", "on_improvement"])
def test_between_two_releases_the_model_is_published_for_the_next_round_and_for_nobody_else(
    fleet: Fleet, tmp_path: Path, release: str
) -> None:
    three_updates(fleet)
    fleet.settings = FleetSettings.model_validate(
        {"release": release, "release_every": 2, "strategy": {"name": "fedavgm"}}
    )
    report = fleet.run()
    assert report.outcome == "advanced"
    assert f"the next release is round {ROUND + 1}'s" in report.reason
    assert report.model is not None
    assert report.server_state_sha256 is not None
    assert {"model.json", "server.safetensors"} <= {key.removeprefix(NEW) for key in fleet.keys(NEW)}
    assert published(fleet, tmp_path / "published").manifest.parameters_sha256 == report.model.parameters_sha256
    assert not fleet.greengrass.components
    assert not fleet.greengrass.deployments


def test_the_fleets_next_base_says_what_the_strategy_left_beside_it(fleet: Fleet) -> None:
    for seed, thing in enumerate(["press-a", "press-b", "press-c"]):
        fleet.put_update(thing, seed, metrics={"step_length": 0.5})
    fleet.settings = FleetSettings.model_validate({"strategy": {"name": "scaffold"}})
    report = fleet.run()
    assert report.outcome == "released", report.reason
    model = load_state(fleet.clients.rounds, FLEET).model
    assert model is not None
    assert model.state == ServerState(strategy="scaffold", sha256=report.server_state_sha256 or "")
    record = load_round(fleet.clients.rounds, FLEET, ROUND)
    assert task_of(record, "bucket").fit.control == "scaffold"


def test_every_nth_round_releases_its_model(fleet: Fleet) -> None:
    three_updates(fleet)
    fleet.settings = FleetSettings(release_every=ROUND)
    assert fleet.run().outcome == "released"
    assert len(fleet.greengrass.deployments) == 1


def test_a_worse_model_does_not_become_the_next_base_between_releases(fleet: Fleet) -> None:
    three_updates(fleet)
    x, _ = digits_data()
    labels = LiteRTEngine(fleet.base).infer(x).argmax(axis=1).astype(np.int32)
    fleet.put_evaluation_set(x, labels)
    fleet.settings = FleetSettings.model_validate({"release_every": 2, "gate": {"tolerance": 0}})
    for thing in ("press-a", "press-b", "press-c"):
        parameters = fleet.base.parameters()
        path = fleet.folder / thing
        write_update(path, parameters, {n: -v for n, v in parameters.items()}, header(fleet.base, thing))
        fleet.put(thing, path.read_bytes())
    assert fleet.run().outcome == "held"
    assert not fleet.keys(NEW)


def test_a_result_that_is_not_finite_is_held(fleet: Fleet) -> None:
    fleet.settings = FleetSettings.model_validate(
        {"strategy": {"name": "fedavgm", "options": {"learning_rate": 1e300}}}
    )
    three_updates(fleet)
    report = fleet.run()
    assert report.outcome == "held"
    assert "not finite" in report.reason
    assert not fleet.keys(NEW)


def test_the_largest_finite_updates_are_summed_without_overflow(fleet: Fleet) -> None:
    parameters = fleet.base.parameters()
    largest = {n: np.full_like(v, 3e38) for n, v in parameters.items()}
    for thing in ("press-a", "press-b"):
        write_update(fleet.folder / thing, parameters, largest, header(fleet.base, thing, num_examples=10**9))
        fleet.put(thing, (fleet.folder / thing).read_bytes())
    report = fleet.run()
    assert report.outcome == "released"
    assert all(np.isfinite(u.norm) for u in report.updates)
    assert [u.num_examples for u in report.updates] == [1_000_000] * 2  # capped


def test_an_altered_base_stops_the_job(fleet: Fleet) -> None:
    three_updates(fleet)
    key = model_prefix(FLEET, "1.0.0") + "model.tflite"
    content = fleet.object(key) or b""
    fleet.s3.put_object(Bucket="fedgrass-test", Key=key, Body=content[:-1] + b"x")
    with pytest.raises(TransferError, match=r"model\.tflite"):
        fleet.run()


def test_a_base_of_another_model_stops_the_job(fleet: Fleet) -> None:
    fleet.current = fleet.current.model_copy(update={"parameters_sha256": "0" * 64})
    with pytest.raises(BundleError, match="not the model"):
        fleet.run()


def test_an_evaluation_set_that_does_not_fit_stops_the_job_by_name(fleet: Fleet) -> None:
    three_updates(fleet)
    fleet.put_evaluation_set(np.zeros((3, 5), np.float32), np.zeros(3, np.int32))
    with pytest.raises(DataError):
        fleet.run()


def test_a_report_left_by_an_earlier_fleet_of_the_name_is_not_taken_for_this_rounds(fleet: Fleet) -> None:
    three_updates(fleet)
    report = fleet.run()
    other = report.model_copy(update={"base": report.base.model_copy(update={"parameters_sha256": "f" * 64})})
    fleet.s3.put_object(Bucket="fedgrass-test", Key=report_key(FLEET, ROUND), Body=other.to_json())
    with pytest.raises(ReleaseError, match="earlier fleet"):
        fleet.run()


def test_a_round_that_was_cancelled_meanwhile_releases_nothing(fleet: Fleet) -> None:
    three_updates(fleet)
    fleet.phase = "closed"
    report = fleet.run()
    assert report.outcome == "held"
    assert "closed" in report.reason
    assert not fleet.greengrass.deployments
    assert not fleet.keys(NEW)

"""What a fleet of real processes does when things go wrong."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.cloud.aggregator.release import release_model
from fedgrass.inference import write_bundle
from fedgrass.protocol import tables
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.members import FleetMember, fleet_members
from fedgrass.protocol.messages import Reply
from fedgrass.protocol.names import GLOBAL_MODEL, evaluation_key, update_key
from fedgrass.protocol.records import MODEL_SUFFIX, to_attribute
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import write_update
from tests.end_to_end.conftest import Operator
from tests.end_to_end.silos import silo_account
from tests.faults import campaign
from tests.fixtures.waiting import PATIENCE, eventually

# `python -m tests.faults` puts in all of them, and often.
SHORT_CAMPAIGN = {
    "kill -9 of the trainer": 2,
    "kill -9 of the model deployer": 1,
    "kill -9 of Stream Manager": 1,
    "kill -9 of the core device": 1,
    "network cut during upload": 1,
    "S3 and others throttle (503)": 1,
    "IPC connections dropped": 2,
    "disk full (no write succeeds)": 1,
    "clock jumps": 1,
    "MQTT messages repeated, reordered, replayed": 2,
    "checkpoint corrupted": 1,
}

SILO_ACCOUNT = "111111111111"

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("fleet")]


def base_bundle(operator: Operator, folder: Path) -> Bundle:
    """The model that the next round starts from, as a device holds it."""
    [device, *_] = operator.fleet.devices.values()
    return Bundle.open((device.store / "active").resolve())


def test_devices_of_both_nuclei_take_part_in_a_round(operator: Operator) -> None:
    record = operator.run_round()
    assert (record.outcome, record.uploaded, record.active) == ("released", 2, 2)
    assert {part.thing for part in operator.parts(record)} == {"device-1", "device-2"}
    logs = {
        thing: (device.greengrass_root / "logs" / "com.fedgrass.Trainer.log").read_text()
        for thing, device in operator.fleet.devices.items()
    }
    unsupported = {thing for thing, log in logs.items() if '"operation_unsupported"' in log}
    assert unsupported == {"device-2"}


def test_without_an_evaluation_set_the_devices_judge_a_model_before_it_is_released(operator: Operator) -> None:
    s3, bucket, key = (
        operator.fleet.aws.client("s3"),
        operator.fleet.outputs.bucket,
        evaluation_key(operator.fleet.fleet),
    )
    kept = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.delete_object(Bucket=bucket, Key=key)
    try:
        record = operator.run_round(gate={"devices_seconds": int(PATIENCE)})
    finally:
        s3.put_object(Bucket=bucket, Key=key, Body=kept)
    report = operator.demo.report_of(record.round)
    assert report is not None
    assert (report.outcome, report.evaluated_by_devices, record.judged) == ("released", 2, 2), report.reason
    assert report.evaluation is not None
    assert report.evaluation.examples == record.judged_examples > 0
    assert {part.thing for part in operator.parts(record) if part.judged_metrics} == {"device-1", "device-2"}


@pytest.mark.parametrize("thing", ["device-1", "device-2"])
def test_an_operator_directs_one_device_of_either_nucleus(operator: Operator, tmp_path: Path, thing: str) -> None:
    base, file = base_bundle(operator, tmp_path), tmp_path / "parameters.safetensors"
    got = operator.command("device", "get-parameters", thing, "--output", str(file))
    assert got.returncode == 0, got.stderr
    assert file.read_bytes() == base.path(PARAMETERS).read_bytes()
    judged = operator.command("device", "evaluate", thing, "--model", base.manifest.version, "--json")
    assert judged.returncode == 0, judged.stderr
    reply = Reply.model_validate_json(judged.stdout)
    assert (reply.status, reply.version) == ("done", base.manifest.version)
    assert reply.metrics["accuracy"] > 0
    assert operator.command("device", "reply", thing, reply.id, "--json").stdout == judged.stdout
    assert operator.command("device", "set-parameters", thing, base.manifest.version).returncode == 0
    trained = operator.command("device", "fit", thing, "--epochs", "1", "--output", str(file))
    assert trained.returncode == 0, trained.stderr
    assert file.read_bytes() != base.path(PARAMETERS).read_bytes()
    refused = operator.command("device", "roll-back", thing, "--to", "9.9.9")
    assert refused.returncode == 1
    assert "roll_back refused" in refused.stderr


def test_bad_updates_are_quarantined_and_the_round_completes(operator: Operator, tmp_path: Path) -> None:
    bundle, number = base_bundle(operator, tmp_path), operator.next_round
    base = bundle.parameters()
    honest = UpdateHeader(
        fleet=operator.fleet.fleet,
        round=number,
        thing="mallory",
        base_sha256=bundle.manifest.parameters_sha256,
        graph_sha256=bundle.manifest.graph_sha256,
        num_examples=100,
        metrics={},
        codec="float32",
    )
    path = tmp_path / "update"
    local = {name: array + np.float32(0.01) for name, array in base.items()}

    def upload(thing: str, content: bytes) -> None:
        key = update_key(operator.fleet.fleet, number, thing)
        operator.fleet.aws.client("s3").put_object(Bucket=operator.fleet.outputs.bucket, Key=key, Body=content)

    def written(thing: str, **changes: object) -> bytes:
        write_update(path, base, local, honest.model_copy(update={"thing": thing, **changes}))
        return path.read_bytes()

    upload("corrupt", b"\xff" * 200)
    upload("truncated", written("truncated")[:-100])
    upload("foreign", written("device-1"))
    upload("late-round", written("late-round", round=number + 1))
    upload("other-base", written("other-base", base_sha256="0" * 64))
    content = bytearray(written("not-a-number"))
    content[-4:] = np.float32(np.nan).tobytes()
    upload("not-a-number", bytes(content))
    loaded, metadata = tensors.load(path)
    first = next(iter(loaded))
    tensors.save(path, {**loaded, first: loaded[first].reshape(-1)}, {**metadata, "thing": "wrong-shape"})
    upload("wrong-shape", path.read_bytes())
    upload("stranger", written("stranger"))

    bad = ("corrupt", "truncated", "foreign", "late-round", "other-base", "not-a-number", "wrong-shape")
    with operator.known(*bad):
        record = operator.run_round()

    report = operator.demo.report_of(number)
    assert report is not None
    assert {entry.thing: entry.reason for entry in report.quarantined} == {
        "corrupt": "corrupt_header",
        "truncated": "truncated",
        "foreign": "foreign_thing",
        "late-round": "wrong_round",
        "other-base": "wrong_base",
        "not-a-number": "not_finite",
        "wrong-shape": "wrong_shape",
        "stranger": "unknown_thing",
    }
    assert [entry.thing for entry in report.updates] == ["device-1", "device-2"]
    assert record.outcome == "released"
    assert record.quarantined == 8
    assert operator.active_versions() == {record.version}


def test_two_silos_and_two_devices_take_part_in_one_round(operator: Operator, tmp_path: Path) -> None:
    x, y = load_digits(return_X_y=True)
    images, labels = (x.reshape(-1, 8, 8, 1) / 16).astype(np.float32), y.astype(np.int32)
    data = {"north": (images[:300], labels[:300]), "south": (images[300:500], labels[300:500])}
    silos = [f"{SILO_ACCOUNT}-{name}" for name in data]
    everyone = {*operator.fleet.devices, *silos}

    def alive() -> bool:
        found = fleet_members(operator.demo.devices_table, operator.fleet.fleet)
        return {member.thing for member in found if member.heartbeat is not None} >= everyone

    def ended() -> bool:
        said = operator.command("silo", "status", *silos, "--limit", "1").stdout
        assert "Failed" not in said, said
        return said.count("Completed") == 2

    with silo_account(operator.fleet, tmp_path, SILO_ACCOUNT, data), operator.settings(silos=silos):
        started = operator.command("silo", "start", *silos)
        assert started.returncode == 0, started.stderr
        again = operator.command("silo", "start", *silos)
        assert again.returncode == 1
        assert "goes on" in again.stderr
        eventually(alive)
        record = operator.run_round()
        eventually(ended)
    for item in (f"{silo}{suffix}" for silo in silos for suffix in ("", MODEL_SUFFIX)):
        operator.demo.devices_table.delete_item(Key={"fleet": operator.fleet.fleet, "thing": item})

    assert (record.outcome, record.uploaded, record.active) == ("released", 4, 4)
    report = operator.demo.report_of(record.round)
    assert report is not None
    assert {update.thing for update in report.updates} == everyone
    examples = {update.thing: update.num_examples for update in report.updates}
    assert [examples[silo] for silo in silos] == [240, 160]
    assert operator.active_versions() == {record.version}


def test_too_few_good_updates_leave_the_model_as_it_is(operator: Operator) -> None:
    before = operator.model
    record = operator.run_round(checks={"max_norm": 1e-9})
    assert record.outcome == "insufficient_updates"
    assert operator.model == before
    assert operator.active_versions() == {before}


def test_a_second_round_is_refused_while_one_is_open_and_the_refusal_names_it(operator: Operator) -> None:
    number = operator.next_round
    first = operator.start()
    eventually(lambda: tables.load_state(operator.demo.rounds_table, operator.fleet.fleet).open)
    refused = operator.command("round", "start")
    assert refused.returncode == 1
    assert f"round {number}" in refused.stderr
    second = operator.wait(operator.start())
    assert second["status"] == "FAILED"
    assert f"round {number}" in second["cause"]
    assert operator.wait(first)["status"] == "SUCCEEDED"


def test_the_command_line_drives_a_round_and_shows_it(operator: Operator) -> None:
    number = operator.next_round
    started = operator.command("round", "start", "--set", "fit.epochs=1", "--wait")
    assert started.returncode == 0, started.stderr
    listed = operator.command("round", "list", "--json", "--limit", "1")
    record = json.loads(listed.stdout)
    assert (record["round"], record["outcome"]) == (number, "released")
    assert not [name for name in record if name.endswith("token")]
    shown = operator.command("round", "status").stdout
    assert all(thing in shown for thing in operator.fleet.devices)
    eventually(lambda: operator.command("fleet", "list").stdout.count("alive") == len(operator.fleet.devices))
    misspelt = operator.command("round", "start", "--set", "fit.epoch=1")
    assert misspelt.returncode == 1
    assert "fit.epoch: there is no such setting" in misspelt.stderr


def test_a_round_is_aggregated_before_its_quorum_and_long_before_its_deadline(operator: Operator) -> None:
    number = operator.next_round
    with operator.known("never-answers"):
        # It is alive and able when the round opens, and silent from then on.
        beat = Heartbeat(
            fleet=operator.fleet.fleet,
            thing="never-answers",
            sent_at=datetime.now(timezone.utc),
            interval_seconds=3600,
        )
        item = {**json.loads(beat.encode()), "received_at": int(time.time() * 1000)}
        operator.demo.devices_table.put_item(Item=to_attribute(item))
        execution = operator.start(deadline_seconds=3600, rollout={"wait_seconds": 1})

        def two_have_come() -> bool:
            state = tables.load_state(operator.demo.rounds_table, operator.fleet.fleet)
            if state.open is None:
                return False
            found = tables.load_round(operator.demo.rounds_table, operator.fleet.fleet, state.open.round)
            return found.uploaded == 2

        eventually(two_have_come)
        done = operator.command("round", "aggregate")
        assert done.returncode == 0, done.stderr
        assert operator.wait(execution)["status"] == "SUCCEEDED"
    record = tables.load_round(operator.demo.rounds_table, operator.fleet.fleet, number)
    assert (record.outcome, record.asked, record.uploaded, record.participants) == ("released", 3, 2, 2)
    assert operator.command("round", "aggregate").returncode == 1


def test_a_cancelled_round_leaves_the_model_and_frees_the_fleet(operator: Operator) -> None:
    before, number = operator.model, operator.next_round
    # Trains for so long that the round is open when the command comes, however late that is.
    execution = operator.start(fit={"epochs": 400})
    eventually(lambda: tables.load_state(operator.demo.rounds_table, operator.fleet.fleet).open)
    assert operator.command("round", "cancel").returncode == 0
    assert operator.wait(execution)["status"] == "ABORTED"
    eventually(lambda: tables.load_state(operator.demo.rounds_table, operator.fleet.fleet).open is None)
    assert tables.load_round(operator.demo.rounds_table, operator.fleet.fleet, number).outcome == "cancelled"
    assert operator.model == before
    assert operator.command("round", "cancel").returncode == 1


def test_a_model_that_devices_refuse_fails_no_deployment_and_is_put_back(operator: Operator, tmp_path: Path) -> None:
    operator.run_round()  # a device can tell a worse model only from one that has learnt something
    before = operator.active_versions()
    good = base_bundle(operator, tmp_path)
    noise = np.random.default_rng(0)
    poisoned = {name: noise.normal(size=array.shape).astype(np.float32) for name, array in good.parameters().items()}
    version = f"{operator.model.partition('.')[0]}.900.0"
    bundle = write_bundle(good, poisoned, tmp_path / "poisoned", version=version)
    greengrass = operator.fleet.aws.client("greengrassv2")
    released = release_model(bundle, operator.demo.clients())

    def refused() -> list[FleetMember]:
        members = fleet_members(operator.demo.devices_table, operator.fleet.fleet)
        return [m for m in members if m.model and (m.model.version, m.model.outcome) == (version, "refused")]

    def statuses() -> set[str]:
        effective = [
            deployment
            for thing in operator.fleet.devices
            for deployment in greengrass.list_effective_deployments(coreDeviceThingName=thing)["effectiveDeployments"]
            if deployment["deploymentId"] == released.deployment_id
        ]
        return {deployment["coreDeviceExecutionStatus"] for deployment in effective}

    eventually(lambda: len(refused()) >= 2)  # more than half: the third may get the model before, instead
    assert "FAILED" not in statuses()
    assert operator.active_versions() == before
    assert all(m.model is not None and "accuracy" in m.model.reason for m in refused())

    def deployed() -> str:
        target = operator.fleet.outputs.thing_group_arn
        latest = greengrass.list_deployments(targetArn=target, historyFilter="LATEST_ONLY")
        current = greengrass.get_deployment(deploymentId=latest["deployments"][0]["deploymentId"])
        return str(current["components"][GLOBAL_MODEL]["componentVersion"])

    # Nothing refused stands in the deployment, and the fleet goes on.
    eventually(lambda: deployed() == operator.model)
    record = operator.run_round()
    assert record.outcome == "released"
    assert operator.active_versions() == {record.version}


def test_a_poisoned_model_reaches_the_canaries_only_and_a_good_one_the_fleet(
    operator: Operator, tmp_path: Path
) -> None:
    iot = operator.fleet.aws.client("iot")
    iot.create_thing_group(thingGroupName="canaries")
    iot.add_thing_to_thing_group(thingGroupName="canaries", thingName="device-1")
    staged = {"canary_group": "canaries", "canary_seconds": int(PATIENCE)}
    operator.run_round()  # a device can tell a worse model only from one that has learnt something
    before, number = operator.model, operator.next_round
    bundle = base_bundle(operator, tmp_path)
    header = UpdateHeader(
        fleet=operator.fleet.fleet,
        round=number,
        thing="mallory",
        base_sha256=bundle.manifest.parameters_sha256,
        graph_sha256=bundle.manifest.graph_sha256,
        num_examples=1_000_000,
        metrics={},
    )
    base, noise = bundle.parameters(), np.random.default_rng(0)
    poison = {name: array + noise.normal(size=array.shape).astype(np.float32) for name, array in base.items()}
    write_update(tmp_path / "update", base, poison, header)
    operator.fleet.aws.client("s3").put_object(
        Bucket=operator.fleet.outputs.bucket,
        Key=update_key(operator.fleet.fleet, number, "mallory"),
        Body=(tmp_path / "update").read_bytes(),
    )

    unbounded = {
        "max_examples_over_median": 0,
        "clip_norm_over_median": 0,
    }  # or the aggregator leaves nothing to refuse
    with operator.known("mallory"):
        record = operator.run_round(rollout=staged, checks=unbounded)

    assert record.outcome == "held"
    assert "1 of 1 canaries refused" in record.reason
    assert {part.thing: part.model_outcome for part in operator.parts(record) if part.model_outcome} == {
        "device-1": "refused"
    }
    assert operator.model == before
    assert operator.active_versions() == {before}

    record = operator.run_round(rollout=staged)

    assert (record.outcome, record.active) == ("released", 2)
    assert operator.active_versions() == {record.version}


def test_faults_lose_no_update_count_none_twice_and_leave_every_device_with_a_model(
    operator: Operator, tmp_path: Path
) -> None:
    findings = campaign.run(operator.demo, tmp_path, SHORT_CAMPAIGN, seed=0)
    assert sum(outcomes.total() for outcomes in findings.outcomes.values()) == sum(SHORT_CAMPAIGN.values())
    assert findings.accepted > 0
    assert findings.looks > 0
    assert findings.clean, findings

"""A Flower app on a fleet: interrupted, gone on with, and in the end the same as in Flower's own loop."""

from __future__ import annotations

import ast
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty
from typing import Any

import boto3
import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: scripts/torch_tests tries it")

from fedgrass import data
from fedgrass.account import Account
from fedgrass.cloud.aggregator.component import Account as Place
from fedgrass.cloud.aggregator.component import create_component
from fedgrass.cloud.flower.run import run_on_fleet
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.downloads import fetch_bundle
from fedgrass.edge.settings import RuntimeSettings, parse
from fedgrass.engines.flower_node import Node, join
from fedgrass.engines.registry import open_engine
from fedgrass.engines.shipped import own_builder
from fedgrass.fitting import fit
from fedgrass.local.aws.client import LocalAwsProcess, start
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.messages import Announcement, ModelNotice, UpdateNotice
from fedgrass.protocol.names import RUNTIME, device_topic, round_topic, update_key
from fedgrass.protocol.tables import load_state
from fedgrass.simulation.flower.run import run_app
from fedgrass.update.writer import encode_update
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import eventually

FLEET = "flower-tests"
THINGS = ("device-0", "device-1", "device-2")
SETTINGS: dict[str, Any] = {"slope": 1.5, "num-server-rounds": 2}
APP = Path(__file__).parent / "flower_project"


class Devices(threading.Thread):
    """Three devices: what they run, they were told by the fleet's deployment, and have from the fleet's bucket."""

    def __init__(self, account: LocalAwsProcess, work: Path) -> None:
        super().__init__(daemon=True)
        self.account = account
        self.work = work
        self.done = threading.Event()
        self.failed: list[BaseException] = []
        self.fleet = Account.of(FLEET)
        self.released = ""

    def run(self) -> None:
        try:
            with MqttClient(self.account.mqtt) as mqtt:
                mqtt.subscribe(round_topic(FLEET))
                for thing in THINGS:
                    beat = Heartbeat(fleet=FLEET, thing=thing, sent_at=datetime.now(timezone.utc), interval_seconds=600)
                    mqtt.publish(device_topic(FLEET, thing, "heartbeat"), beat.encode())
                while not self.done.is_set():
                    self.activate(mqtt)
                    with suppress(Empty):
                        payload = mqtt.next_on(round_topic(FLEET), timeout=0.2).payload
                        if payload:
                            self.answer(mqtt, Announcement.decode(payload))
        except BaseException as error:  # noqa: BLE001 - for the test to tell
            self.failed.append(error)

    def activate(self, mqtt: MqttClient) -> None:
        released = load_state(self.fleet.rounds_table, FLEET).released
        if released is not None and released.version != self.released:
            self.released = released.version
            for thing in THINGS:
                notice = ModelNotice(fleet=FLEET, thing=thing, version=self.released, outcome="active")
                mqtt.publish(device_topic(FLEET, thing, "model"), notice.encode())

    def answer(self, mqtt: MqttClient, asked: Announcement) -> None:
        bundle = fetch_bundle(
            self.fleet.s3, asked.upload.bucket, asked.base, self.work / asked.base.version, max_bytes=1 << 20
        )
        runtime = self.settings()
        builder = own_builder(bundle, runtime.builders, runtime.builder, self.work / "builders")
        for thing in THINGS:
            engine = open_engine(runtime.engine, bundle, builder=builder)
            join(engine, Node(thing, {"thing": thing}, self.work / thing, asked.round, asked.fit.config))
            examples = data.load(runtime.data, bundle.manifest)
            fields: dict[str, Any] = {"fleet": FLEET, "round": asked.round, "thing": thing}
            if asked.task == "evaluate":
                found = engine.evaluate(examples.train)
                count = int(found.pop("examples"))
                notice = UpdateNotice(**fields, status="evaluated", num_examples=count, metrics=found)
            else:
                fitted = fit(engine, bundle.manifest, examples, asked, thing)
                content = encode_update(bundle.parameters(), fitted.parameters, fitted.header, asked.update).to_bytes()
                key = update_key(FLEET, asked.round, thing)
                self.fleet.s3.put_object(Bucket=asked.upload.bucket, Key=key, Body=content)
                notice = UpdateNotice(
                    **fields,
                    status="uploaded",
                    key=key,
                    bytes=len(content),
                    num_examples=fitted.num_examples,
                    metrics=fitted.header.metrics,
                )
            mqtt.publish(device_topic(FLEET, thing, "update"), notice.encode())

    def settings(self) -> RuntimeSettings:
        greengrass = self.fleet.session.client("greengrassv2")
        [latest] = greengrass.list_deployments(targetArn=self.fleet.stack.thing_group_arn)["deployments"]
        components = greengrass.get_deployment(deploymentId=latest["deploymentId"])["components"]
        return parse(RuntimeSettings, json.loads(components[RUNTIME]["configurationUpdate"]["merge"]), RUNTIME)


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAwsProcess]:
    with start(tmp_path / "aws") as account:
        for name, value in account.environment().items():
            monkeypatch.setenv(name, value)
        session = boto3.Session()
        outputs = deploy(session, fleet=FLEET, dependencies=False)
        greengrass = session.client("greengrassv2")
        recipe = {
            "RecipeFormatVersion": "2020-01-25",
            "ComponentName": RUNTIME,
            "ComponentVersion": "1.0.0",
            "ComponentDescription": "Stands for the runtime.",
            "ComponentPublisher": "tests",
            "Manifests": [{"Lifecycle": {}}],
        }
        create_component(greengrass, Place.of(outputs.thing_group_arn), json.dumps(recipe).encode())
        merge = json.dumps({"fleet": FLEET, "data": {"loader": "npz", "path": "/data.npz"}})
        greengrass.create_deployment(
            targetArn=outputs.thing_group_arn,
            components={RUNTIME: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": merge}}},
        )
        yield account


def figures() -> list[dict[int, dict[str, float]]]:
    return [ast.literal_eval(line) for line in Path("figures.txt").read_text().splitlines()]


def test_an_app_comes_to_the_same_on_a_fleet_as_in_flowers_own_loop_also_if_it_is_interrupted(
    account: LocalAwsProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = shutil.copytree(APP, tmp_path / "app")
    for place in ("there", "here"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    run_app(app, devices=3, workers=1, run_config=SETTINGS)
    expected, (trained, evaluated, judged) = dict(np.load("model.npz")), figures()
    monkeypatch.chdir(tmp_path / "here")
    devices = Devices(account, tmp_path / "work")
    devices.start()
    eventually(lambda: len(fleet_members(devices.fleet.devices_table, FLEET)) == len(THINGS))
    said: list[str] = []

    def interrupt(record: Any) -> None:
        if record.settings.fit.config["server_round"] == 2 and record.phase == "collecting":
            raise KeyboardInterrupt

    given: Any = {"run_config": SETTINGS, "said": said.append}
    with pytest.raises(KeyboardInterrupt):
        run_on_fleet(app, Account.of(FLEET), shown=interrupt, **given)
    before = len(said)
    found = run_on_fleet(app, Account.of(FLEET), **given)
    devices.done.set()
    devices.join()
    assert devices.failed == []
    assert any(line.startswith("Round 1 of 2: released") for line in said[:before])
    assert not any(line.startswith("Round 1 of 2:") for line in said[before:])
    model = dict(np.load("model.npz"))
    assert list(model) == ["weight", "bias"]
    for name, value in expected.items():
        np.testing.assert_allclose(model[name], value, atol=1e-6)
    ours = figures()
    assert ours[0].keys() == trained.keys()
    for number in trained:
        # Each device's state counts on, and each is told the app's own number of the round.
        assert (ours[0][number]["calls"], ours[0][number]["told"]) == (number, number)
        for name, value in trained[number].items():
            assert ours[0][number][name] == pytest.approx(value, abs=1e-5)
        assert ours[1][number]["eval_loss"] == pytest.approx(evaluated[number]["eval_loss"], abs=1e-5)
    assert ours[2][2]["weight"] == pytest.approx(judged[2]["weight"], abs=1e-6)
    assert any("3 of 3 devices have the app's model" in line for line in said)
    assert found.version.startswith("1.")
    assert "aggregated by fedavgm {'learning_rate': 0.9, 'momentum': 0.5}" in said[0]

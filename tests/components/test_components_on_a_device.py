"""The components as a core device runs them: their own processes, their recipes' permissions, the real SDKs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from fedgrass.bundle import GRAPH, MANIFEST, PARAMETERS, Bundle
from fedgrass.edge.model_store import ModelStore
from fedgrass.local.aws.client import LocalAwsProcess, start
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.messages import Announcement, Cohort, FitTask, ModelNotice, UpdateNotice, Upload
from fedgrass.protocol.names import (
    GLOBAL_MODEL,
    HEARTBEAT,
    MODEL_DEPLOYER,
    RUNTIME,
    TRAINER,
    device_topic,
    round_topic,
    update_key,
    update_prefix,
)
from tests.components.trainer.engine import MANY
from tests.fedgrass.edge import digits
from tests.fedgrass.local.core_device.harness import BUCKET, DeviceProcess, Fleet
from tests.fixtures.local_aws import unique
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import eventually

__all__ = ["unique"]

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("components_on_a_device")]

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    TRAINER: "components.trainer",
    MODEL_DEPLOYER: "components.model_deployer",
    HEARTBEAT: "components.heartbeat",
}
STORE = f"{{kernel:rootPath}}/work/{MODEL_DEPLOYER}"
MODEL_ACCESS = {
    "aws.greengrass.ipc.pubsub": {
        "com.fedgrass.GlobalModel:pubsub:1": {
            "operations": ["aws.greengrass#PublishToTopic"],
            "resources": ["fedgrass/model/admission"],
        }
    }
}


class Suite:
    """Our components on one device, from this checkout and interpreter instead of archives and a venv of their own."""

    def __init__(self, fleet: Fleet, device: DeviceProcess, data: Path) -> None:
        self.fleet = fleet
        self.device = device
        self.store = ModelStore(device.root / "work" / MODEL_DEPLOYER)
        self.bundle = Bundle.open(digits.BUNDLE)
        # However quick the machine is, a training of many epochs is under way until its process ends.
        held = "tests.components.trainer.engine:HeldEngine"
        self._shared = {"fleet": fleet.name, "engine": held, "data": {"path": str(data)}}

    def deploy(self, *, model: str | None = None) -> dict[str, Any]:
        """Deploy everything, with this version of the model."""
        components: dict[str, Any] = dict.fromkeys(MODULES, "1.0.0") | ({GLOBAL_MODEL: model} if model else {})
        merged = {"merge": json.dumps(self._shared)}
        components[RUNTIME] = {"componentVersion": "1.0.0", "configurationUpdate": merged}
        return self.fleet.result(self.device.thing, self.fleet.deploy(components))

    def publish_model(self, bundle: Bundle) -> None:
        """Make a version of the model component, and put its files where a device without it looks."""
        admit = f"{sys.executable} -m fedgrass.edge.admit --artifacts {bundle.folder} --store {STORE}"
        self.fleet.publish(
            GLOBAL_MODEL,
            {"install": f"cd {ROOT} && {admit}"},
            version=bundle.manifest.version,
            configuration={"accessControl": MODEL_ACCESS},
            dependencies=_hard(RUNTIME),
        )
        for name in (GRAPH, PARAMETERS, MANIFEST):
            key = f"models/{self.fleet.name}/{bundle.manifest.version}/{name}"
            self.fleet.s3.put_object(Bucket=BUCKET, Key=key, Body=bundle.path(name).read_bytes())

    def open_round(self, mqtt: MqttClient, number: int, *, epochs: int = 3) -> None:
        now = datetime.now(timezone.utc)
        announcement = Announcement(
            fleet=self.fleet.name,
            round=number,
            opened_at=now,
            deadline=now + timedelta(hours=1),
            base=digits.base_of(self.bundle, self.fleet.name),
            cohort=Cohort(salt="s"),
            fit=FitTask(epochs=epochs, learning_rate=0.1),
            upload=Upload(bucket=BUCKET, prefix=update_prefix(self.fleet.name, number)),
        )
        mqtt.publish(round_topic(self.fleet.name), announcement.encode(), retain=True)

    def topic(self, channel: Any) -> str:
        return device_topic(self.fleet.name, self.device.thing, channel)

    def process(self, component: str) -> psutil.Process | None:
        """The component's own process on this device."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if MODULES[component] in words and str(self.store.folder) in words and "sh" not in words[0]:
                return process
        return None


def _hard(*names: str) -> dict[str, Any]:
    return {name: {"VersionRequirement": "*", "DependencyType": "HARD"} for name in names}


def _defaults(component: str) -> dict[str, Any]:
    recipe = yaml.safe_load((ROOT / "recipes" / f"{component}.yaml").read_text())
    defaults: dict[str, Any] = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    if component == TRAINER:
        defaults |= {"minFreeDiskMb": "1", "minFreeMemoryMb": "1"}
    return defaults


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAwsProcess]:
    """An account with our components in it."""
    with start(tmp_path_factory.mktemp("aws")) as account:
        fleet = Fleet(account)
        fleet.publish(RUNTIME, {"install": "exit 0"}, configuration=_defaults(RUNTIME))
        for component, module in MODULES.items():
            run = f"cd {ROOT} && exec {sys.executable} -m {module} --work {{work:path}} --store {STORE}"
            needs = _hard(RUNTIME, "aws.greengrass.TokenExchangeService", "aws.greengrass.StreamManager")
            fleet.publish(component, {"run": run}, configuration=_defaults(component), dependencies=needs)
        yield account


@pytest.fixture
def suite(aws: LocalAwsProcess, unique: str, tmp_path: Path) -> Iterator[Suite]:
    fleet = Fleet(aws)
    fleet.add(unique)
    data = digits.write_data(tmp_path / "data.npz", 400)
    with DeviceProcess(fleet, tmp_path / "root", unique) as device:
        yield Suite(fleet, device, data)


def test_a_round_on_a_device_and_a_kill_in_the_middle_of_another(
    suite: Suite, aws: LocalAwsProcess, tmp_path: Path
) -> None:
    first = digits.version(tmp_path / "first", "1.0.0", suite.bundle.parameters())
    suite.publish_model(first)
    suite.bundle = first
    with MqttClient(aws.mqtt) as mqtt:
        mqtt.subscribe(f"fedgrass/{suite.fleet.name}/devices/#")
        result = suite.deploy(model="1.0.0")
        assert result["coreDeviceExecutionStatus"] == "SUCCEEDED", (result, suite.device.log(GLOBAL_MODEL))

        model = ModelNotice.decode(mqtt.next_on(suite.topic("model")).payload)
        assert (model.version, model.outcome, model.active_version) == ("1.0.0", "active", "1.0.0")
        beat = Heartbeat.decode(mqtt.next_on(suite.topic("heartbeat")).payload)
        while not beat.able:
            beat = Heartbeat.decode(mqtt.next_on(suite.topic("heartbeat")).payload)

        suite.open_round(mqtt, 1)
        notice = UpdateNotice.decode(mqtt.next_on(suite.topic("update")).payload)
        assert (notice.status, notice.round, notice.num_examples) == ("uploaded", 1, 320)
        key = update_key(suite.fleet.name, 1, suite.device.thing)
        assert notice.key == key
        assert len(suite.fleet.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()) == notice.bytes

        suite.open_round(mqtt, 2, epochs=MANY)
        checkpoint = suite.device.root / "work" / TRAINER / "checkpoint.safetensors"
        eventually(checkpoint.exists, "a checkpoint")
        trainer = suite.process(TRAINER)
        assert trainer is not None
        os.kill(trainer.pid, signal.SIGKILL)
        notice = UpdateNotice.decode(mqtt.next_on(suite.topic("update")).payload)
        assert (notice.status, notice.round) == ("uploaded", 2)
        assert '"training_resumed"' in suite.device.log(TRAINER)


def test_a_bad_model_is_refused_and_the_cloud_is_told(suite: Suite, aws: LocalAwsProcess, tmp_path: Path) -> None:
    suite.publish_model(digits.version(tmp_path / "good", "2.0.0", digits.trained()))
    suite.publish_model(digits.version(tmp_path / "bad", "2.1.0", digits.random()))
    with MqttClient(aws.mqtt) as mqtt:
        mqtt.subscribe(suite.topic("model"))
        assert suite.deploy(model="2.0.0")["coreDeviceExecutionStatus"] == "SUCCEEDED"
        assert ModelNotice.decode(mqtt.next().payload).outcome == "active"
        eventually(lambda: '"component_started"' in suite.device.log(TRAINER), "trainer started")
        assert suite.deploy(model="2.1.0")["coreDeviceExecutionStatus"] == "SUCCEEDED"  # a decision, and no failure
        refused = ModelNotice.decode(mqtt.next().payload)
        assert (refused.version, refused.outcome, refused.active_version) == ("2.1.0", "refused", "2.0.0")
        assert "accuracy" in refused.reason
    assert '"component_update_answered"' in suite.device.log(TRAINER)
    active = suite.store.active()
    assert active is not None
    assert active.manifest.version == "2.0.0"


def test_components_stop_quickly_and_go_on_where_they_were(suite: Suite, aws: LocalAwsProcess, tmp_path: Path) -> None:
    suite.bundle = digits.version(tmp_path / "model", "3.0.0", suite.bundle.parameters())
    suite.publish_model(suite.bundle)
    assert suite.deploy()["coreDeviceExecutionStatus"] == "SUCCEEDED"
    eventually(lambda: all('"component_started"' in suite.device.log(name) for name in MODULES), "all started")
    processes = [process for name in MODULES if (process := suite.process(name))]
    assert len(processes) == len(MODULES)
    with MqttClient(aws.mqtt) as mqtt:
        mqtt.subscribe(suite.topic("update"))
        suite.open_round(mqtt, 1, epochs=MANY)
        checkpoint = suite.device.root / "work" / TRAINER / "checkpoint.safetensors"
        eventually(checkpoint.exists, "a checkpoint")
        suite.device.stop()
        assert not any(process.is_running() for process in processes)
        for name in MODULES:
            assert '"component_stopped"' in suite.device.log(name)
            assert "Traceback" not in suite.device.log(name)
        suite.device.start()
        notice = UpdateNotice.decode(mqtt.next().payload)
        assert (notice.status, notice.round) == ("uploaded", 1)
        assert '"training_resumed"' in suite.device.log(TRAINER)

"""The example application: uses the active model, keeps training away, and has a harmful model taken back."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import yaml

from components.model_deployer.deployer import ModelDeployer
from examples.application import application
from examples.application.application import Application
from fedgrass.edge.component import Device
from fedgrass.edge.loop import Loop
from fedgrass.edge.model_store import ModelStore
from fedgrass.logs import Log
from fedgrass.protocol.device_messages import ApplicationStatus
from fedgrass.protocol.names import APPLICATION_TOPIC, MODEL_DEPLOYER, RUNTIME
from tests.fedgrass.edge import digits
from tests.fedgrass.edge.fakes import FakeIpc

RECIPE = Path(application.__file__).parent / "recipe.yaml"


def test_the_application_follows_the_active_model_and_is_rid_of_one_that_harms_it(tmp_path: Path) -> None:
    data = digits.write_data(tmp_path / "data.npz", 60)
    ipc = FakeIpc({RUNTIME: {"fleet": "f", "data": {"path": str(data)}}, MODEL_DEPLOYER: {}})
    now = 0.0
    loop = Loop(lambda: now)
    store = ModelStore(tmp_path / "store")
    numb = {name: np.zeros_like(value) for name, value in digits.trained().items()}
    versions = itertools.zip_longest(("1.1.0", "1.2.0"), (digits.trained(), numb))
    bundles = [digits.version(tmp_path / name, name, values) for name, values in versions]

    def activate(number: int) -> None:
        with store.lock():
            store.activate(bundles[number])
            store.record(bundles[number].manifest.version, "active")

    def pass_seconds(count: int) -> None:
        nonlocal now
        for _ in range(count):
            now += 1.01
            while loop.step():
                pass

    activate(0)
    device = Device("thing", tmp_path / "work", store.folder, ipc, loop, Log("test"))
    deployer = ModelDeployer(device)
    deployer.start()
    app = Application(device)
    app.start()
    pass_seconds(30)
    assert {version for version, _ in app.predictions} == {"1.1.0"}
    said = [ApplicationStatus.decode(payload) for topic, payload in ipc.local if topic == APPLICATION_TOPIC]
    assert [status.busy for status in said[:4]] == [True, False, True, False]

    activate(1)  # it passed admission, on a device without validation examples for instance
    deployer.scan()
    pass_seconds(30)
    assert "1.2.0" in {version for version, _ in app.predictions}
    assert app.predictions[-1][0] == "1.1.0"
    last = store.admissions()[-1]
    assert (last.version, last.outcome, last.active_version) == ("1.2.0", "rolled_back", "1.1.0")
    assert "confidence" in last.reason
    deployer.stop()


def test_its_recipe_grants_what_it_does_and_keeps_to_what_nucleus_lite_reads() -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    [manifest] = recipe["Manifests"]
    assert manifest["Platform"]["runtime"] == "*"
    policies = recipe["ComponentConfiguration"]["DefaultConfiguration"]["accessControl"]["aws.greengrass.ipc.pubsub"]
    granted = {resource for policy in policies.values() for resource in policy["resources"]}
    assert granted == {"fedgrass/model/active", APPLICATION_TOPIC}

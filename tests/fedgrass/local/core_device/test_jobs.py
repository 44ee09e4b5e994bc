import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from fedgrass.local.core_device import jobs
from fedgrass.local.core_device.deployment import Active, Deployer, DeploymentDocument, Result
from fedgrass.local.core_device.jobs import JobChannel
from fedgrass.local.core_device.mqtt import Delivery, IotCore
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus

PREFIX = "$aws/things/thing-1/jobs/"
SPACE = "namespace-aws-gg-deployment"


def plain(topic: str) -> str:
    """Leave out what is the same in every topic."""
    assert SPACE in topic
    return topic.removeprefix(PREFIX).replace(f"/{SPACE}", "").replace(f"-{SPACE}", "")


SUCCESS = Result(status="SUCCEEDED", detail="SUCCESSFUL")


class Cloud:
    """Records what the device publishes; delivers what the test says, in place of the MQTT connection."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []
        self._listeners: dict[str, Callable[[Delivery], None]] = {}
        self._connected: list[Callable[[], None]] = []
        self.connected = asyncio.Event()

    def subscribe(self, topic: str, listener: Callable[[Delivery], None]) -> None:
        self._listeners[plain(topic)] = listener

    def on_connected(self, listener: Callable[[], None]) -> None:
        self._connected.append(listener)

    def publish(self, topic: str, payload: bytes) -> None:
        self.published.append((plain(topic), json.loads(payload)))

    def connect(self) -> None:
        self.connected.set()
        for listener in self._connected:
            listener()

    @property
    def heard(self) -> bool:
        return bool(self._listeners)

    def offer(self, deployment: str | None, *, on: str = "notify-next", document: Any = None) -> None:
        document = document or {
            "deploymentId": deployment, "targetArn": "arn", "creationTimestamp": 1, "components": {},
        }  # fmt: skip
        execution = {"jobId": f"job-{deployment}", "jobDocument": document} if deployment else {}
        self._listeners[on](Delivery(PREFIX + on, json.dumps({"execution": execution}).encode()))

    def confirm(self, deployment: str) -> None:
        topic = f"{PREFIX}job-{deployment}/{SPACE}/update/accepted"
        self._listeners["+/update/accepted"](Delivery(topic, b"{}"))

    def statuses(self) -> list[tuple[str, str]]:
        return [
            (topic.split("/")[0].removeprefix("job-"), update["status"])
            for topic, update in self.published
            if topic.endswith("/update")
        ]


class Deployments:
    """In place of the deployer: each deployment ends when the test says so."""

    def __init__(self) -> None:
        self.active = Active()
        self.applying = False
        self.begun: dict[str, asyncio.Future[Result]] = {}

    async def deploy(self, document: DeploymentDocument) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.begun[document.deployment_id] = future
        result = await future
        self.active.results[document.deployment_id] = result
        return result


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


AT_ONCE = replace(CLASSIC, looks_for_deployments=0.0, subscribes_again=0.0)


def play(scenario: Callable[[Cloud, Deployments], Any], nucleus: Nucleus = AT_ONCE) -> Cloud:
    """Run a scenario with a channel between a cloud and deployments."""
    cloud, deployments = Cloud(), Deployments()

    async def run() -> None:
        channel = JobChannel(
            "thing-1",
            cast(IotCore, cloud),
            cast(Deployer, deployments),
            finished=lambda _deployment: None,
            nucleus=nucleus,
        )
        channel.start()
        await scenario(cloud, deployments)
        await channel.stop()

    asyncio.run(run())
    return cloud


def test_a_job_is_asked_for_at_each_connection_and_its_result_reported() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.connect()
        assert cloud.published == [("$next/get", {"clientToken": "next"})]
        cloud.offer("1", on="$next/get/accepted")
        await _settle()
        deployments.begun["1"].set_result(SUCCESS)
        await _settle()

    assert play(scenario).statuses() == [("1", "IN_PROGRESS"), ("1", "SUCCEEDED")]


def test_the_classic_nucleus_looks_for_deployments_from_time_to_time() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1")
        await _settle()
        assert (cloud.published, deployments.begun) == ([], {})
        cloud.offer("2")  # the newer one is what it finds
        while not deployments.begun:
            await asyncio.sleep(0.01)
        assert list(deployments.begun) == ["2"]

    assert play(scenario, replace(AT_ONCE, looks_for_deployments=0.15)).statuses() == [("2", "IN_PROGRESS")]


@pytest.mark.parametrize("linked", [True, False])
def test_started_without_a_link_the_classic_nucleus_subscribes_to_its_jobs_late(
    linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_FIRST_LINK_SECONDS", 60.0 if linked else 0.01)

    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        await asyncio.sleep(0.05)
        assert not cloud.heard
        cloud.connect()
        assert cloud.published == []
        began = asyncio.get_running_loop().time()
        while not cloud.heard:
            await asyncio.sleep(0.01)
        if not linked:
            assert asyncio.get_running_loop().time() - began > 0.3
        assert cloud.published == [("$next/get", {"clientToken": "next"})]

    play(scenario, replace(AT_ONCE, subscribes_again=3.0))


def test_a_report_that_was_not_confirmed_is_sent_again_with_the_link() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1")
        await _settle()
        deployments.begun["1"].set_result(SUCCESS)
        await _settle()
        cloud.connect()
        cloud.confirm("1")
        cloud.connect()

    assert play(scenario).statuses().count(("1", "SUCCEEDED")) == 2


def test_a_deployment_that_was_done_is_reported_again_but_not_done_again() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        deployments.active.results["1"] = SUCCESS
        cloud.offer("1")
        await _settle()
        assert not deployments.begun

    assert play(scenario).statuses() == [("1", "SUCCEEDED")]


def test_a_newer_deployment_takes_the_place_of_one_that_has_changed_nothing_yet() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1")
        await _settle()
        cloud.offer("2")
        await _settle()
        assert deployments.begun["1"].cancelled()
        deployments.begun["2"].set_result(SUCCESS)
        await _settle()

    assert play(scenario).statuses() == [("1", "IN_PROGRESS"), ("2", "IN_PROGRESS"), ("2", "SUCCEEDED")]


def test_a_newer_deployment_waits_for_one_that_is_being_applied() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1")
        await _settle()
        deployments.applying = True
        cloud.offer("2")
        await _settle()
        assert "2" not in deployments.begun
        deployments.begun["1"].set_result(SUCCESS)
        await _settle()
        deployments.begun["2"].set_result(SUCCESS)
        await _settle()

    assert play(scenario).statuses()[1:] == [("1", "SUCCEEDED"), ("2", "IN_PROGRESS"), ("2", "SUCCEEDED")]


def test_a_cancelled_job_is_given_up() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1")
        await _settle()
        cloud.offer(None)
        await _settle()
        assert deployments.begun["1"].cancelled()

    assert play(scenario).statuses() == [("1", "IN_PROGRESS")]


def test_a_malformed_document_is_rejected_with_its_reason() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1", document={"deploymentId": "1", "components": 5})
        await _settle()
        assert not deployments.begun

    cloud = play(scenario)
    assert cloud.statuses() == [("1", "REJECTED")]
    assert "targetArn" in cloud.published[-1][1]["statusDetails"]["deployment-failure-cause"]


def test_a_failure_inside_the_device_is_reported_not_swallowed() -> None:
    async def scenario(cloud: Cloud, deployments: Deployments) -> None:
        cloud.offer("1")
        await _settle()
        deployments.begun["1"].set_exception(OSError("disk full"))
        await _settle()

    cloud = play(scenario)
    assert cloud.statuses()[-1] == ("1", "FAILED")
    assert "disk full" in cloud.published[-1][1]["statusDetails"]["deployment-failure-cause"]

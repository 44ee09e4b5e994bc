"""The process as a whole: how it starts, what it refuses, and that it leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedgrass.errors import ConfigurationError
from fedgrass.local.aws.__main__ import parse_address
from fedgrass.local.aws.broker import EmbeddedBroker
from fedgrass.local.aws.children import Children
from fedgrass.local.aws.client import LocalAwsProcess, start
from fedgrass.local.aws.server import LocalAws
from tests.fixtures.functions import function
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import PATIENCE, eventually


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_its_children_however_stubborn(tmp_path: Path, number: int) -> None:
    account = start(tmp_path)
    try:
        ready = json.loads((tmp_path / "endpoint.json").read_text())
        assert ready["pid"] == account.process.pid
        assert (ready["region"], ready["account"]) == ("us-east-1", "123456789012")
        source = (
            "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef handler(e, c): return os.getpid()"
        )
        function(account, "stubborn", source)
        worker = json.loads(account.client("lambda").invoke(FunctionName="stubborn")["Payload"].read())
        account.client("sagemaker").create_processing_job(
            ProcessingJobName="endless",
            RoleArn="arn:aws:iam::123456789012:role/processing",
            AppSpecification={"ImageUri": "any", "ContainerEntrypoint": ["sleep", "infinity"]},
            ProcessingResources={
                "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.t3.medium", "VolumeSizeInGB": 1}
            },
        )
        with MqttClient(account.mqtt) as device:
            device.subscribe("a")
            account.process.send_signal(number)
            assert account.process.wait(PATIENCE) == 0
        assert not (tmp_path / "endpoint.json").exists()
        eventually(lambda: not alive(worker))
    finally:
        account.stop()


def test_a_child_that_is_asked_to_end_has_time_to_clean_up(tmp_path: Path) -> None:
    source = (
        "import pathlib, signal, sys, time\n"
        "def leave(*_): time.sleep(0.05); pathlib.Path('left').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    children = Children()
    child = children.start(
        [sys.executable, "-c", source], env={}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        children.stop_all(grace=PATIENCE)
    assert (child.returncode, (tmp_path / "left").exists()) == (0, True)


def test_killing_the_process_takes_its_children_along(tmp_path: Path) -> None:
    with start(tmp_path) as account:
        function(account, "worker", "import os\ndef handler(e, c): return os.getpid()")
        worker = json.loads(account.client("lambda").invoke(FunctionName="worker")["Payload"].read())
        account.process.kill()
        eventually(lambda: not alive(worker))
    with start(tmp_path) as account:  # what the dead one left does not disturb
        assert account.client("lambda").list_functions()["Functions"] == []


def test_a_second_one_on_the_same_folder_is_refused(local_aws: LocalAwsProcess) -> None:
    with pytest.raises(ConfigurationError, match="Another local AWS owns"):
        LocalAws(local_aws.state).start()
    assert local_aws.client("sts").get_caller_identity()["Account"] == "123456789012"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {port} is taken"):
            LocalAws(tmp_path, port=port).start()


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No MQTT broker answers at 127\.0\.0\.1:1 "):
        start(tmp_path, mqtt="127.0.0.1:1")


@pytest.mark.parametrize("address", ["somewhere", ":1883", "host:port", "1883"])
def test_an_address_that_is_none_is_explained(address: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        parse_address(address)


def test_another_broker_can_be_iot_core(tmp_path: Path, unique: str) -> None:
    broker = EmbeddedBroker()
    broker.start()
    try:
        with start(tmp_path, mqtt=f"{broker.host}:{broker.port}") as account:
            assert account.mqtt == f"{broker.host}:{broker.port}"
            with MqttClient(account.mqtt) as device:
                device.subscribe(unique)
                account.client("iot-data").publish(topic=unique, qos=1, retain=True, payload=b"x")
                assert device.next().payload == b"x"
            assert account.client("iot-data").get_retained_message(topic=unique)["payload"] == b"x"
    finally:
        broker.stop()


def test_the_environment_points_any_sdk_at_the_account(local_aws: LocalAwsProcess) -> None:
    source = "import boto3; print(boto3.client('sts').get_caller_identity()['Account'])"
    environment = {"PATH": os.environ["PATH"], **local_aws.environment()}
    answer = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "123456789012"


def test_requests_that_clients_abandon_do_no_harm(local_aws: LocalAwsProcess) -> None:
    host, _, port = local_aws.endpoint_url.removeprefix("http://").partition(":")
    for data in (b"", b"PUT /bucket/key HTTP/1.1\r\nContent-Length: 1000\r\n\r\nnot all", b"\x00\xff\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(data)
    assert local_aws.client("sts").get_caller_identity()["Account"] == "123456789012"

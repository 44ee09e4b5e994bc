import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.mqtt import MqttClient


def test_what_is_published_by_http_arrives_by_mqtt(local_aws: LocalAwsProcess, unique: str) -> None:
    with MqttClient(local_aws.mqtt) as device:
        device.subscribe(f"{unique}/+")
        local_aws.client("iot-data").publish(topic=f"{unique}/a b", qos=1, payload=b'{"n": 1}')
        message = device.next()
        assert (message.topic, message.payload, message.retain) == (f"{unique}/a b", b'{"n": 1}', False)


def test_a_retained_message_is_kept_shown_and_cleared(local_aws: LocalAwsProcess, unique: str) -> None:
    data = local_aws.client("iot-data")
    data.publish(topic=f"fedgrass/{unique}/round", qos=1, retain=True, payload=b"open")
    found = data.get_retained_message(topic=f"fedgrass/{unique}/round")
    assert (found["payload"], found["qos"]) == (b"open", 1)
    assert found["lastModifiedTime"] > 1_700_000_000_000
    [summary] = [one for one in data.list_retained_messages()["retainedTopics"] if unique in one["topic"]]
    assert summary["payloadSize"] == 4
    with MqttClient(local_aws.mqtt) as device:
        device.subscribe(f"fedgrass/{unique}/round")
        assert device.next().retain

    data.publish(topic=f"fedgrass/{unique}/round", qos=1, retain=True, payload=b"")
    with pytest.raises(data.exceptions.ResourceNotFoundException):
        data.get_retained_message(topic=f"fedgrass/{unique}/round")


def test_a_message_that_a_device_retains_is_shown_too(local_aws: LocalAwsProcess, unique: str) -> None:
    with MqttClient(local_aws.mqtt) as device:
        device.publish(unique, b"from the device", retain=True)
    assert local_aws.client("iot-data").get_retained_message(topic=unique)["payload"] == b"from the device"


def test_a_message_over_128_kb_is_refused(local_aws: LocalAwsProcess, unique: str) -> None:
    data = local_aws.client("iot-data")
    data.publish(topic=unique, qos=1, payload=b"x" * 128 * 1024)
    with pytest.raises(data.exceptions.ClientError, match="131073 bytes"):
        data.publish(topic=unique, qos=1, payload=b"x" * (128 * 1024 + 1))


def test_publishing_to_a_wildcard_is_refused(local_aws: LocalAwsProcess) -> None:
    data = local_aws.client("iot-data")
    with pytest.raises(data.exceptions.InvalidRequestException, match="wildcard"):
        data.publish(topic="a/+", payload=b"")


def test_shadows_are_still_served(local_aws: LocalAwsProcess, unique: str) -> None:
    local_aws.client("iot").create_thing(thingName=unique)
    data = local_aws.client("iot-data")
    data.update_thing_shadow(thingName=unique, payload=b'{"state": {"reported": {"n": 1}}}')
    assert b'"n": 1' in data.get_thing_shadow(thingName=unique)["payload"].read()

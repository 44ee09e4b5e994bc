"""AWS IoT Core publish/subscribe on behalf of components."""

from __future__ import annotations

import asyncio
import base64
import binascii
from functools import partial

from fedgrass.local.core_device.ipc.authorization import Authorizer, Service
from fedgrass.local.core_device.ipc.errors import InvalidArgumentsError, ServiceError
from fedgrass.local.core_device.ipc.pubsub import required_topic
from fedgrass.local.core_device.ipc.server import Operation, Payload, Stream
from fedgrass.local.core_device.mqtt import Delivery, IotCore, SpoolError
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus

# AWS IoT Core limits on topics.
_MAX_TOPIC_BYTES = 256
_MAX_SLASHES = 7
_SUBSCRIBE_SECONDS = 30.0


class MqttProxy:
    """PublishToIoTCore and SubscribeToIoTCore."""

    def __init__(self, authorizer: Authorizer, iot_core: IotCore, nucleus: Nucleus = CLASSIC) -> None:
        self._authorizer = authorizer
        self._iot_core = iot_core
        self._nucleus = nucleus

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "PublishToIoTCore": Operation(self._publish),
            "SubscribeToIoTCore": Operation(self._subscribe, events="IoTCoreMessage"),
        }

    async def _publish(self, stream: Stream, request: Payload) -> Payload:
        topic, qos = _topic(request), _qos(request)
        self._authorizer.require(stream.component, Service.MQTT_PROXY, "PublishToIoTCore", topic)
        try:
            payload = base64.b64decode(request["payload"], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise InvalidArgumentsError("payload is required, as base64") from error
        try:
            # Nucleus lite drops the flag without an error.
            retain = bool(request.get("retain", False)) and self._nucleus.retains
            self._iot_core.publish(topic, payload, qos=qos, retain=retain)
        except SpoolError as error:
            raise ServiceError(f"Publish to topic {topic} failed: {error}") from error
        return {}

    async def _subscribe(self, stream: Stream, request: Payload) -> Payload:
        topic, qos = _topic(request), _qos(request)
        self._authorizer.require(stream.component, Service.MQTT_PROXY, "SubscribeToIoTCore", topic)

        if not self._nucleus.spools and not self._iot_core.connected.is_set():
            raise ServiceError(f"Subscribe to topic {topic} failed: the device is offline")

        def forward(delivery: Delivery) -> None:
            # Nucleus lite delivers nothing that is longer, and says so to nobody.
            if self._nucleus.max_delivery is not None and len(delivery.payload) > self._nucleus.max_delivery:
                return
            message = {"topicName": delivery.topic, "payload": base64.b64encode(delivery.payload).decode()}
            stream.send({"message": {**message, "retain": delivery.retain}})

        subscription = self._iot_core.subscribe(topic, forward, qos=qos, of_component=True)
        stream.on_close.append(partial(self._iot_core.unsubscribe, subscription))
        # Offline it is answered at once: the subscription is made with the next connection.
        if self._iot_core.connected.is_set():
            try:
                await asyncio.wait_for(subscription.confirmed.wait(), _SUBSCRIBE_SECONDS)
            except asyncio.TimeoutError as error:
                raise ServiceError(f"Subscribe to topic {topic} was not acknowledged by AWS IoT Core") from error
        return {}


def _topic(request: Payload) -> str:
    topic = required_topic(request, "topicName")
    # The prefix of a basic-ingest or reserved topic does not count towards its slashes.
    levels = topic.split("/", 3)[-1] if topic.startswith("$aws/rules/") else topic
    if len(topic.encode()) > _MAX_TOPIC_BYTES or (levels.count("/") > _MAX_SLASHES and topic[0] != "$"):
        raise InvalidArgumentsError(
            f"Topic {topic!r} is over the limits of {_MAX_TOPIC_BYTES} bytes and {_MAX_SLASHES} slashes"
        )
    return topic


def _qos(request: Payload) -> int:
    qos = request.get("qos")
    if qos not in ("0", "1"):
        raise InvalidArgumentsError(f"qos is required and must be '0' or '1', found {qos!r}")
    return int(qos)

"""The IoT data plane: Publish and retained messages go to the broker; shadows stay with moto."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fedgrass.local.aws.api import ApiError, page
from fedgrass.local.aws.bus import Bus, Retained
from fedgrass.local.aws.rest_json import RestJsonService, blob

if TYPE_CHECKING:
    from mypy_boto3_iot_data import type_defs as api

_PUBLISH_TIMEOUT_S = 10.0
# Bytes, IoT Core's limit on a message.
_MAX_PAYLOAD = 128 * 1024


class IotData:
    """boto3's ``iot-data`` over the broker.

    When a retained message was stored is known only for those published while this process runs.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seen: dict[str, float] = {}
        bus.add_handler(self._note_time)
        self.layer = RestJsonService(
            "iot-data",
            {
                "Publish": self.publish,
                "GetRetainedMessage": self.get_retained_message,
                "ListRetainedMessages": self.list_retained_messages,
            },
        )

    def publish(self, parameters: api.PublishRequestTypeDef) -> dict[str, object]:
        """Publish, and return when the broker has the message."""
        topic = parameters["topic"]
        payload = blob(parameters.get("payload", b""))
        if "+" in topic or "#" in topic:
            raise ApiError("InvalidRequestException", f"Topic {topic!r} holds a wildcard: publish to one topic.")
        if len(payload) > _MAX_PAYLOAD:
            message = f"The payload has {len(payload)} bytes; IoT Core takes {_MAX_PAYLOAD}."
            raise ApiError("RequestEntityTooLargeException", message, status=413)
        sent = self._bus.publish(topic, payload, qos=parameters.get("qos", 0), retain=parameters.get("retain", False))
        # Until the broker acknowledges it at QoS 1; at QoS 0, until it is written to the socket.
        sent.wait_for_publish(_PUBLISH_TIMEOUT_S)
        if not sent.is_published():
            raise ApiError("InternalFailureException", "The broker did not take the message in time.", status=500)
        return {}

    def get_retained_message(self, parameters: api.GetRetainedMessageRequestTypeDef) -> dict[str, object]:
        """Return the retained message of one topic."""
        found = self._bus.retained(parameters["topic"])
        if not found:
            message = f"Topic {parameters['topic']} has no retained message."
            raise ApiError("ResourceNotFoundException", message, status=404)
        return {
            "topic": found[0].topic,
            "payload": found[0].payload,
            "qos": found[0].qos,
            "lastModifiedTime": self._time(found[0]),
        }

    def list_retained_messages(self, parameters: api.ListRetainedMessagesRequestTypeDef) -> dict[str, object]:
        """List topics that have a retained message."""
        summaries = [
            {
                "topic": message.topic,
                "payloadSize": len(message.payload),
                "qos": message.qos,
                "lastModifiedTime": self._time(message),
            }
            for message in self._bus.retained("#")
        ]
        items, token = page(summaries, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"retainedTopics": items, "nextToken": token}

    def _note_time(self, topic: str, _payload: bytes) -> None:
        self._seen[topic] = time.time()

    def _time(self, message: Retained) -> int:
        # Milliseconds; 0 if it was retained before this process ran.
        return int(self._seen.get(message.topic, 0) * 1000)

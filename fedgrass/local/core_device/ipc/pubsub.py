"""Local publish/subscribe between the components of one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from paho.mqtt.client import topic_matches_sub

from fedgrass.local.core_device.ipc.authorization import Authorizer, Service
from fedgrass.local.core_device.ipc.errors import InvalidArgumentsError
from fedgrass.local.core_device.ipc.server import Operation, Payload, Stream
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus


@dataclass(frozen=True, eq=False)
class _Subscription:
    stream: Stream
    topic: str
    from_others_only: bool


class LocalPubSub:
    """PublishToTopic and SubscribeToTopic; subscriptions may hold the MQTT wildcards, as since nucleus 2.6."""

    def __init__(self, authorizer: Authorizer, nucleus: Nucleus = CLASSIC) -> None:
        self._authorizer = authorizer
        self._nucleus = nucleus
        self._subscriptions: list[_Subscription] = []

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "PublishToTopic": Operation(self._publish),
            "SubscribeToTopic": Operation(self._subscribe, events="SubscriptionResponseMessage"),
        }

    async def _publish(self, stream: Stream, request: Payload) -> Payload:
        topic = required_topic(request, "topic")
        if "+" in topic or "#" in topic:
            raise InvalidArgumentsError(f"Publish topic {topic!r} must not contain a wildcard")
        self._authorizer.require(stream.component, Service.PUBSUB, "PublishToTopic", topic)
        message = _message(request.get("publishMessage"), topic)
        # In nucleus lite a longer list ends the subscriptions that the message would have reached.
        limit = self._nucleus.max_list_items
        deadly = limit is not None and _longest_list(message) > limit
        for subscription in list(self._subscriptions):
            own = subscription.stream.component == stream.component
            if not topic_matches_sub(subscription.topic, topic) or (own and subscription.from_others_only):
                continue
            if deadly:
                self._subscriptions.remove(subscription)  # it hears no more, and nobody is told
            else:
                subscription.stream.send(message)
        return {}

    async def _subscribe(self, stream: Stream, request: Payload) -> Payload:
        topic = required_topic(request, "topic")
        self._authorizer.require(stream.component, Service.PUBSUB, "SubscribeToTopic", topic)
        others = request.get("receiveMode") == "RECEIVE_MESSAGES_FROM_OTHERS"
        subscription = _Subscription(stream, topic, others and self._nucleus.honours_receive_mode)
        self._subscriptions.append(subscription)
        stream.on_close.append(partial(self._unsubscribe, subscription))
        return {"topicName": topic}

    def _unsubscribe(self, subscription: _Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)


def required_topic(request: Payload, member: str) -> str:
    """Return the topic of a request, or refuse the request."""
    topic = request.get(member)
    if not isinstance(topic, str) or not topic:
        raise InvalidArgumentsError(f"{member} is required, found {topic!r}")
    return topic


def _longest_list(value: object) -> int:
    if isinstance(value, dict):
        return max(map(_longest_list, value.values()), default=0)
    if isinstance(value, list):
        return max(len(value), *map(_longest_list, value), 0)
    return 0


def _message(message: object, topic: str) -> Payload:
    for kind in ("jsonMessage", "binaryMessage"):
        body = message.get(kind) if isinstance(message, dict) else None
        if isinstance(body, dict) and "message" in body:
            return {kind: {"message": body["message"], "context": {"topic": topic}}}
    raise InvalidArgumentsError("publishMessage needs a jsonMessage or a binaryMessage with a message")

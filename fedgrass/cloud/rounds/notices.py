"""Input from the topic rules: a device's message as it came, and its topic, which alone identifies the sender.

The rules encode the payload (``encode(*, 'base64')``), so that no field of it can pass for the topic's.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

from pydantic import BaseModel, Field

from fedgrass.errors import MessageError
from fedgrass.protocol.messages import ModelNotice, UpdateNotice
from fedgrass.protocol.names import parse_device_topic

N = TypeVar("N", UpdateNotice, ModelNotice)


class Delivery(BaseModel, defer_build=True):
    """A topic rule's event."""

    topic: str = Field(max_length=256)
    # IoT Core takes messages of 128 KB; base64 makes them a third longer.
    payload: str = Field(max_length=200_000, description="base64")
    received_at: int = Field(ge=0, description="Epoch milliseconds")

    def content(self) -> bytes:
        """Return the message; raises `MessageError` if the rule did not encode it."""
        try:
            return base64.b64decode(self.payload, validate=True)
        except binascii.Error as error:
            raise MessageError(f"message on {self.topic}: not base64 ({error}); check the topic rule's SQL") from error


def read_notice(delivery: Delivery, kind: type[N], fleet: str) -> N:
    """Decode a device's notice, and check that the device speaks for itself.

    Parameters
    ----------
    delivery
        The message, with the topic that it came on.
    kind
        Which message it must be.
    fleet
        The fleet's name.

    Returns
    -------
    N
        The notice.

    Raises
    ------
    MessageError
        If it is malformed, or speaks for another device or fleet than the topic it came on.
    """
    # The topic first: IoT Core's policy lets a device publish under its own name only.
    topic = parse_device_topic(delivery.topic)
    notice = kind.decode(delivery.content())
    if (notice.fleet, notice.thing) != (topic.fleet, topic.thing) or topic.fleet != fleet:
        raise MessageError(
            f"message on {delivery.topic}: speaks for {notice.thing!r} of fleet {notice.fleet!r}; "
            "a device speaks only for itself"
        )
    return notice

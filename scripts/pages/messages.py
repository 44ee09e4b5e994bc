"""docs/reference/messages.md: what is said over MQTT and on the device."""

from __future__ import annotations

from fedgrass.protocol import device_messages, messages, profile, secure
from fedgrass.protocol.message import MAX_MESSAGE_BYTES, Message
from scripts.pages.tables import nested, section


def page() -> str:
    """Return the whole page."""
    named = {**vars(profile), **vars(secure), **vars(messages), **vars(device_messages)}
    said = [
        kind for kind in named.values() if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    ]
    parts = sorted({name for kind in said for name in nested(kind)} - {kind.__name__ for kind in said})
    return "\n".join(
        [
            "# Messages\n\nMade from the code by `scripts/reference`. Which one is on which topic: [topics](topics.md).\n",
            f"Each is UTF-8 JSON of at most {MAX_MESSAGE_BYTES:,} bytes. Fields that a reader does not know are "
            "ignored; a message that lacks a required field, or has one out of bounds, is refused whole and named in "
            "the reader's log.\n",
            *(section(kind, "##") for kind in said),
            "## Parts of messages\n",
            *(section(named[name]) for name in parts),
        ]
    )

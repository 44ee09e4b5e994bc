"""docs/reference/topics.md: MQTT topics, topics on the device, and keys in the bucket."""

from __future__ import annotations

from typing import get_args

from fedgrass.errors import ConfigurationError
from fedgrass.protocol import names

# Examples, so that a reader sees whole topics and keys.
_FLEET, _THING, _ROUND, _VERSION = "mill", "press-1", 7, "1.7.0"

# Message, who says it, what for.
_CHANNELS = {
    "heartbeat": ("Heartbeat", "device → cloud", "every `intervalSeconds`; a rule writes it into the table of devices"),
    "update": ("UpdateNotice", "device → cloud", "what became of a round on the device; counted once"),
    "model": ("ModelNotice", "device → cloud", "what became of a model on the device"),
    "command": ("Command", "cloud → device", "an order to this device alone; not retained"),
    "reply": ("Reply", "device → cloud", "the one answer to a command"),
}
_ON_THE_DEVICE = {
    names.MODEL_ACTIVE_TOPIC: (
        "ActiveModel",
        "ModelDeployer → application, Trainer",
        "at each change, and every `rescanSeconds`",
    ),
    names.MODEL_ADMISSION_TOPIC: ("AdmissionNotice", "a model's script → ModelDeployer", "once for each model"),
    names.TRAINER_STATUS_TOPIC: (
        "TrainerStatus",
        "Trainer → Heartbeat",
        "at each change, of epochs every 2 s at most, and every `statusSeconds`",
    ),
    names.APPLICATION_TOPIC: ("ApplicationStatus", "application → Trainer, ModelDeployer", "as the application likes"),
}


def page() -> str:
    """Return the whole page; raises `ConfigurationError` if a channel of the code is not described here."""
    missing = set(get_args(names.DeviceChannel)) - _CHANNELS.keys()
    if missing:
        raise ConfigurationError(f"scripts/pages/topics.py: says nothing of channel {missing.pop()!r}")
    cloud = [
        (names.round_topic(_FLEET), "Announcement", "cloud → devices", "retained, QoS 1; empty when no round is open"),
        *(
            (names.device_topic(_FLEET, _THING, channel), *_CHANNELS[channel])
            for channel in get_args(names.DeviceChannel)
        ),
        (names.defender_topic(_THING), "", "device → cloud", "Device Defender's own format"),
    ]
    keys = [
        (names.update_key(_FLEET, _ROUND, _THING), "a device's update"),
        (names.command_key(_FLEET, _THING, "ID"), "the parameters that a command gives"),
        (names.model_prefix(_FLEET, _VERSION), "a model bundle"),
        (names.report_key(_FLEET, _ROUND), "[the report of a round](report.md)"),
        (names.evaluation_key(_FLEET), "the operator's evaluation set"),
    ]
    return "\n".join(
        [
            "# Topics and keys\n\nMade from the code by `scripts/reference`. The fleet here is `mill`, the device "
            "`press-1`, the round 7.\n",
            "## Over MQTT\n",
            _messages(cloud),
            "## On the device\n\nLocal publish/subscribe over IPC; nothing of it leaves the device.\n",
            _messages([(topic, *what) for topic, what in _ON_THE_DEVICE.items()]),
            "## In the fleet's bucket\n\n| key | what |\n|---|---|",
            "".join(f"| `{key}` | {what} |\n" for key, what in keys),
        ]
    )


def _messages(rows: list[tuple[str, str, str, str]]) -> str:
    lines = [
        f"| `{topic}` | {f'[{message}](messages.md#{message.lower()})' if message else ''} | {way} | {what} |\n"
        for topic, message, way, what in rows
    ]
    return "| topic | message | from → to | |\n|---|---|---|---|\n" + "".join(lines)

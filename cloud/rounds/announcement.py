"""The retained announcement of the open round."""

from __future__ import annotations

from cloud.rounds.changes import change_round
from cloud.rounds.services import Services
from fedgrass.protocol.messages import Announcement, Upload
from fedgrass.protocol.names import round_topic, update_prefix
from fedgrass.protocol.records import RoundRecord


def announce(services: Services, record: RoundRecord) -> None:
    """Publish the round, retained: devices that are away now will find it when they come back."""
    announcement = Announcement(
        fleet=record.fleet,
        round=record.round,
        task=record.settings.task,
        opened_at=record.opened_at,
        deadline=record.deadline,
        base=record.base,
        cohort=record.cohort,
        fit=record.settings.fit,
        update=record.settings.announced_update,
        upload=Upload(bucket=services.bucket, prefix=update_prefix(record.fleet, record.round)),
    )
    _publish(services, announcement.encode())


def withdraw(services: Services, record: RoundRecord) -> None:
    """Clear the announcement, so that nobody starts on a round that takes no more updates."""
    if record.announced:
        _publish(services, b"")
        change_round(services.rounds, record.fleet, record.round, put={"announced": False})


def _publish(services: Services, payload: bytes) -> None:
    services.iot_data.publish(topic=round_topic(services.fleet), qos=1, retain=True, payload=payload)

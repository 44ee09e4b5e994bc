"""The update file: what a device sends, encoded and decoded as a stream."""

from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import UpdateInfo, write_update

__all__ = ["UpdateHeader", "UpdateInfo", "write_update"]

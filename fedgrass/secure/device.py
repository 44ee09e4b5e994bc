"""What a device needs for secure aggregation, and the error where its library is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgrass.errors import ConfigurationError

try:
    from fedgrass.secure.keys import device_key as signing_key
    from fedgrass.secure.masked import masked
    from fedgrass.secure.sealing import Context
except ModuleNotFoundError as error:  # pragma: no cover - by a test in a process without it
    # Any other missing module is a fault of the installation, not of this setting.
    if error.name != "cryptography":
        raise
    raise ConfigurationError(
        "secure: this round's updates are masked, and the package cryptography is not installed here. Install "
        "fedgrass[secure], or on a core device set com.fedgrass.Runtime's secure to true"
    ) from error

if TYPE_CHECKING:
    from fedgrass.protocol.messages import Announcement

__all__ = ["context_of", "masked", "signing_key"]


def context_of(announcement: Announcement) -> Context:
    """Return what the seeds of a round's update are bound to; raises `ConfigurationError` if the round has no masks."""
    task = announcement.secure
    if task is None:
        raise ConfigurationError(f"round {announcement.round}: it was not announced with secure aggregation")
    base = announcement.base.parameters_sha256
    return Context.of_round(announcement.fleet, announcement.round, announcement.cohort.salt, base, task)

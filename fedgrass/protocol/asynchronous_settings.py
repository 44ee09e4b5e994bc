"""What a fleet's settings must be for rounds that never wait: ``mode`` asynchronous."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings


def require_a_stream(settings: FleetSettings) -> None:
    """Raise `ValueError` naming the first setting with which updates could not count in a round after their own.

    Parameters
    ----------
    settings
        With ``mode`` asynchronous.
    """
    strategy = settings.strategy
    # First, and by its own name: the strategy's error would not say what about sums is in the way.
    if settings.secure is not None:
        raise ValueError(
            "mode asynchronous: with secure, masks are opened for the devices of one round together, and an update that comes "
            "later stays masked; set mode to synchronous"
        )
    if settings.privacy.mode in ("central", "distributed"):
        raise ValueError(
            f"mode asynchronous: with privacy.mode {settings.privacy.mode} a device must count at most once in a round, and here "
            "an old update of it may meet a new one; use privacy.mode local, or mode synchronous"
        )
    if strategy.staleness == 0:
        why = "keeps state that belongs to one round's base" if strategy.keeps_device_state else "takes no late updates"
        raise ValueError(
            f"mode asynchronous: strategy {strategy.name} {why}; use fedbuff, with its option staleness above 0"
        )
    if settings.buffer_size < settings.min_updates:
        raise ValueError(
            f"buffer_size ({settings.buffer_size}) is less than min_updates ({settings.min_updates}): no round could succeed"
        )
    # Each of these says when a round's own cohort is enough, and would be ignored.
    if settings.cohort.size or settings.quorum < 1:
        name = "cohort.size" if settings.cohort.size else "quorum"
        raise ValueError(
            f"{name}: with mode asynchronous buffer_size says how many updates end a round, and fraction who is asked; set "
            f"{name} to its default"
        )

"""What a participant tells of its data, and what not: each question is answered with the reason against it, or nothing."""

from __future__ import annotations

from fedgrass.protocol.messages import Announcement


def against_round(announcement: Announcement, *, least: float) -> str:
    """Why a round would have the participant tell too much; ``least`` is its owner's ``minNoiseMultiplier``."""
    if least and announcement.task == "evaluate":
        return f"the round asks for exact figures, minNoiseMultiplier is {least:g}"
    if announcement.update.noise_multiplier < least:
        return f"noise_multiplier is {announcement.update.noise_multiplier:g}, minNoiseMultiplier is {least:g}"
    return ""


def against_exact_answers(newest: Announcement | None, *, least: float) -> str:
    """Why a command may not be told anything without noise; ``newest`` is the newest round that the device knows of."""
    if least:
        return f"minNoiseMultiplier is {least:g}"
    if newest is not None and newest.update.noise_multiplier > 0:
        return f"the fleet's rounds add noise on the device (round {newest.round})"
    return ""

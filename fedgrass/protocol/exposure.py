"""What a participant tells of its data, and what not: each question is answered with the reason against it, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from fedgrass.protocol.messages import Announcement


def against_round(announcement: Announcement, *, least: float, helpers: Sequence[str] = ()) -> str:
    """Why a round would have the participant tell too much.

    Parameters
    ----------
    announcement
        The round.
    least
        Its owner's ``minNoiseMultiplier``.
    helpers
        Its owner's ``secureHelpers``.

    Returns
    -------
    str
        The reason; empty if there is none.
    """
    exact = announcement.task == "statistics" and (
        announcement.statistics is None or announcement.statistics.max_rows is None
    )
    # Figures of an evaluation go as they are: there is no noise on them that could be compared.
    if least and (announcement.task == "evaluate" or exact):
        return f"the round asks for exact figures, minNoiseMultiplier is {least:g}"
    # A product and its factor: the last digits of the quotient are rounding.
    if (noise := kept_noise(announcement, helpers)) < least * (1 - 1e-9):
        return f"noise_multiplier is {noise:g}, minNoiseMultiplier is {least:g}"
    if helpers and exact:
        return "the round asks for exact figures, and secureHelpers asks for secure aggregation"
    if helpers and announcement.task in ("fit", "statistics"):
        if announcement.secure is None:
            return "the round has no secure aggregation, and secureHelpers asks for it"
        # Keys count, not names: the cloud chooses the names, and could be all of the helpers itself.
        if strange := [one.name for one in announcement.secure.helpers if one.key not in helpers]:
            return f"the round's helper {strange[0]!r} has a key that is not one of secureHelpers"
    return ""


def kept_noise(announcement: Announcement, helpers: Sequence[str]) -> float:
    """Return the noise, in units of the clipping norm, that whoever opens the update has on it at least.

    That of the helpers counts only where the owner named them (``secureHelpers``): of others the cloud could be all. A device's
    boxes are bound to it, so helpers that were told of less open none. What the aggregator says that it adds shows nobody.

    Parameters
    ----------
    announcement
        The round.
    helpers
        The owner's ``secureHelpers``.
    """
    task, clip_norm = announcement.secure, announcement.update.clip_norm
    if task is not None and task.shared_noise and clip_norm > 0 and helpers:
        return task.noise / clip_norm
    return announcement.update.noise_multiplier


def against_exact_answers(newest: Announcement | None, *, least: float, helpers: Sequence[str] = ()) -> str:
    """Say why a command may not be told anything exact.

    Parameters
    ----------
    newest
        The newest round that the device knows of.
    least
        The owner's ``minNoiseMultiplier``.
    helpers
        The owner's ``secureHelpers``.

    Returns
    -------
    str
        The reason; empty if there is none.
    """
    if least:
        return f"minNoiseMultiplier is {least:g}"
    if helpers:
        return "secureHelpers is set"
    # Even without limits of the owner's: an exact answer would undo the noise of the fleet's rounds.
    if newest is not None and newest.update.noise_multiplier > 0:
        return f"the fleet's rounds add noise on the device (round {newest.round})"
    if newest is not None and newest.secure is not None:
        return f"the fleet's rounds mask updates (round {newest.round})"
    return ""

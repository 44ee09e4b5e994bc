"""What a fleet's settings must be for partial work: ``fit.partial_margin_seconds``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings

NAME = "fit.partial_margin_seconds"


def require_whole_figures(settings: FleetSettings) -> None:
    """Raise `ValueError` naming the first setting with which an update that is not whole would count for what it is not.

    Parameters
    ----------
    settings
        With ``fit.partial_margin_seconds`` above 0.
    """
    margin, strategy = settings.fit.partial_margin_seconds, settings.strategy
    if margin >= settings.deadline_seconds:
        raise ValueError(
            f"{NAME} ({margin}): no time to train is left of deadline_seconds ({settings.deadline_seconds})"
        )
    found = next((why for why, is_so in _against(settings).items() if is_so), "")
    if found:
        raise ValueError(f"{NAME}: {found}; set it to 0")
    known = strategy.known()
    if known is not None and known.partial_work == "no":
        raise ValueError(
            f"{NAME}: strategy {strategy.name} {_why_not(settings)}; use fedavg, fedprox, fednova, scaffold or one with a server "
            "optimizer, or set it to 0"
        )


def _against(settings: FleetSettings) -> dict[str, bool]:
    mode = settings.privacy.mode
    return {
        "with mode asynchronous no deadline ends a training": settings.is_asynchronous,
        "with secure aggregation no update tells its steps, so that part of a training would count as all of it": settings.secure
        is not None,
        f"with privacy.mode {mode} updates count by nothing that devices say, and so not by their steps": mode
        != "none",
        "with update.figures left_out no update tells its steps": settings.update.hides_figures,
        "with fit.local_epochs the first epochs move nothing that is sent": settings.fit.local_epochs > 0,
        f"with personal.mode {settings.personal.mode} devices train a model of their own after the fleet's, and no time would be "
        "left for it": settings.personal.mode != "none",
        "with checks.max_norm_over_median whole updates would be refused beside short ones; use checks.max_norm": (
            settings.checks.max_norm_over_median > 0
        ),
    }


def _why_not(settings: FleetSettings) -> str:
    known = settings.strategy.known()
    if known is None:
        return ""
    if known.needs_all:
        return "compares updates with one another, and takes a short one for another opinion"
    if known.device_state is not None:
        return "has devices keep what their differences add up to, which must be of whole trainings"
    return "weighs by something else than the work done"

"""Secure aggregation in a fleet's settings, and what of the other settings cannot go with it: what needs single updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field, ValidationError

from fedgrass.errors import ConfigurationError, first_problem
from fedgrass.protocol.secure import MOST_DEVICES, Masking, SecureTask

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings
    from fedgrass.strategies import Strategy

_LEAST = 2


class Secure(Masking):
    """Secure aggregation, strict about names: the cloud sees sums of updates only (docs/secure-aggregation.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    most: int = Field(
        default=0,
        ge=0,
        le=MOST_DEVICES,
        description="Largest number of devices to sum; 0: as many as the fleet has when a round opens",
    )
    helper_seconds: int = Field(
        default=600, ge=1, le=86_400, description="How long to wait for the helpers' sums; then the round ends"
    )

    def task(self, known: int, *, equal: bool, noise: float = 0.0, shared_noise: bool = False) -> SecureTask:
        """Return what devices are told.

        Parameters
        ----------
        known
            Devices that the fleet has, if the settings do not say how many may be summed.
        equal
            Whether all count alike for another reason than these settings.
        noise
            Standard deviation of the noise that the sum gets.
        shared_noise
            Whether the helpers add it.

        Raises
        ------
        ValidationError
            If ``bits`` are too narrow for so many.
        """
        # Not model_dump: that would turn the helpers into plain dictionaries.
        named = {name: getattr(self, name) for name in Masking.model_fields}
        changes = {"most": self.most or max(1, known), "equal": self.equal or equal, "noise": noise}
        changes["shared_noise"] = shared_noise
        return SecureTask.model_validate({**named, **changes})


def announced_secure(settings: FleetSettings, known: int) -> SecureTask | None:
    """Return what devices of a fleet of so many are told of masks; None without secure aggregation.

    Where privacy or the strategy has every device count alike, no number of examples is told.

    Raises
    ------
    ConfigurationError
        If ``secure.bits`` are too narrow for so many, or for the noise.
    """
    if settings.secure is None or settings.task == "evaluate":
        return None
    privacy = settings.privacy
    # On the sum, in the unit of the values: every update is clipped to clip_norm, and all count alike.
    noise = 0.0 if privacy.mode == "none" else privacy.noise_multiplier * privacy.clip_norm
    # Statistics are sums already: a device weighs by what it counts.
    equal = (
        privacy.mode != "none" or settings.task == "statistics" or settings.strategy.options.get("weighting") == "equal"
    )
    try:
        return settings.secure.task(known, equal=equal, noise=noise, shared_noise=privacy.mode == "distributed")
    except ValidationError as error:
        raise ConfigurationError(first_problem(error, "secure", prefix="secure.")) from error


def require_sums_are_enough(settings: FleetSettings, strategy: Strategy | None) -> None:
    """Raise `ValueError` naming the first setting that needs single updates, which secure aggregation shows nobody.

    Parameters
    ----------
    settings
        With ``secure``.
    strategy
        The settings' strategy; None if it is not installed here.
    """
    groups = settings.secure.groups if settings.secure is not None else 1
    if strategy is not None and (why := why_not_by_sums(strategy, groups)):
        raise ValueError(f"strategy {strategy.name}: with secure the cloud sees sums only, and it {why}")
    checks, default = settings.checks, type(settings.checks)()
    for name in ("max_norm", "max_norm_over_median", "clip_norm_over_median", "max_examples_over_median"):
        value = getattr(checks, name)
        # A bound that is only a default is dropped in silence; one that somebody set would be a promise that is not
        # kept.
        if groups == 1 and value and value != getattr(default, name):
            raise ValueError(
                f"checks.{name}: with secure no single update is seen, so nothing can be held against it; devices bound theirs "
                "by update.clip_norm, secure.value_range and secure.max_examples; with secure.groups it bounds groups' means"
            )
    if settings.update.codec != "float32":
        raise ValueError(f"update.codec {settings.update.codec}: with secure an update's form is secure.bits")
    if settings.privacy.mode == "local":
        raise ValueError("privacy.mode local: with secure, set it to none, central or distributed")
    if groups > 1 and settings.privacy.mode == "central":
        raise ValueError(
            "secure.groups: with privacy.mode central the noise is for one sum, and the groups' sums would be seen without it; "
            "set privacy.mode to distributed, where each group's sum has it"
        )
    if settings.privacy.adaptive_clip is not None:
        raise ValueError("privacy.adaptive_clip: it follows the norms of single updates, which nobody sees with secure")
    if settings.min_updates < _LEAST:
        raise ValueError(
            f"min_updates {settings.min_updates}: the sum of one update is that update; expected {_LEAST} or more"
        )
    if settings.silos:
        raise ValueError("silos: they do not mask updates yet, so they cannot take part in a fleet with secure")


def why_not_by_sums(strategy: Strategy, groups: int = 1) -> str:
    """Say what a strategy needs beside the sum of the updates, or nothing.

    Parameters
    ----------
    strategy
        The strategy.
    groups
        In how many groups the updates are summed: of several, a strategy that must see all updates is given the means.
    """
    if strategy.needs_all and groups == 1:
        return "must see all updates; secure.groups would have it see the means of groups"
    if strategy.keeps_state:
        return "is told what single devices say of their updates"
    if strategy.staleness > 0:
        return "takes late updates, whose masks nobody opens"
    if strategy.needs_metrics:
        return f"weighs by {', '.join(strategy.needs_metrics)}, which no update tells"
    if strategy.device_state is not None:
        return "keeps state on devices by figures that no update tells"
    if strategy.needs_own_update and groups == 1:
        return "compares updates with its own"
    if groups == 1 and getattr(strategy.options, "clip", None) is not None:
        return "clips single updates (option clip); set update.clip_norm instead, by which devices clip"
    return ""

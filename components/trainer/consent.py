"""Whether this device takes part in a round: what its owner allows, how often, and how much it tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.trainer.recent import RecentRounds
from fedgrass.edge.privacy_account import PrivacyAccount
from fedgrass.edge.resource_policy import ResourcePolicy
from fedgrass.edge.settings import TrainerSettings
from fedgrass.errors import PrivacyLimitError, TransferError
from fedgrass.protocol.exposure import against_exact_answers, against_round
from fedgrass.protocol.messages import Announcement


class Consent:
    """The device's word on taking part; an empty text is a yes.

    Parameters
    ----------
    folder
        Where the account of privacy and the times of the last rounds are kept.
    settings
        Gives the owner's settings.
    guard
        Says whether processor, memory, power and the application allow it now.
    room
        Says why another upload would not fit.
    """

    def __init__(
        self,
        folder: Path,
        settings: Callable[[], TrainerSettings],
        guard: ResourcePolicy,
        room: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._room = room
        self._recent = RecentRounds(folder / "recent.json", lambda: settings().max_rounds_per_day)
        # Outlives rounds and fleets: what was told to one fleet counts towards the owner's limit for all.
        self._account = PrivacyAccount(folder / "privacy.json")

    def objection(self) -> str:
        """Say why the device would not train now, for whatever round."""
        hold = self._guard.hold()
        return hold.reason if hold is not None else self._recent.objection() or self._room()

    def against(self, announcement: Announcement) -> str:
        """Say why the device declines this round."""
        # Privacy first: of several reasons it is the one that is told.
        return self._exposure(announcement) or self._room() or self._recent.objection() or self._shortage()

    def against_exact_answers(self, newest: Announcement | None) -> str:
        """Say why a command may not have figures without noise, where the newest round was this one."""
        own = self._settings()
        if reason := against_exact_answers(newest, least=own.min_noise_multiplier, helpers=own.secure_helpers):
            return reason
        if own.max_promised_epsilon:
            return f"maxPromisedEpsilon is {own.max_promised_epsilon:g}"
        try:
            rounds = self._account.rounds if own.max_epsilon else 0
        except PrivacyLimitError as error:
            return str(error)
        return f"this device has answered {rounds} rounds with noise" if rounds else ""

    def against_figures(self, newest: Announcement | None) -> str:
        """Say why no figure may be told of which nobody asked, where the newest round was this one."""
        if newest is None:
            return "no round is known, and so not whether figures are left out"
        if newest.update.hides_figures:
            return f"the fleet's rounds leave figures out (round {newest.round})"
        return self.against_exact_answers(newest)

    def charge(self, announcement: Announcement, key: str) -> None:
        """Count a round's noise as spent, once for each ``key``.

        Raises
        ------
        TransferError
            If that cannot be kept, for then nothing may leave.
        """
        try:
            self._account.charge(announcement, key, helpers=self._settings().secure_helpers)
        except (OSError, PrivacyLimitError) as error:
            raise TransferError(f"the account of this device's privacy cannot be written: {error}") from error

    def took_part(self) -> None:
        """Count a round towards the owner's limit of rounds in a day."""
        self._recent.took_part()

    def _exposure(self, announcement: Announcement) -> str:
        """Say why a round would have this device tell too much, or nothing."""
        own = self._settings()
        try:
            self._account.require(
                announcement,
                limit=own.max_epsilon,
                delta=own.delta,
                promised=own.max_promised_epsilon,
                helpers=own.secure_helpers,
            )
        except PrivacyLimitError as error:
            return str(error)
        return against_round(announcement, least=own.min_noise_multiplier, helpers=own.secure_helpers)

    def _shortage(self) -> str:
        hold = self._guard.hold()
        return hold.reason if hold is not None and hold.action == "decline" else ""

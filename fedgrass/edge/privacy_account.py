"""A device's own account of what its updates have told, kept over restarts and component updates.

The cloud keeps one too, but the cloud is who the noise is against: an operator could open round after round, and average the
noise away. What noise hides is computed as `fedgrass.protocol.privacy.gaussian_epsilon` does, for any two updates.

There are two sums. One is of noise that is kept whatever the cloud does: the device's own, and that of helpers which its owner
named. The other is of noise that the cloud promises: the aggregator's, and that of other helpers. It is worth what the promise
is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import PrivacyLimitError
from fedgrass.files import write_atomically
from fedgrass.protocol.exposure import kept_noise
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.privacy import gaussian_epsilon

# Answers that may be charged again after a kill: a device has one round at a time, so a few are ample.
_KEYS_KEPT = 8


class _Spent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    rounds: int = Field(default=0, ge=0)
    rho: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    promised_rounds: int = Field(default=0, ge=0)
    promised_rho: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    last: tuple[str, ...] = ()


class PrivacyAccount:
    """What all rounds with noise on the device have spent together, of whatever fleet.

    Parameters
    ----------
    path
        File that holds it. It stays when the component is updated, or taken out and put in again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def rounds(self) -> int:
        """Rounds with noise that is kept so far; raises `PrivacyLimitError` if the file cannot be read."""
        return self._spent().rounds

    def require(
        self,
        announcement: Announcement,
        *,
        limit: float,
        delta: float,
        promised: float = 0.0,
        helpers: Sequence[str] = (),
    ) -> None:
        """Judge a round before anything is done for it.

        Parameters
        ----------
        limit
            The largest ε of noise that is kept; 0 is no limit.
        delta
            δ of that ε.
        promised
            The largest ε of all noise, promised or kept; 0 is no limit.
        helpers
            The owner's ``secureHelpers``.

        Raises
        ------
        PrivacyLimitError
            If the round would pass a limit, would undo earlier rounds' noise by having none, or if the account is not readable.
        """
        kept, told = _rho_kept(announcement, helpers), _rho_promised(announcement)
        if limit:
            self._require_kept(kept, limit, delta)
        if promised:
            self._require_promised(kept or told, promised, delta)

    def _require_kept(self, kept: float, limit: float, delta: float) -> None:
        spent = self._spent()
        # An exact answer, even one figure, can be subtracted from the noisy ones.
        if kept == 0:
            if spent.rounds:
                raise PrivacyLimitError(
                    f"this device has answered {spent.rounds} rounds with noise, and one without it would undo them "
                    "(maxEpsilon 0 allows it)"
                )
            return
        after = gaussian_epsilon(spent.rho + kept, delta)
        if after > limit:
            raise PrivacyLimitError(
                f"with this round ε would be {after:.4g} at δ = {delta:g} on this device, maxEpsilon is {limit:g} "
                f"({spent.rounds} rounds are spent)"
            )

    def _require_promised(self, rho: float, limit: float, delta: float) -> None:
        spent = self._spent()
        if rho == 0:
            raise PrivacyLimitError(
                "nobody says that noise hides what this round would tell, and without it no ε is finite; maxPromisedEpsilon is "
                f"{limit:g}"
            )
        after = gaussian_epsilon(spent.rho + spent.promised_rho + rho, delta)
        if after > limit:
            raise PrivacyLimitError(
                f"with this round ε would be {after:.4g} at δ = {delta:g} on this device, if the cloud adds the noise that it "
                f"says; maxPromisedEpsilon is {limit:g} ({spent.rounds + spent.promised_rounds} rounds are spent)"
            )

    def charge(self, announcement: Announcement, key: str, *, helpers: Sequence[str] = ()) -> None:
        """Record a round before its update leaves; it counts once, however often this is called.

        Parameters
        ----------
        key
            The answer's.
        helpers
            The owner's ``secureHelpers``.

        Raises
        ------
        OSError
            If the disk does not take it; then the update must not leave.
        """
        kept = _rho_kept(announcement, helpers)
        told = 0.0 if kept else _rho_promised(announcement)
        if kept + told == 0:
            return
        spent = self._spent()
        # Repeated after a kill: the same update was charged, and is charged once.
        if key in spent.last:
            return
        # Zero-concentrated DP adds up over rounds (Bun and Steinke 2016); ε is derived from the sum when asked for.
        more = _Spent(
            rounds=spent.rounds + (kept > 0),
            rho=spent.rho + kept,
            promised_rounds=spent.promised_rounds + (told > 0),
            promised_rho=spent.promised_rho + told,
            last=(*spent.last, key)[-_KEYS_KEPT:],
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, more.model_dump_json().encode())

    def _spent(self) -> _Spent:
        try:
            return _Spent.model_validate_json(self._path.read_bytes())
        # A device that has not trained with noise yet. A damaged file is another matter: starting at 0 would hide
        # what was spent.
        except FileNotFoundError:
            return _Spent()
        except (OSError, ValidationError) as error:
            raise PrivacyLimitError(
                f"{self._path}: this device's account of its privacy cannot be read, and without it nothing is told. Restore "
                "it, or delete it if the data are others"
            ) from error


def _rho_kept(announcement: Announcement, helpers: Sequence[str]) -> float:
    """Return what a round tells through noise that is on it whatever the cloud does, as ρ-zCDP; 0 if there is none."""
    # Figures of an evaluation go as they are.
    if announcement.task == "evaluate":
        return 0.0
    task = announcement.secure
    if task is None or not task.shared_noise:
        return _rho(announcement.update.noise_multiplier)
    # One helper that the owner did not name could be the cloud's own, and so could all that may collude.
    if not {one.key for one in task.helpers} <= set(helpers):
        return 0.0
    # Bad helpers can have several sums opened, each with noise of its own, and the update may be in all of them.
    return task.sums_that_open(task.collude) * _rho(kept_noise(announcement, helpers))


def _rho_promised(announcement: Announcement) -> float:
    return _rho(announcement.promised_noise or 0.0) if announcement.task != "evaluate" else 0.0


def _rho(noise_multiplier: float) -> float:
    # Two updates may lie twice the clipping norm apart.
    return 2 / noise_multiplier**2 if noise_multiplier > 0 else 0.0

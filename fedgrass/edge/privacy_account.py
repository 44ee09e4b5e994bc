"""A device's own account of what its updates have told, kept over restarts and component updates.

The cloud keeps one too, but the cloud is who the noise is against: an operator could open round after round, and average the
noise away. What noise hides is computed as `fedgrass.protocol.privacy.gaussian_epsilon` does, for any two updates.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import PrivacyLimitError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.privacy import gaussian_epsilon

# Answers that may be charged again after a kill: a device has one round at a time, so a few are ample.
_KEYS_KEPT = 8


class _Spent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    rounds: int = Field(default=0, ge=0)
    rho: float = Field(default=0.0, ge=0, allow_inf_nan=False)
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
        """Rounds with noise so far; raises `PrivacyLimitError` if the file cannot be read."""
        return self._spent().rounds

    def require(self, announcement: Announcement, *, limit: float, delta: float) -> None:
        """Judge a round before anything is done for it.

        Parameters
        ----------
        limit
            The largest ε; 0 is no limit.
        delta
            δ of that ε.

        Raises
        ------
        PrivacyLimitError
            If the round would pass the limit, would undo earlier rounds' noise by having none, or if the account is not readable.
        """
        if limit == 0:
            return
        spent, noise = self._spent(), announcement.update.noise_multiplier
        # An exact answer, even one figure, can be subtracted from the noisy ones.
        if announcement.task == "evaluate" or noise == 0:
            if spent.rounds:
                raise PrivacyLimitError(
                    f"this device has answered {spent.rounds} rounds with noise, and one without it would undo them "
                    "(maxEpsilon 0 allows it)"
                )
            return
        after = gaussian_epsilon(spent.rho + _rho(noise), delta)
        if after > limit:
            raise PrivacyLimitError(
                f"with this round ε would be {after:.4g} at δ = {delta:g} on this device, maxEpsilon is {limit:g} "
                f"({spent.rounds} rounds are spent)"
            )

    def charge(self, announcement: Announcement, key: str) -> None:
        """Record a round before its update leaves; it counts once, however often this is called.

        Parameters
        ----------
        key
            The answer's.

        Raises
        ------
        OSError
            If the disk does not take it; then the update must not leave.
        """
        noise = announcement.update.noise_multiplier
        if noise == 0 or announcement.task == "evaluate":
            return
        spent = self._spent()
        # Repeated after a kill: the same update was charged, and is charged once.
        if key in spent.last:
            return
        # Zero-concentrated DP adds up over rounds (Bun and Steinke 2016); ε is derived from the sum when asked for.
        more = _Spent(rounds=spent.rounds + 1, rho=spent.rho + _rho(noise), last=(*spent.last, key)[-_KEYS_KEPT:])
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


def _rho(noise_multiplier: float) -> float:
    return 2 / noise_multiplier**2  # two updates may lie twice the clipping norm apart

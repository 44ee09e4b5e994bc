"""What a fleet has spent of its privacy, and whether another round may spend more. Needs no accountant: the aggregator has one.

Every round that opens with noise counts, whatever becomes of it: what was asked of the devices cannot be unasked.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.protocol.messages import Finite
from fedgrass.protocol.settings import Privacy


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Spend(_Part):
    """Rounds with the same noise. ``fraction`` is the share of devices in each of them, where that may be counted; else 1."""

    noise_multiplier: float = Field(gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    rounds: int = Field(default=1, ge=1)


class PrivacyLedger(_Part):
    """All rounds with noise so far, and the (ε, δ) that the accountant made of them.

    ``epsilon`` is for the first ``judged`` rounds, and ``next_epsilon`` for one more like the last of them: what came later has
    not been judged yet.
    """

    spends: tuple[Spend, ...] = Field(default=(), max_length=1000)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    judged: int = Field(default=0, ge=0)
    epsilon: Finite | None = None
    next_epsilon: Finite | None = None

    @property
    def rounds(self) -> int:
        """Rounds with noise."""
        return sum(spend.rounds for spend in self.spends)

    def charged(self, privacy: Privacy, fraction: float) -> PrivacyLedger:
        """Return the ledger with one more round under these settings, of which this share of the fleet is part."""
        spends = list(self.spends)
        new = _spend(privacy, fraction)
        if spends and spends[-1].model_copy(update={"rounds": 1}) == new:
            new = new.model_copy(update={"rounds": spends.pop().rounds + 1})
        return self.model_copy(update={"spends": (*spends, new), "delta": privacy.delta})

    def projected(self, privacy: Privacy, fraction: float) -> float | None:
        """Return an upper bound of ε after one more round; None if only the accountant can tell.

        The accountant's own word, where it judged this very case. Otherwise that of zero-concentrated differential
        privacy, which is a little larger: ρ + 2√(ρ ln 1/δ) with ρ = Σ 1/(2z²) (Bun and Steinke, TCC 2016,
        https://arxiv.org/abs/1605.02065), and which knows nothing of sampling.
        """
        new = _spend(privacy, fraction)
        after = self.charged(privacy, fraction)
        if (
            self.next_epsilon is not None
            and self.judged == self.rounds
            and self.delta == privacy.delta
            and len(after.spends) == len(self.spends)
        ):
            return self.next_epsilon
        if new.fraction < 1:
            return None
        rho = sum(spend.rounds / (2 * spend.noise_multiplier**2) for spend in after.spends)
        return rho + 2 * math.sqrt(rho * math.log(1 / privacy.delta))


def _spend(privacy: Privacy, fraction: float) -> Spend:
    counts = privacy.mode == "central" and privacy.secret_cohort
    return Spend(noise_multiplier=privacy.noise_multiplier, fraction=fraction if counts else 1.0)

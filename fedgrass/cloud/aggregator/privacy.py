"""Central differential privacy: noise on the mean of clipped updates, and the account of what all rounds have spent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass.cloud.aggregator.tree_noise import changes, node_seed
from fedgrass.noise import Grid, add_noise, discrete_gaussian
from fedgrass.protocol.privacy import PrivacyLedger, Spend
from fedgrass.protocol.settings import Privacy
from fedgrass.strategies.arithmetic.interfaces import Sums
from fedgrass.update.codecs import Floats


class Gaussian:
    """The discrete Gaussian mechanism on the sum of updates of norm ``clip_norm`` at most.

    McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, https://arxiv.org/abs/1710.06963

    Parameters
    ----------
    noise_multiplier
        Standard deviation of the noise on the sum, in units of ``clip_norm``.
    seed
        The same one gives the same noise: a job that is started again must give the same model.
    step
        Which of the rounds of a tree of noise it is, from 1, if they share one; ``seed`` is the tree's then.
    """

    def __init__(self, *, clip_norm: float, noise_multiplier: float, seed: bytes, step: int = 0) -> None:
        self.clip_norm = clip_norm
        self.grid = Grid.of(noise_multiplier * clip_norm)
        self._seed = seed
        self._step = step

    def add_to(self, total: NDArray[np.uint16] | NDArray[np.uint32], deviation: int) -> None:
        """Add noise of a deviation, in steps, to the sum that secure aggregation gives, in place."""
        add_noise(total, self._seed, deviation)

    def noised_mean(self, total: Sums, count: int) -> Floats:
        """Return the mean of ``count`` clipped differences with noise.

        Parameters
        ----------
        total
            Their sum in whole steps of ``grid``; overwritten.
        count
            How many they are.
        """
        steps = total.astype(np.float64, copy=False)
        if self._step:
            for node, times in changes(self._step):
                self.grid.add_noise(steps, node_seed(self._seed, node), times)
        else:
            self.grid.add_noise(steps, self._seed)
        np.multiply(steps, self.grid.step / count, out=steps)
        return steps.astype(np.float32)


def noise_of(privacy: Privacy, seed: str, step: int = 0) -> Gaussian | None:
    """Return the aggregator's part in the fleet's privacy; None if the noise is others', or there is none.

    Parameters
    ----------
    privacy
        The fleet's settings.
    seed
        Hexadecimal.
    step
        As of `Gaussian`.
    """
    if privacy.mode != "central":
        return None
    return Gaussian(
        clip_norm=privacy.clip_norm, noise_multiplier=privacy.update_noise, seed=bytes.fromhex(seed), step=step
    )


BELOW = 1 - 2.0**-16
"""A norm is known to some six digits: so much less, and no clipped update exceeds what the noise was made for."""


def next_clip_norm(privacy: Privacy, norms: Sequence[float], seed: str) -> float | None:
    """Return the clipping norm of the next round; None where it does not adapt.

    The count of updates within the norm gets discrete Gaussian noise: one device changes it by 1 at most.

    Parameters
    ----------
    norms
        Of the updates that were used, to six digits; those that were clipped, here or on the device, lie above the bound.
    seed
        The round's, in hexadecimal; the count's noise is another than the sum's.
    """
    adaptive = privacy.adaptive_clip
    if adaptive is None or not norms:
        return None
    # A seed of its own, derived: the same stream for sum and count would let one noise be taken off by the other.
    own = hashlib.sha256(b"count" + bytes.fromhex(seed)).digest()
    noise = int(next(discrete_gaussian(own, 1, adaptive.count_noise))[0])
    # A device clips to the norm itself, so a clipped update lies above this slightly smaller bound.
    within = sum(norm <= privacy.clip_norm * BELOW for norm in norms)
    # Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021,
    # https://arxiv.org/abs/1905.03871
    moved = adaptive.learning_rate * ((within + noise) / len(norms) - adaptive.quantile)
    # With few devices the noise alone could move it by orders of magnitude.
    return privacy.clip_norm * math.exp(-min(1.0, max(-1.0, moved)))


def judged(ledger: PrivacyLedger) -> PrivacyLedger:
    """Return the ledger with the accountant's figures: what is spent, and what one more round like the last would make it."""
    if ledger.unbounded:
        return ledger
    # What the next round would cost, said now: opening has no accountant (docs/decisions/0015).
    more = ledger.following
    found, following = accounted(ledger.spends, ledger.delta), accounted(more, ledger.delta)
    return ledger.model_copy(
        update={
            "judged": ledger.rounds,
            "epsilon": found.best,
            "epsilon_renyi": found.renyi,
            "next_epsilon": following.best,
        }
    )


def beyond_budget(ledger: PrivacyLedger, privacy: Privacy) -> str:
    """Return why a round must not be aggregated; empty if it may be.

    What the opening could not tell, because it has no accountant, is told here, before anything leaves the aggregator.
    """
    if ledger.unbounded and privacy.epsilon_budget > 0:
        return f"{ledger.said}; the budget is {privacy.epsilon_budget:g}"
    if ledger.epsilon is None or not 0 < privacy.epsilon_budget < ledger.epsilon:
        return ""
    return f"with this round ε would be {ledger.epsilon:.4g} at δ = {ledger.delta:g}; the budget is {privacy.epsilon_budget:g}"


@dataclass(frozen=True)
class Accounted:
    """Two upper bounds of the same ε: by Rényi divergences, and by the distribution of the privacy loss, if that was computed."""

    renyi: float
    loss: float | None

    @property
    def best(self) -> float:
        """The smaller one: both hold."""
        return self.renyi if self.loss is None else min(self.renyi, self.loss)


def epsilon(spends: tuple[Spend, ...], delta: float) -> float:
    """Return ε at δ of all these rounds together, as `accounted`."""
    return accounted(spends, delta).best


_MOST_EPSILON = 40.0
"""Above it the distribution of the privacy loss takes minutes, and says nothing that matters."""


def accounted(spends: tuple[Spend, ...], delta: float) -> Accounted:
    """Return ε at δ of all these rounds together, by two accountants of Google's ``dp-accounting``.

    Rényi accounting (Mironov, CSF 2017, https://arxiv.org/abs/1702.07476), and privacy-loss distributions (Koskela et al.,
    AISTATS 2020, https://arxiv.org/abs/1906.03049), which are tight; without sampling the Gaussian's own curve (Balle and
    Wang, ICML 2018, https://arxiv.org/abs/1805.06530). Two fleets are neighbours if one device's updates are all zero
    in one of them (``REPLACE_SPECIAL``); where any two updates are meant, the sensitivity of the rounds says so.
    """
    import dp_accounting  # takes seconds, which other rounds should not pay
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    # Rounds that ask everybody have no sampling to account for: their Gaussians compose in closed form.
    whole = [spend for spend in spends if spend.fraction == 1]
    # Gaussian noise that is drawn several times hides as much as that drawn once which is less by the root of their number.
    precision = sum(spend.rounds / spend.relative_noise**2 for spend in whole)
    together = 1 / math.sqrt(precision) if whole else None
    events = [] if together is None else [(dp_accounting.GaussianDpEvent(together), 1)]
    for spend in spends:
        if spend.fraction < 1:
            event = dp_accounting.GaussianDpEvent(spend.relative_noise)
            events.append((dp_accounting.PoissonSampledDpEvent(spend.fraction, event), spend.rounds))

    def by(accountant: Any) -> float:
        for event, count in events:
            accountant.compose(event, count)
        return float(accountant.get_epsilon(delta))

    neighbours = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    renyi = by(RdpAccountant(neighboring_relation=neighbours))
    # Without sampling the Gaussian's curve is exact: the slower accountant could not be tighter.
    if together is not None and len(events) == 1:
        return Accounted(renyi, float(dp_accounting.get_epsilon_gaussian(together, delta)))
    loss = by(PLDAccountant(neighboring_relation=neighbours)) if renyi < _MOST_EPSILON else None
    return Accounted(renyi, loss)

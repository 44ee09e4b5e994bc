"""Central differential privacy: noise on the mean of clipped updates, and the account of what all rounds have spent."""

from __future__ import annotations

import numpy as np

from fedgrass.noise import Grid
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
    """

    def __init__(self, *, clip_norm: float, noise_multiplier: float, seed: bytes) -> None:
        self.clip_norm = clip_norm
        self.grid = Grid.of(noise_multiplier * clip_norm)
        self._seed = seed

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
        self.grid.add_noise(steps, self._seed)
        np.multiply(steps, self.grid.step / count, out=steps)
        return steps.astype(np.float32)


def noise_of(privacy: Privacy, seed: str) -> Gaussian | None:
    """Return the aggregator's part in the fleet's privacy; ``seed`` is hexadecimal."""
    if privacy.mode != "central":
        return None
    return Gaussian(clip_norm=privacy.clip_norm, noise_multiplier=privacy.noise_multiplier, seed=bytes.fromhex(seed))


def judged(ledger: PrivacyLedger) -> PrivacyLedger:
    """Return the ledger with the accountant's figures: what is spent, and what one more round like the last would make it."""
    last = ledger.spends[-1]
    return ledger.model_copy(
        update={
            "judged": ledger.rounds,
            "epsilon": epsilon(ledger.spends, ledger.delta),
            "next_epsilon": epsilon((*ledger.spends, last.model_copy(update={"rounds": 1})), ledger.delta),
        }
    )


def beyond_budget(ledger: PrivacyLedger, privacy: Privacy) -> str:
    """Return why a round must not be aggregated; empty if it may be.

    What the opening could not tell, because it has no accountant, is told here, before anything leaves the aggregator.
    """
    if ledger.epsilon is None or not 0 < privacy.epsilon_budget < ledger.epsilon:
        return ""
    return f"with this round ε would be {ledger.epsilon:.4g} at δ = {ledger.delta:g}; the budget is {privacy.epsilon_budget:g}"


def epsilon(spends: tuple[Spend, ...], delta: float) -> float:
    """Return ε at δ of all these rounds together, by Rényi accounting (Mironov, CSF 2017, https://arxiv.org/abs/1702.07476).

    Two fleets are neighbours if one device's updates are all zero in one of them. The library is Google's ``dp-accounting``.
    """
    import dp_accounting  # takes seconds, which other rounds should not pay
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    for spend in spends:
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(spend.noise_multiplier)
        if spend.fraction < 1:
            event = dp_accounting.PoissonSampledDpEvent(spend.fraction, event)
        accountant.compose(event, spend.rounds)
    return float(accountant.get_epsilon(delta))

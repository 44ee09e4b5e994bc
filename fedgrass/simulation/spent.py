"""What a simulation's rounds have spent of its budget of privacy, as a fleet's ledger counts it."""

from __future__ import annotations

from collections.abc import Sequence

from fedgrass.cloud.aggregator.privacy import epsilon
from fedgrass.protocol.budget import beyond_budget, one_more_beyond
from fedgrass.protocol.privacy import PrivacyLedger, Tree
from fedgrass.simulation.records import SimulatedRound
from fedgrass.simulation.settings import Simulation


def step_of_tree(rounds: int, done: Sequence[SimulatedRound]) -> int:
    """Return which step of a tree of noise the round after those done is.

    Parameters
    ----------
    rounds
        Of a tree.
    done
        The rounds before it.
    """
    # Its earlier steps are those since the last round that was held, in the same circle of lots (`Population`).
    number, step = len(done) + 1, 1
    while (number - step) % rounds and done[number - step - 1].went_on:
        step += 1
    return step


class Spent:
    """The ledger of a simulation's rounds, which it is told of in their order."""

    def __init__(self, simulation: Simulation) -> None:
        fleet = simulation.fleet
        if not fleet.cohort.size and not fleet.strategy.tree:
            # By chance alone, as a fleet's `fraction`; virtual devices are drawn to be exactly as many.
            fleet = fleet.model_copy(update={"fraction": simulation.asked / simulation.devices})
        self._fleet, self._ledger, self._counted = fleet, PrivacyLedger(), 0
        self._said: str | None = None

    def beyond(self, done: Sequence[SimulatedRound]) -> str:
        """Say why a round after these would pass the budget; empty if it fits, or if there is none.

        Parameters
        ----------
        done
            All rounds so far: those of the last time, and what came since.
        """
        if self._fleet.privacy.epsilon_budget <= 0:
            return ""
        # The accountant takes a while, and a run asks more than once after a round.
        if self._said is None or len(done) > self._counted:
            for number in range(self._counted, len(done)):
                self._ledger = self._after(done[:number])
            self._counted = len(done)
            said = beyond_budget(self._ledger, self._fleet, self._tree(done))
            self._said = said or self._judged(self._after(done))
        return self._said

    def _after(self, done: Sequence[SimulatedRound]) -> PrivacyLedger:
        return self._ledger.charged(self._fleet.privacy, self._fleet.sampled_fraction, self._tree(done))

    def _tree(self, done: Sequence[SimulatedRound]) -> Tree | None:
        rounds, privacy = self._fleet.strategy.tree, self._fleet.privacy
        if not rounds:
            return None
        return Tree(
            rounds=rounds,
            steps=step_of_tree(rounds, done),
            last=len(done) + 1,
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
        )

    def _judged(self, after: PrivacyLedger) -> str:
        """Have the accountant say what `beyond_budget` cannot tell: of a cohort that is drawn by chance and kept secret."""
        privacy = self._fleet.privacy
        if all(spend.fraction == 1 for spend in after.spends):
            return ""
        return one_more_beyond(epsilon(after.spends, privacy.delta), privacy)

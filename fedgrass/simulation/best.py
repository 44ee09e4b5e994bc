"""The best figures of a simulation's models so far, which the gate holds each new one against."""

from __future__ import annotations

from collections.abc import Sequence

from fedgrass.cloud.aggregator.release_gate import raised
from fedgrass.protocol.report import Best, Evaluation
from fedgrass.simulation.records import SimulatedRound

_KEPT_BACK = "kept back"  # in place of an evaluation set's digest


class BestSoFar:
    """The best figures on the examples that were kept back, of a simulation's rounds, which it is told of in their order.

    Parameters
    ----------
    forgets
        Whether the figures of earlier models count for nothing.
    """

    def __init__(self, *, forgets: bool) -> None:
        self._forgets = forgets
        self._best: Best | None = None
        self._counted = 0

    def of(self, standing: Evaluation, done: Sequence[SimulatedRound]) -> Best:
        """Return each figure's best.

        Parameters
        ----------
        standing
            The figures of the model that is the fleet's now.
        done
            All rounds so far: those of the last time, and what came since.
        """
        # Each round is looked at once: anew before every round, a thousand rounds took longer here than in training.
        for simulated in () if self._forgets else done[self._counted :]:
            if simulated.before is not None:
                self._best = raised(self._best, simulated.before, _KEPT_BACK)
        self._counted = len(done)
        return raised(self._best, standing, _KEPT_BACK)

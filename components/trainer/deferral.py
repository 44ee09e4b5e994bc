"""How long a component update waits for training, so that nothing that was computed is thrown away."""

from __future__ import annotations

from collections.abc import Callable

# Until a deferred update is looked at again.
_RECHECK_SECONDS = 10.0


class Deferral:
    """Remembers since when each deployment has waited.

    Parameters
    ----------
    clock
        Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def seconds(self, deployment: str, *, busy: bool, most: float) -> float:
        """Return for how many seconds to put a deployment off now; 0 lets it go on.

        Parameters
        ----------
        deployment
            The deployment's id.
        busy
            Whether there is anything to wait for.
        most
            Seconds that it is put off in all.
        """
        # From the first question on: the nucleus asks again after each deferral, and the bound is on their sum.
        since = self._since.setdefault(deployment, self._clock())
        left = most - (self._clock() - since)
        wait = min(left, _RECHECK_SECONDS) if busy and left > 0 else 0.0
        if wait == 0:
            self._since.pop(deployment, None)
        return wait

"""Looking again and again until what is waited for is there: the one wait loop of the cloud, the command line and simulation.

Two kinds of code wait otherwise, and say so. Devices and the stand-ins wait for events of their own process. The round's
functions (`fedgrass.cloud.ending`, `fedgrass.protocol`) run without tenacity: their archive has pydantic and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def poll(
    look: Callable[[], T],
    done: Callable[[T], bool],
    *,
    until: Callable[[], float],
    pause: float = 1.0,
    growth: float = 1.0,
    most: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Look until what is found will do, or the time is up.

    Parameters
    ----------
    look
        Finds something; called once at least, and its errors are not caught.
    done
        Whether that is what was waited for.
    until
        When to give up, in seconds of ``clock``: asked after each look, for what is found may change it.
    pause, growth, most
        Seconds between the first two looks, what each pause is times the one before, and the longest, in seconds.
    sleep, clock
        Wait so many seconds, and tell seconds that only go forward.

    Returns
    -------
    T
        What the last look found: ``done`` tells whether it came in time.
    """
    # Not above: the shared parts can be imported where tenacity is not installed.
    from tenacity import Retrying, retry_if_result, wait_exponential

    looking = Retrying(
        retry=retry_if_result(lambda found: not done(found)),
        wait=wait_exponential(multiplier=pause, exp_base=growth, max=max(pause, most)),
        stop=lambda _: clock() >= until(),
        sleep=sleep,
        # Out of time is no error here: who waits knows what to say of it.
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else look(),
    )
    return looking(look)

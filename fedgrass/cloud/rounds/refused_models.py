"""Act on a model that the fleet refuses: take it back, and count that for the alarm."""

from __future__ import annotations

from fedgrass.cloud.ending.withdrawal import put_back_over, take_back_refused
from fedgrass.cloud.rounds.metrics import measure
from fedgrass.cloud.rounds.services import Services
from fedgrass.logs import log_event


def act_on_refusals(services: Services, past_the_state: str = "") -> None:
    """Take the fleet's model back if too many devices refuse it; safe to repeat.

    Parameters
    ----------
    past_the_state
        A version that a device refuses and no round made: it may have been deployed without the fleet's state.
    """
    now = services.now().timestamp() * 1000
    # The fleet's own model first; only if that is not it, one that was deployed past the state.
    again = take_back_refused(services.place, services.devices, now)
    if again is None and past_the_state:
        again = put_back_over(services.place, services.devices, past_the_state, now)
    if again is not None:
        log_event("model_put_back", fleet=services.fleet, version=again)
        measure(services, {"ModelsTakenBack": 1})

"""A fleet's devices as strategies see them: a grid's nodes, and a client manager's clients. Nothing can be sent to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fedgrass.engines.flower_node import Node
from fedgrass.errors import ConfigurationError
from fedgrass.polling import poll
from fedgrass.strategies.arithmetic.flower_trees import Client

# Seconds between two looks at the fleet, each of which reads its whole table of devices.
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class FleetGrid:
    """A ``flwr.serverapp.Grid`` as far as strategies choose from it.

    Parameters
    ----------
    able
        Return the names of the devices that could take part now.
    run
        What Flower knows of the run.
    """

    able: Callable[[], Sequence[str]]
    run: Any = None

    def get_node_ids(self) -> list[int]:
        """Return the devices' ids: an app finds its own as ``context.node_id``."""
        return [Node(thing).number for thing in self.able()]

    def push_messages(self, messages: Iterable[Any]) -> NoReturn:
        """Refuse: see `send_and_receive`."""
        self.send_and_receive(messages)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> NoReturn:
        """Refuse: devices are reached by a strategy's rounds alone.

        Raises
        ------
        ConfigurationError
            Naming the kind of message.
        """
        del timeout
        kinds = ", ".join(sorted({str(one.metadata.message_type) for one in messages})) or "none"
        raise ConfigurationError(
            f"server app: it sends messages itself (of kind {kinds}); on a fleet only the rounds of a strategy's start() have a "
            "counterpart. Run it in simulation (without --fleet), or leave them out"
        )


@dataclass(frozen=True)
class FleetManager:
    """A ``flwr.server.ClientManager`` as far as strategies choose from it; `sample` waits for devices, as Flower's does."""

    able: Callable[[], Sequence[str]]
    sleep: Callable[[float], None] = time.sleep

    def num_available(self) -> int:
        """Return how many there are."""
        return len(self.able())

    def __len__(self) -> int:
        return self.num_available()

    def all(self) -> dict[str, Client]:
        """Return them by name."""
        return {thing: Client(thing) for thing in self.able()}

    def wait_for(self, num_clients: int, timeout: int = 86_400) -> bool:
        """Wait until there are so many, for at most so many seconds."""
        until = time.monotonic() + timeout
        found = poll(
            self.num_available,
            lambda there: there >= num_clients,
            until=lambda: until,
            pause=_LOOK_SECONDS,
            sleep=self.sleep,
        )
        return found >= num_clients

    def sample(self, num_clients: int, min_num_clients: int | None = None, criterion: Any = None) -> list[Client]:
        """Return as many as are wanted, when there are enough.

        Raises
        ------
        ConfigurationError
            If the strategy has a criterion: the fleet draws its cohort.
        """
        if criterion is not None:
            raise ConfigurationError(
                "strategy: a criterion by which it chooses clients has no counterpart; use cohort.where (fedgrass fleet settings)"
            )
        self.wait_for(num_clients if min_num_clients is None else min_num_clients)
        # Which of them is not ours to say: the fleet draws its cohort, and only the number counts.
        found = self.able()
        return [Client(thing) for thing in found[:num_clients]] if num_clients <= len(found) else []

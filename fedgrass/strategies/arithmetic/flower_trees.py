"""Flower's two trees of strategies, each told of a round in its own types.

``flwr.server.strategy`` takes `FitRes` from client proxies, ``flwr.serverapp.strategy`` replies to messages:
https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.html. Both choose clients and hold on to the model in
``configure_…`` before they aggregate, so it is called with the base; who is chosen there does not matter, for the round is over.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedgrass.bundle import Parameters
from fedgrass.strategies.arithmetic.flower_options import with_wrapped
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.tensors import Array

Local = tuple[UpdateMetadata, Sequence[Array]]
"""What a device sent: what is known of it, and its parameters in the model's order."""

# Flower's own default for the fewest nodes.
_ENOUGH = 2


@dataclass(frozen=True)
class Finished:
    """A round's end, as a strategy is told of it. ``failures`` say why devices failed or were refused."""

    number: int
    base: Parameters
    results: Sequence[Local]
    failures: Sequence[str] = ()


class Tree(Protocol):
    """How strategies of one tree are told of a round."""

    def initial(self, base: Parameters) -> Any:
        """Return the base as a constructor takes it."""
        ...

    def aggregate(self, strategy: Any, finished: Finished) -> Sequence[Array] | None:
        """Return the new parameters in the base's order; None if the strategy makes nothing of it."""
        ...


def tree_of(kind: type[Any]) -> Tree:
    """Return the tree that a strategy's class belongs to."""
    return ResultTree() if hasattr(kind, "aggregate_fit") else MessageTree()


@dataclass(frozen=True)
class ResultTree:
    """``flwr.server.strategy``."""

    types: Any = field(repr=False, default_factory=lambda: importlib.import_module("flwr.common"))

    def initial(self, base: Parameters) -> Any:
        """Return Flower's `Parameters`."""
        return self.types.ndarrays_to_parameters(list(base.values()))

    def aggregate(self, strategy: Any, finished: Finished) -> Sequence[Array] | None:
        """Call ``configure_fit`` and ``aggregate_fit``."""
        ok = self.types.Status(code=self.types.Code.OK, message="")
        results = []
        for facts, arrays in finished.results:
            parameters = self.types.ndarrays_to_parameters(list(arrays))
            fit = self.types.FitRes(
                status=ok, parameters=parameters, num_examples=facts.num_examples, metrics=dict(facts.metrics)
            )
            results.append((Client(facts.thing), fit))
        if hasattr(strategy, "configure_fit"):
            # Strategies remember the model here (`current_weights`, `pre_weights`); the return value is of no use.
            strategy.configure_fit(finished.number, self.initial(finished.base), Clients([one for one, _ in results]))
        failures: list[BaseException] = [RuntimeError(reason) for reason in finished.failures]
        combined, _ = strategy.aggregate_fit(finished.number, results, failures)
        if combined is None:
            return None
        found: Sequence[Array] = self.types.parameters_to_ndarrays(combined)
        return found


@dataclass(frozen=True)
class MessageTree:
    """``flwr.serverapp.strategy``."""

    types: Any = field(repr=False, default_factory=lambda: importlib.import_module("flwr.app"))

    def initial(self, base: Parameters) -> Any:
        """Return nothing: these strategies are given the model with each round."""
        del base

    def aggregate(self, strategy: Any, finished: Finished) -> Sequence[Array] | None:
        """Call ``configure_train`` and ``aggregate_train``."""
        identify()
        count = len(finished.results) + len(finished.failures)
        nodes = max(count, _ENOUGH, *(_least(one) for one in with_wrapped(strategy)))
        grid = Nodes(list(range(1, nodes + 1)))
        arrays = self._record(list(finished.base), list(finished.base.values()))
        # It may be a generator, of which nothing would run without the list.
        list(strategy.configure_train(finished.number, arrays, self.types.ConfigRecord({}), grid))
        weighted_by = next(
            (one.weighted_by_key for one in with_wrapped(strategy) if hasattr(one, "weighted_by_key")), "num-examples"
        )
        combined, _ = strategy.aggregate_train(finished.number, self._replies(finished, weighted_by))
        return None if combined is None else [combined[name].numpy() for name in finished.base]

    def _replies(self, finished: Finished, weighted_by: str) -> list[Any]:
        # Flower refuses replies whose metrics differ in their names.
        common = set.intersection(*(set(facts.metrics) for facts, _ in finished.results)) if finished.results else set()
        replies = []
        for number, (facts, arrays) in enumerate(finished.results, 1):
            figures = {name: float(facts.metrics[name]) for name in sorted(common)} | {weighted_by: facts.num_examples}
            content = {
                "arrays": self._record(list(finished.base), arrays),
                "metrics": self.types.MetricRecord(figures),
            }
            replies.append(self.types.Message(self.types.RecordDict(content), reply_to=self._asked(number)))
        for number, reason in enumerate(finished.failures, len(replies) + 1):
            error = self.types.Error(code=_FAILED, reason=reason)
            replies.append(self.types.Message(error, reply_to=self._asked(number)))
        return replies

    def _asked(self, node: int) -> Any:
        return self.types.Message(self.types.RecordDict(), dst_node_id=node, message_type="train")

    def _record(self, names: Sequence[str], arrays: Sequence[Array]) -> Any:
        return self.types.ArrayRecord(
            {name: self.types.Array(array) for name, array in zip(names, arrays, strict=True)}
        )


_FAILED = 3  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


@dataclass(frozen=True)
class Client:
    """What strategies may know of a client."""

    cid: str


@dataclass(frozen=True)
class Clients:
    """Those of a round that is over, as a client manager: whoever is asked for is there."""

    those: Sequence[Client]

    def num_available(self) -> int:
        """Return how many there are."""
        return len(self.those)

    def all(self) -> Mapping[str, Client]:
        """Return them by name."""
        return {one.cid: one for one in self.those}

    def sample(self, num_clients: int, min_num_clients: int | None = None, criterion: Any = None) -> list[Client]:
        """Return as many as there are, at most ``num_clients``."""
        del min_num_clients, criterion
        return list(self.those[:num_clients])

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        """Return at once: nobody comes after the round's end."""
        del timeout
        return num_clients <= len(self.those)


@dataclass(frozen=True)
class Nodes:
    """A grid as far as strategies choose from it."""

    ids: Sequence[int]

    def get_node_ids(self) -> Sequence[int]:
        """Return them."""
        return self.ids


def identify(*, run: int = 1, node: int = 1) -> None:
    """Say who makes messages in this process, where Flower has not."""
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, run, node


def _least(strategy: Any) -> int:
    """Return how many nodes it waits for."""
    return max(
        (value for name, value in vars(strategy).items() if name.startswith("min_") and isinstance(value, int)),
        default=0,
    )

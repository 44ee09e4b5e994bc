"""Strategies of ``flwr.serverapp.strategy``, asked and told by messages, as their own ``start`` does it.

https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.Strategy.html
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedgrass.bundle import Parameters
from fedgrass.cloud.flower.asked import Answers, Asked, Figures, Found
from fedgrass.cloud.flower.nodes import FleetGrid
from fedgrass.errors import ConfigurationError
from fedgrass.strategies.arithmetic import flower_options
from fedgrass.strategies.arithmetic.flower_trees import identify

_FAILED = 3  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
_EXAMPLES = "num-examples"


@dataclass
class MessageApp:
    """What ``strategy.start`` was called with."""

    strategy: Any
    grid: FleetGrid
    initial_arrays: Any
    rounds: int
    seconds: float | None
    train_config: Mapping[str, Any]
    evaluate_config: Mapping[str, Any]
    evaluate_fn: Callable[[int, Any], Any] | None
    types: Any = field(repr=False, default_factory=lambda: importlib.import_module("flwr.app"))

    def __post_init__(self) -> None:
        identify()  # a strategy makes messages

    def initial(self) -> Parameters:
        """Return ``initial_arrays``."""
        return {name: array.numpy() for name, array in self.initial_arrays.items()}

    def train(self, number: int, parameters: Parameters) -> Asked | None:
        """Call ``configure_train``."""
        arrays, config = self._record(parameters), self.types.ConfigRecord(dict(self.train_config))
        return self._asked(self.strategy.configure_train(number, arrays, config, self.grid), arrays)

    def evaluate(self, number: int, parameters: Parameters) -> Asked | None:
        """Call ``configure_evaluate``."""
        arrays, config = self._record(parameters), self.types.ConfigRecord(dict(self.evaluate_config))
        return self._asked(self.strategy.configure_evaluate(number, arrays, config, self.grid), arrays)

    def trained(self, number: int, answers: Answers) -> Figures | None:
        """Call ``train_metrics_aggr_fn``."""
        del number
        # A wrapper leaves the figures to the strategy that it wraps.
        found = [getattr(one, "train_metrics_aggr_fn", None) for one in flower_options.with_wrapped(self.strategy)]
        function = next((one for one in found if one is not None), None)
        if function is None or not answers.reported:
            return None
        contents = [reply.content for reply in self._replies(Answers(answers.reported), "train")]
        return _figures(function(contents, _EXAMPLES))

    def evaluated(self, number: int, answers: Answers) -> Figures | None:
        """Call ``aggregate_evaluate``."""
        return _figures(self.strategy.aggregate_evaluate(number, self._replies(answers, "evaluate")))

    def judged(self, number: int, parameters: Parameters) -> Figures | None:
        """Call ``evaluate_fn``."""
        return None if self.evaluate_fn is None else _figures(self.evaluate_fn(number, self._record(parameters)))

    def result(self, found: Found) -> Any:
        """Return what ``start`` returns."""
        result = importlib.import_module("flwr.serverapp.strategy").Result()
        result.arrays = self._record(found.parameters)
        for target, figures in (
            (result.train_metrics_clientapp, found.trained),
            (result.evaluate_metrics_clientapp, found.evaluated),
            (result.evaluate_metrics_serverapp, found.judged),
        ):
            target.update({number: self.types.MetricRecord(dict(one)) for number, one in figures.items()})
        return result

    def _asked(self, messages: Iterable[Any], arrays: Any) -> Asked | None:
        contents = [message.content for message in messages]
        if not contents:
            return None
        configs = [dict(next(iter(one.config_records.values()), {})) for one in contents]
        if any(config != configs[0] for config in configs):
            raise ConfigurationError(
                f"strategy {type(self.strategy).__name__}: configures devices differently; a round of a fleet has one "
                "configuration for all"
            )
        for content in contents:
            records = list(content.array_records.values())
            # The same object first: comparing whole models is slow.
            if len(records) != 1 or (records[0] is not arrays and records[0] != arrays):
                raise ConfigurationError(
                    f"strategy {type(self.strategy).__name__}: sends devices other arrays than the model; a fleet's devices get "
                    "the model alone"
                )
        return Asked(len(contents), {key: value for key, value in configs[0].items() if key != "server-round"})

    def _replies(self, answers: Answers, kind: str) -> list[Any]:
        # Flower aggregates figures that all replies have, and refuses replies that differ in their names.
        shared = set.intersection(*(set(one.metrics) for one in answers.reported)) if answers.reported else set()
        replies = []
        for number, one in enumerate(answers.reported, 1):
            figures = {name: float(one.metrics[name]) for name in sorted(shared)} | {_EXAMPLES: one.num_examples}
            content = self.types.RecordDict({"metrics": self.types.MetricRecord(figures)})
            replies.append(self.types.Message(content, reply_to=self._sent(number, kind)))
        for number, reason in enumerate(answers.failures, len(replies) + 1):
            error = self.types.Error(code=_FAILED, reason=reason)
            replies.append(self.types.Message(error, reply_to=self._sent(number, kind)))
        return replies

    def _sent(self, node: int, kind: str) -> Any:
        return self.types.Message(self.types.RecordDict(), dst_node_id=node, message_type=kind)

    def _record(self, parameters: Parameters) -> Any:
        return self.types.ArrayRecord({name: self.types.Array(value) for name, value in parameters.items()})


def _figures(record: Any) -> Figures | None:
    return None if record is None else dict(record)

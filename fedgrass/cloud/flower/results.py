"""Strategies of ``flwr.server.strategy``, asked and told as ``flwr.server.Server`` does it.

https://flower.ai/docs/framework/ref-api/flwr.server.strategy.Strategy.html
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from fedgrass.bundle import Parameters
from fedgrass.cloud.flower.asked import Answers, Asked, Figures, Found
from fedgrass.cloud.flower.nodes import FleetManager
from fedgrass.errors import ConfigurationError
from fedgrass.strategies.arithmetic import flower_options
from fedgrass.strategies.arithmetic.flower_trees import Client


@dataclass
class ResultApp:
    """What a ``ServerApp`` without ``@app.main()`` consists of."""

    strategy: Any
    manager: FleetManager
    rounds: int
    seconds: float | None
    types: Any = field(repr=False, default_factory=lambda: importlib.import_module("flwr.common"))

    def initial(self) -> Parameters:
        """Call ``initialize_parameters``."""
        found = self.strategy.initialize_parameters(self.manager)
        if found is None:
            raise ConfigurationError(
                f"strategy {type(self.strategy).__name__}: has no initial_parameters. Flower would ask a client for them, which "
                "has no counterpart on a fleet: give them to the strategy"
            )
        arrays = self.types.parameters_to_ndarrays(found)
        # Names that sort as the arrays are ordered: Flower's lists have none.
        return {f"{number:04d}": array for number, array in enumerate(arrays)}

    def train(self, number: int, parameters: Parameters) -> Asked | None:
        """Call ``configure_fit``."""
        given = self._parameters(parameters)
        return self._asked(self.strategy.configure_fit(number, given, self.manager), given)

    def evaluate(self, number: int, parameters: Parameters) -> Asked | None:
        """Call ``configure_evaluate``."""
        given = self._parameters(parameters)
        return self._asked(self.strategy.configure_evaluate(number, given, self.manager), given)

    def trained(self, number: int, answers: Answers) -> Figures | None:
        """Call ``fit_metrics_aggregation_fn``."""
        del number
        for one in flower_options.with_wrapped(self.strategy):
            function = getattr(one, "fit_metrics_aggregation_fn", None)
            if function is not None:
                return dict(function([(part.num_examples, dict(part.metrics)) for part in answers.reported]))
        return None

    def evaluated(self, number: int, answers: Answers) -> Figures | None:
        """Call ``aggregate_evaluate``."""
        ok = self.types.Status(code=self.types.Code.OK, message="")
        results = [
            (
                Client(part.thing),
                self.types.EvaluateRes(
                    status=ok,
                    loss=float(part.metrics.get("loss", 0.0)),
                    num_examples=part.num_examples,
                    metrics=dict(part.metrics),
                ),
            )
            for part in answers.reported
        ]
        failures: list[BaseException] = [RuntimeError(reason) for reason in answers.failures]
        loss, metrics = self.strategy.aggregate_evaluate(number, results, failures)
        return None if loss is None else {**metrics, "loss": loss}

    def judged(self, number: int, parameters: Parameters) -> Figures | None:
        """Call ``evaluate``."""
        found = self.strategy.evaluate(number, self._parameters(parameters))
        return None if found is None else {**found[1], "loss": found[0]}

    def result(self, found: Found) -> Any:
        """Return what ``start_grid`` returns."""
        history = importlib.import_module("flwr.server").History()
        for number, figures in found.trained.items():
            history.add_metrics_distributed_fit(number, dict(figures))
        for number, figures in found.evaluated.items():
            history.add_loss_distributed(number, figures["loss"])
            history.add_metrics_distributed(number, dict(figures))
        for number, figures in found.judged.items():
            history.add_loss_centralized(number, figures["loss"])
            history.add_metrics_centralized(number, dict(figures))
        return history

    def _parameters(self, parameters: Parameters) -> Any:
        return self.types.ndarrays_to_parameters(list(parameters.values()))

    def _asked(self, instructions: Any, given: Any) -> Asked | None:
        asked = [instruction for _, instruction in instructions or ()]
        if not asked:
            return None
        if any(one.config != asked[0].config for one in asked):
            raise ConfigurationError(
                f"strategy {type(self.strategy).__name__}: configures devices differently; a round of a fleet has one "
                "configuration for all"
            )
        if any(one.parameters is not given and one.parameters != given for one in asked):
            raise ConfigurationError(
                f"strategy {type(self.strategy).__name__}: sends devices other parameters than the model; a fleet's devices get "
                "the model alone"
            )
        return Asked(len(asked), dict(asked[0].config))

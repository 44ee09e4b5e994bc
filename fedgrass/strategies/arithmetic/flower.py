"""Any Flower strategy, fed Flower's own types.

Classes of `flwr.server.strategy.Strategy` are asked for ``aggregate_fit``: https://flower.ai/docs/framework/ref-api/flwr.server.strategy.html.
They hold all results at once: memory grows with the number of updates. A model's statistics are averaged, whatever they do with
them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedgrass.errors import AggregationError, ConfigurationError
from fedgrass.strategies.arithmetic.interfaces import UpdateMatrix
from fedgrass.strategies.arithmetic.statistics import Statistics
from fedgrass.strategies.base import Method, RobustRule, Strategy
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class FlowerStrategy(Strategy):
    """A strategy of Flower's; its options are the constructor's arguments."""

    needs_all = True

    wrapped: Any = None

    @classmethod
    def wrapping(cls, name: str, kind: type[Any], options: Mapping[str, Any]) -> FlowerStrategy:
        """Make a Flower strategy, and wrap it.

        Parameters
        ----------
        name
            Name in the fleet's settings.
        kind
            The Flower strategy's class.
        options
            Arguments of its constructor.

        Returns
        -------
        FlowerStrategy
            The wrapped strategy.

        Raises
        ------
        ConfigurationError
            If the class does not take the options.
        """
        try:
            return cls(dict(options), name, wrapped=kind(**options))
        except TypeError as error:
            raise ConfigurationError(f"strategy {name!r}: cannot be made with {dict(options)} ({error})") from error

    def build(self) -> Method:
        """Return the adapter."""
        return RobustRule(FlowerRule(self.name, self.wrapped))


@dataclass(frozen=True)
class FlowerRule:
    """Adapter of an object with Flower's ``aggregate_fit``."""

    name: str
    strategy: Any
    types: Any = field(repr=False, default_factory=lambda: importlib.import_module("flwr.common"))

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the difference between the base and what ``aggregate_fit`` makes of the devices' parameters."""
        base = list(rows.base.parameters().values())
        ends = np.cumsum([values.size for values in base])
        deltas = np.concatenate([rows.read(columns) for columns in rows.tiles()], axis=1)
        ok = self.types.Status(code=self.types.Code.OK, message="")
        results = []
        for facts, delta in zip(rows.facts, deltas, strict=True):
            pieces = np.split(delta, ends[:-1])
            local = [(b + d.reshape(b.shape)).astype(b.dtype) for b, d in zip(base, pieces, strict=True)]
            parameters = self.types.ndarrays_to_parameters(local)
            fit = self.types.FitRes(
                status=ok, parameters=parameters, num_examples=facts.num_examples, metrics=dict(facts.metrics)
            )
            results.append((_Client(facts.thing), fit))
        combined, _ = self.strategy.aggregate_fit(1, results, [])
        if combined is None:
            raise AggregationError(f"strategy {self.name!r}: made nothing of {len(results)} updates")
        found = self.types.parameters_to_ndarrays(combined)
        if [values.shape for values in found] != [values.shape for values in base]:
            raise AggregationError(f"strategy {self.name!r}: the parameters it gave have other shapes than the model's")
        examples = [facts.num_examples for facts in rows.facts]
        with np.errstate(all="ignore"):  # a result that is not finite is caught where the model is written
            out[...] = np.concatenate(
                [(new.astype(np.float64) - old).ravel() for new, old in zip(found, base, strict=True)]
            )
            for span in Statistics.of(rows.base.manifest).spans:  # what Flower's server optimizers step too
                out[span] = np.average(deltas[:, span].astype(np.float64), axis=0, weights=examples)
        return [1 / len(results)] * len(results)


@dataclass(frozen=True)
class _Client:
    """What strategies may know of a client."""

    cid: str

"""Any Flower strategy, fed Flower's own types.

They hold all results at once: memory grows with the number of updates. A model's statistics are averaged, whatever they do with
them. A strategy is made for each round, with the model that the round starts from and what it kept of the last round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedgrass.errors import AggregationError, DeclinedError, FedgrassError
from fedgrass.personal import shared_of
from fedgrass.strategies.arithmetic import flower_options, flower_state
from fedgrass.strategies.arithmetic.flower_trees import Finished, Tree, tree_of
from fedgrass.strategies.arithmetic.interfaces import Continued, State, UpdateMatrix
from fedgrass.strategies.arithmetic.statistics import Statistics
from fedgrass.strategies.base import Method, RobustRule, Strategy
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class FlowerStrategy(Strategy):
    """A strategy of Flower's; its options are the constructor's arguments."""

    needs_all = True
    keeps_state = True

    kind: type[Any] = object

    @classmethod
    def wrapping(cls, name: str, kind: type[Any], options: Mapping[str, Any]) -> FlowerStrategy:
        """Wrap a Flower strategy, once it is known that it can be made.

        Parameters
        ----------
        name
            Name in the fleet's settings.
        kind
            The Flower strategy's class.
        options
            Arguments of its constructor, as `flower_options.made` takes them.

        Returns
        -------
        FlowerStrategy
            The wrapped strategy.

        Raises
        ------
        ConfigurationError
            If the class does not take the options, or has a part that a fleet's rounds would ignore.
        """
        flower_options.check(name, kind, options)
        flower_options.made(name, kind, options, tree_of(kind).initial({"0": np.zeros(1, np.float32)}))
        return cls(dict(options), name, kind=kind)

    def build(self) -> Method:
        """Return the adapter."""
        return RobustRule(FlowerRule(self.name, self.kind, self.options))


@dataclass
class FlowerRule(Continued):
    """Adapter of a class of Flower's; what it keeps of a round is in ``state``."""

    name: str
    kind: type[Any]
    options: Mapping[str, Any]
    round: int = 1
    failures: Sequence[str] = ()
    state: State = field(default_factory=dict)

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the difference between the base and what the strategy makes of the devices' parameters."""
        base = dict(shared_of(rows.base.manifest, rows.base.parameters()))
        values = list(base.values())
        ends = np.cumsum([value.size for value in values])
        # All at once: Flower's strategies take lists of whole models.
        deltas = np.concatenate([rows.read(columns) for columns in rows.tiles()], axis=1)
        results = []
        for facts, delta in zip(rows.facts, deltas, strict=True):
            pieces = np.split(delta, ends[:-1])
            # Flower's clients send parameters, ours differences.
            local = [(b + d.reshape(b.shape)).astype(b.dtype) for b, d in zip(values, pieces, strict=True)]
            results.append((facts, local))
        found = self._aggregated(Finished(self.round, base, results, self.failures))
        if [value.shape for value in found] != [value.shape for value in values]:
            raise AggregationError(f"strategy {self.name!r}: the parameters it gave have other shapes than the model's")
        examples = [facts.num_examples for facts in rows.facts]
        with np.errstate(all="ignore"):  # a result that is not finite is caught where the model is written
            out[...] = np.concatenate(
                [(new.astype(np.float64) - old).ravel() for new, old in zip(found, values, strict=True)]
            )
            for span in Statistics.of(rows.base.manifest).spans:  # what Flower's server optimizers step too
                out[span] = np.average(deltas[:, span].astype(np.float64), axis=0, weights=examples)
        return [1 / len(results)] * len(results)

    def _aggregated(self, finished: Finished) -> Sequence[Array]:
        tree: Tree = tree_of(self.kind)
        strategy = flower_options.made(self.name, self.kind, self.options, tree.initial(finished.base))
        # Before anything is restored: what differs from this at the end is what the strategy keeps.
        made = flower_state.attributes(strategy)
        flower_state.restore(strategy, self.state, name=self.name)
        try:
            found = tree.aggregate(strategy, finished)
        except FedgrassError:
            raise
        except Exception as error:
            raise AggregationError(
                f"strategy {self.name!r}: failed on {len(finished.results)} updates ({type(error).__name__}: {error})"
            ) from error
        if found is None:
            failed = f" and {len(finished.failures)} failures" if finished.failures else ""
            raise DeclinedError(f"strategy {self.name!r}: made nothing of {len(finished.results)} updates{failed}")
        self.state = flower_state.kept(strategy, made, name=self.name)
        return found

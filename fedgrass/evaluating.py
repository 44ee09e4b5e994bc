"""How one device judges a model: by the examples that it keeps back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedgrass.answer import Answer
from fedgrass.bundle import Parameters
from fedgrass.data import Split
from fedgrass.engines.base import Engine, Measured, Metrics
from fedgrass.errors import DataError, EngineError
from fedgrass.own_code import own_code
from fedgrass.protocol.message import LONGEST_METRIC, MOST_METRICS
from fedgrass.protocol.metrics import others


@dataclass(frozen=True)
class Evaluated:
    """How a model does on the examples that a device keeps back."""

    num_examples: int
    metrics: Metrics
    sums: str | None = None
    base_sums: str | None = None

    @property
    def answer(self) -> Answer:
        """What the cloud is told."""
        return Answer(
            "evaluated",
            num_examples=self.num_examples,
            metrics=self.metrics,
            sums=self.sums,
            base_sums=self.base_sums,
        )


def evaluate(engine: Engine, data: Split, compare: Parameters | None = None) -> Evaluated:
    """Evaluate the engine's model, and another one on the same examples.

    Parameters
    ----------
    engine
        Holds the parameters to evaluate; afterwards those of ``compare``.
    data
        The device's examples, of which those kept back for validation are used.
    compare
        Other parameters of the model, whose figures begin with ``base_``.

    Returns
    -------
    Evaluated
        The number of examples, and the figures.

    Raises
    ------
    DataError
        If no examples are kept back, or they do not fit the model.
    EngineError
        If the loss is not finite.
    """
    if len(data.validation) == 0:
        raise DataError(
            "no examples are kept back to evaluate on; set validationFraction of com.fedgrass.Runtime's data"
        )
    examples = len(data.validation)
    metrics, sums = _figures(engine, data)
    if compare is None:
        return Evaluated(examples, metrics, sums)
    # The same engine and examples: two engines would take twice the memory.
    engine.set_parameters(compare)
    base, base_sums = _figures(engine, data)
    # A message holds so many figures; those that the cloud makes of the sums itself are not missed.
    # In pairs: a figure of one model alone cannot be compared.
    both = [(name, value) for name, value in metrics.items() if name in base]
    told = [pair for name, value in both for pair in ((name, value), (f"base_{name}", base[name]))]
    return Evaluated(examples, dict(told[:MOST_METRICS]), sums, base_sums)


def _figures(engine: Engine, data: Split) -> tuple[Metrics, str | None]:
    with own_code("evaluating"):
        found = engine.evaluate(data.validation)
    if not math.isfinite(found["loss"]):
        raise EngineError(f"the loss of the evaluated model is {found['loss']}")
    told = {name: found[name] for name in ("loss", "accuracy") if name in found} | others(found)
    own = {n: v for n, v in found.items() if n not in told and n != "examples" and len(n) <= LONGEST_METRIC}
    told |= {name: value for name, value in own.items() if math.isfinite(value)}
    # Loss and accuracy come first, so what is cut off are figures of the user's own.
    told = dict(list(told.items())[:MOST_METRICS])
    sums = found.sums if isinstance(found, Measured) else None
    return told, None if sums is None else sums.encode()

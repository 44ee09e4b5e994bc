"""Made-up models and updates, and the shortest way from them to a result."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass import tensors
from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, Parameters, TensorDescription
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.protocol.check_settings import Checks
from fedgrass.strategies import Strategy, strategy_named
from fedgrass.update.codecs import Floats
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, header

UNBOUNDED = Checks(max_examples_over_median=0, clip_norm_over_median=0)
"""What a test of plain arithmetic wants: no update has a say in another's weight."""


def tiny_model(folder: Path, *sizes: int) -> Bundle:
    """A model of zeros with tensors of these sizes; nothing here trains it."""
    parameters = {f"w{i}": np.zeros(size, np.float32) for i, size in enumerate(sizes)}
    x = TensorDescription(name="x", shape=(1,), dtype="float32")
    return new_bundle(
        folder,
        NewModel(
            engine="keras",
            name="tiny",
            parameters=parameters,
            x=x,
            y=x,
            output=x,
            loss="mean_squared_error",
            batch_size=1,
        ),
    )


def update_of(base: Bundle, thing: str, values: Floats, **changes: Any) -> bytes:
    """An update whose values are these, one after the other."""
    specs = [(p.name, np.dtype("<f4"), p.shape) for p in base.manifest.parameters]
    return tensors.encode_header(specs, header(base, thing, **changes).to_metadata()) + values.tobytes()


def flat(parameters: Parameters) -> Floats:
    return np.concatenate([value.ravel() for value in parameters.values()])


class Memory:
    """Updates in memory, by thing."""

    def __init__(self, contents: dict[str, bytes], claimed: dict[str, int] | None = None) -> None:
        self._contents = contents
        self._claimed = claimed or {}

    def list(self) -> list[UpdateReference]:
        return [
            UpdateReference(thing=thing, key=f"{thing}/update", bytes=self._claimed.get(thing, len(content)))
            for thing, content in self._contents.items()
        ]

    def open(self, reference: UpdateReference) -> io.BytesIO:
        return io.BytesIO(self._contents[reference.thing])


def combine(
    base: Bundle, source: Any, checks: Checks | None = None, strategy: Strategy | None = None, **options: Any
) -> Aggregation:
    expected = Expected(
        base.manifest.parameters_sha256, base.manifest.graph_sha256, FLEET, ROUND, checks=checks or UNBOUNDED
    )
    chosen = strategy or strategy_named("fedavg")
    return aggregate(base, source, source.list(), chosen, expected, AggregationOptions(**options))

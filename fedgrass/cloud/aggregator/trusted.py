"""The operator's own update: what the devices' are compared with by the strategy ``trust``."""

from __future__ import annotations

import numpy as np

from fedgrass.bundle import GRAPH, Bundle
from fedgrass.engines.base import Dataset, Engine, FitSettings
from fedgrass.protocol.messages import FitTask
from fedgrass.update.codecs import Floats


def own_update(base: Bundle, data: Dataset | None, task: FitTask) -> Floats | None:
    """Train a LiteRT model on the operator's examples as the devices train; returns the flat difference.

    Returns
    -------
    Floats or None
        None if there are no examples, or the model is another engine's, which cannot be trained here.
    """
    if data is None or base.manifest.graph_file != GRAPH:
        return None
    from fedgrass.engines.litert import LiteRTEngine  # takes a quarter of a second: only where it is needed

    return trained_difference(LiteRTEngine(base), base, data, task)


def trained_difference(engine: Engine, base: Bundle, data: Dataset, task: FitTask) -> Floats:
    """Train an engine that can hold the base's parameters, and return the flat difference."""
    before = base.parameters()
    engine.set_parameters(before)
    settings = FitSettings(task.epochs, task.learning_rate, task.proximal_mu, task.gradient_clip_norm)
    after = engine.fit(data, settings).parameters
    return np.concatenate([(after[name] - value).ravel() for name, value in before.items()]).astype(np.float32)

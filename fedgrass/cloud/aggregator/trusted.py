"""The operator's own update: what the devices' are compared with by the strategy ``trust``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedgrass.bundle import GRAPH, Bundle
from fedgrass.engines.base import Dataset, Engine, FitSettings
from fedgrass.errors import ConfigurationError
from fedgrass.personal import shared_of
from fedgrass.protocol.messages import FitTask
from fedgrass.strategies import Strategy
from fedgrass.update.codecs import Floats


def own_update(base: Bundle, data: Dataset | None, task: FitTask) -> Floats | None:
    """Train a LiteRT model on the operator's examples as the devices train.

    Parameters
    ----------
    base
        The model.
    data
        The operator's examples; None if there are none.
    task
        How the round's devices train.

    Returns
    -------
    Floats or None
        The difference, flat float32 of all parameters. None if there are no examples, or the model is another
        engine's, which cannot be trained here.
    """
    # Imported and trained only where needed: LiteRT costs memory that a mean does not.
    if data is None or base.manifest.graph_file != GRAPH:
        return None
    from fedgrass.engines.litert import LiteRTEngine  # takes a quarter of a second: only where it is needed

    return trained_difference(LiteRTEngine(base), base, data, task)


def trained_difference(engine: Engine, base: Bundle, data: Dataset, task: FitTask) -> Floats:
    """Train from a base and return the difference.

    Parameters
    ----------
    engine
        Can hold the base's parameters.
    base
        The model.
    data
        The examples.
    task
        How the round's devices train.

    Returns
    -------
    Floats
        Flat float32 of the parameters that updates have, in the manifest's order.

    Raises
    ------
    ConfigurationError
        If devices keep some of the model's parameters for themselves.
    """
    if base.manifest.local_parameters:
        raise ConfigurationError(
            "strategy 'trust': devices keep parameters of this model for themselves, so that nobody else can train as they do; "
            "choose another strategy, such as centered_clipping"
        )
    before = base.parameters()
    engine.set_parameters(before)
    # As a device resolves them: the round's value, or else the one that the model was exported with.
    rate = task.learning_rate or base.manifest.optimizer.rate
    settings = FitSettings(task.epochs, rate, task.proximal_mu, task.gradient_clip_norm, class_weight=task.class_weight)
    after = engine.fit(data, settings).parameters
    # In the manifest's order, as the layout of updates; a model with local parameters was refused above.
    shared = shared_of(base.manifest, before)
    return np.concatenate([(after[name] - value).ravel() for name, value in shared.items()]).astype(np.float32)


def with_own_update(strategy: Strategy, own: Callable[[], Floats | None]) -> Strategy:
    """Return a strategy that needs the operator's own update with it; any other as it is.

    Parameters
    ----------
    own
        Trains it; None if there is nothing to train on.

    Raises
    ------
    ConfigurationError
        If there is nothing.
    """
    if not strategy.needs_own_update:
        return strategy
    update = own()
    if update is None:
        raise ConfigurationError(
            f"strategy {strategy.name!r}: there is no evaluation set for this model. Put one at evaluation/FLEET/data.npz in the "
            "fleet's bucket (for fedgrass aggregate: --evaluation FILE), or choose a rule that needs none, such as "
            "centered_clipping"
        )
    return strategy.with_own_update(update)

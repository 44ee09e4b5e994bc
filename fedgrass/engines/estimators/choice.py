"""Which of scikit-learn's estimators can learn over a fleet, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from fedgrass.bundle import Loss
from fedgrass.engines.estimators.base import Learner, Task
from fedgrass.engines.estimators.chain import Chain, Step
from fedgrass.engines.estimators.counted import Bayes, Clusters, Scaling
from fedgrass.engines.estimators.fitted import Fitted
from fedgrass.engines.estimators.stepped import Linear, Perceptron
from fedgrass.errors import EngineError

_CLASSES: tuple[Loss, ...] = ("sparse_categorical_crossentropy", "binary_crossentropy")
_VALUES: tuple[Loss, ...] = ("mean_squared_error", "mean_absolute_error")

LEARNERS: dict[type, tuple[Callable[[Any, Task], Learner], tuple[Loss, ...]]] = {
    SGDClassifier: (Linear, _CLASSES),
    SGDRegressor: (Linear, (*_VALUES, "huber")),
    MLPClassifier: (Perceptron, _CLASSES),
    MLPRegressor: (Perceptron, ("mean_squared_error",)),
    LogisticRegression: (Fitted, _CLASSES),
    LinearRegression: (Fitted, _VALUES),
    Ridge: (Fitted, _VALUES),
    Lasso: (Fitted, _VALUES),
    ElasticNet: (Fitted, _VALUES),
    GaussianNB: (Bayes, _CLASSES),
    MiniBatchKMeans: (Clusters, ("mean_squared_error",)),
    StandardScaler: (Scaling, ("mean_squared_error",)),
}
"""What trains each, and the losses of bundles that it takes. Exact classes: one derived from these may be fitted otherwise."""


def learner_for(model: Any, task: Task, loss: Loss | None = None) -> Learner:
    """Return what trains an estimator.

    Parameters
    ----------
    model
        The estimator, or a pipeline.
    task
        Sizes of the data, and the optimizer.
    loss
        The bundle's; None: not known yet.

    Raises
    ------
    EngineError
        If it cannot be trained over a fleet, or not for this loss; the message says what can.
    """
    if isinstance(model, Pipeline):
        return _chain(model, task, loss)
    # Not isinstance: a subclass may override how it is fitted.
    if type(model) not in LEARNERS:
        known = ", ".join(kind.__name__ for kind in LEARNERS)
        raise EngineError(
            f"gave {type(model).__name__}; expected {known.replace('SGDClassifier', 'SGDClassifier (log_loss)')} "
            "or a Pipeline of a StandardScaler and one of them"
        )
    made, losses = LEARNERS[type(model)]
    if loss not in (None, *losses):
        raise EngineError(f"{type(model).__name__} cannot train {loss}; it takes {', '.join(losses)}")
    return made(model, task)


def _chain(model: Pipeline, task: Task, loss: Loss | None) -> Learner:
    steps: list[Step] = []
    # One row of zeros is sent through the steps, to learn how many features each of them leaves.
    x = np.zeros((1, task.features))
    for name, step in model.steps[:-1]:
        if step is None or isinstance(step, str):  # passthrough
            continue
        made = _transformer(name, step, x.shape[1], [earlier for _, earlier in steps])
        x = np.asarray(made.transform(x), np.float64)
        steps.append((name, made))
    last_name, last = model.steps[-1]
    learner = learner_for(last, replace(task, features=x.shape[1]), loss)
    # Without targets it would have to give back x as it was before the other steps changed it.
    if isinstance(learner, Chain) or learner.reconstructs:
        raise EngineError(
            f"its last step {last_name!r} ({learner.kind}) cannot follow others; give a classifier or a regressor"
        )
    return Chain(model, task, steps, (last_name, learner))


def _transformer(name: str, step: Any, features: int, earlier: list[Any]) -> Any:
    fitted = hasattr(step, "n_features_in_")
    if type(step) is StandardScaler and not fitted:
        if any(isinstance(one, Scaling) for one in earlier):
            raise EngineError(f"its step {name!r} is a second StandardScaler; a fleet measures one")
        return Scaling(step, Task(features, 0, 0))
    # Fitted on local data, its columns would mean something else on each device, and their coefficients could not be
    # averaged.
    if not fitted and step.__sklearn_tags__().requires_fit:
        raise EngineError(
            f"its step {name!r} ({type(step).__name__}) would be fitted otherwise on each device; give a StandardScaler, which "
            "the fleet measures, or a transformer that is fitted already"
        )
    return step

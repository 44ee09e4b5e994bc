"""Linear models that are fitted to all of a device's data at once, and whose coefficients are averaged.

LogisticRegression with any of its solvers, LinearRegression, Ridge, Lasso, ElasticNet. An epoch is one ``fit``, which begins
at the present coefficients where the solver can (``warm_start``); ``max_iter``, ``tol`` and the penalty are the builder's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.estimators.base import Learner, Task, refuse_terms
from fedgrass.errors import EngineError
from fedgrass.tensors import Array

_LEAST_WEIGHT = 1e-12
"""Weight of an example that stands for a class of which a device has none. Not 0: liblinear leaves such ones out."""


class Fitted(Learner):
    """An estimator with ``coef_`` and ``intercept_``."""

    whole = True

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(model, task)
        self._classifier = isinstance(model, LogisticRegression)
        if self._classifier and model.solver == "liblinear" and task.classes > 2:
            raise EngineError(
                f"LogisticRegression has solver 'liblinear', which tells two classes apart and not {task.classes}; "
                "build it with solver='lbfgs'"
            )
        rows = task.outputs
        if self._classifier:
            # scikit-learn keeps one row of coefficients for two classes.
            rows = 1 if task.classes == 2 else task.classes
        self._rows = rows
        # And for a regressor of one target a vector and a plain number.
        self._flat = not self._classifier and rows == 1
        self.load(
            {"coef": np.zeros(task.features if self._flat else (rows, task.features)), "intercept": np.zeros(rows)}
        )
        # Else each round would start from zeros, and the fleet's coefficients would count for nothing.
        if "warm_start" in model.get_params():
            model.set_params(warm_start=True)

    def arrays(self) -> dict[str, Array]:
        """Return coefficients, as the estimator has them, and one intercept for each output."""
        # With fit_intercept=False a regressor's is the number 0.0, whatever the rows.
        intercept = np.broadcast_to(np.atleast_1d(np.asarray(self.model.intercept_, np.float64)), (self._rows,))
        return {"coef": np.asarray(self.model.coef_, np.float64), "intercept": intercept}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Set the fitted attributes, as scikit-learn documents them."""
        model, intercept = self.model, np.array(arrays["intercept"], np.float64)
        model.coef_ = np.array(arrays["coef"], np.float64)
        model.intercept_ = float(intercept[0]) if self._flat else intercept
        model.n_features_in_ = self.task.features
        if self._classifier:
            model.classes_ = np.arange(self.task.classes)

    def begin(self, settings: FitSettings) -> None:
        """Seed the solver; there is neither learning rate nor optimizer."""
        instead = "use SGDClassifier(loss='log_loss')" if self._classifier else "use SGDRegressor"
        refuse_terms(settings, self.kind, f"{instead}, or leave it out")
        if "random_state" in self.model.get_params():
            self.model.set_params(random_state=settings.seed)

    def step(self, batch: Batch) -> None:
        """Fit to all examples. A classifier knows of all classes, however few of them the device has."""
        x, y, given = batch.x, batch.y, {}
        if self._classifier:
            # scikit-learn would fit fewer rows for a device that lacks a class, which could not be averaged with the
            # others'.
            absent = np.setdiff1d(np.arange(self.task.classes), y)
            weights = np.ones(len(x)) if batch.weights is None else np.asarray(batch.weights, np.float64)
            x, y = np.concatenate([x, np.zeros((len(absent), x.shape[1]))]), np.concatenate([y, absent])
            given = {"sample_weight": np.concatenate([weights, np.full(len(absent), _LEAST_WEIGHT)])}
        with warnings.catch_warnings():
            # To stop before it has converged is what a round with few iterations is for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(x, y, **given)

    def outputs(self, x: Array) -> Array:
        """Return probabilities, or predictions."""
        return np.asarray(self.model.predict_proba(x) if self._classifier else self.model.predict(x))

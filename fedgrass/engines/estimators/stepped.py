"""Estimators that learn batch by batch with ``partial_fit``: SGDClassifier, SGDRegressor, MLPClassifier, MLPRegressor.

scikit-learn gives no gradients, so the proximal term and clipping act on each batch's whole step: the proximal term as its
closed-form operator (Parikh and Boyd 2014, section 6.1), clipping as a bound of ``learning_rate × clip_norm`` for each update
that the estimator makes in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.estimators.base import Learner, Task, refusal
from fedgrass.engines.loop import check_state
from fedgrass.errors import EngineError
from fedgrass.tensors import Array

_NO_STEP = 1e-30
"""A learning rate at which a step changes no parameter."""


class Stepped(Learner):
    """What the linear models and the perceptrons have in common."""

    @property
    def _classifies(self) -> bool:
        return isinstance(self.model, (SGDClassifier, MLPClassifier))

    def begin(self, settings: FitSettings) -> None:
        """Take the present arrays as the proximal term's anchor, and begin with a fresh solver."""
        self._settings = settings
        self._anchor = self._copies()
        self._set_rate(settings.learning_rate)

    def step(self, batch: Batch) -> None:
        """Take the estimator's own step on a batch, clip it, and pull it towards the anchor."""
        before = self._copies()
        given = {} if batch.weights is None else {"sample_weight": batch.weights}
        # A linear model makes one update per example, a perceptron one per batch; bounds and pull scale with that.
        updates = self._updates_of(len(batch.x))
        try:
            self.model.partial_fit(batch.x, batch.y, **given)
        # `sample_weight` came to the perceptrons' partial_fit in scikit-learn 1.7.
        except TypeError as error:
            raise refusal(
                "this scikit-learn's perceptrons take no weights; set fit.class_weight to null, or use 1.7"
            ) from error
        # Clipped before it is pulled: clipping bounds what the data did, as in the engines with gradients.
        self._shorten(before, updates)
        pull = self._settings.learning_rate * self._settings.proximal_mu * updates
        if pull:
            for name, value in self.arrays().items():
                # argmin of ‖w - v‖² / 2 + pull · ‖w - a‖² / 2: stable for any strength, where a plain step would
                # overshoot.
                value[...] = (value + pull * self._anchor[name]) / (1 + pull)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Write into the estimator's own arrays."""
        own = self.arrays()
        for name, value in arrays.items():
            own[name][...] = value

    def outputs(self, x: Array) -> Array:
        """Return probabilities, or predictions."""
        return np.asarray(self.model.predict_proba(x) if self._classifies else self.model.predict(x))

    def _shorten(self, before: Mapping[str, Array], updates: int) -> None:
        if not self._settings.clip_norm:
            return
        arrays = self.arrays()
        length = np.sqrt(sum(float(np.sum((arrays[name] - old) ** 2)) for name, old in before.items()))
        longest = self._settings.learning_rate * self._settings.clip_norm * updates
        if length > longest:
            for name, old in before.items():
                arrays[name][...] = old + (arrays[name] - old) * (longest / length)

    def _copies(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self.arrays().items()}

    def _prime(self) -> None:
        """Bring the estimator's arrays, and a fresh solver, into being by a step that changes nothing."""
        x = np.zeros((1, self.task.features))
        if self._classifies:
            # All classes are named now: later calls may not add any.
            self.model.partial_fit(x, np.zeros(1, int), classes=np.arange(self.task.classes))
        else:
            self.model.partial_fit(x, np.zeros((1, self.task.outputs)) if self.task.outputs > 1 else np.zeros(1))

    def _set_rate(self, rate: float) -> None:
        raise NotImplementedError

    def _updates_of(self, examples: int) -> int:
        raise NotImplementedError


class Linear(Stepped):
    """SGDClassifier(loss="log_loss") and SGDRegressor: an update for each example of a batch."""

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(model, task)
        if isinstance(model, SGDClassifier) and model.loss != "log_loss":
            raise EngineError(f"SGDClassifier has loss {model.loss!r}; build it with loss='log_loss'")
        if model.average:
            raise EngineError(
                f"{self.kind} has average={model.average!r}, whose average would start over with each round; "
                "build it with average=False: the fleet's model is an average already"
            )
        # The round says how long and how fast; the loop has shuffled, by a seed that makes a repeated training the same.
        model.set_params(learning_rate="constant", eta0=_NO_STEP, early_stopping=False, shuffle=False)
        self._prime()

    def arrays(self) -> dict[str, Array]:
        """Return coefficients and intercept."""
        return {"coef": self.model.coef_, "intercept": self.model.intercept_}

    def _set_rate(self, rate: float) -> None:
        self.model.set_params(eta0=rate)

    def _updates_of(self, examples: int) -> int:
        return examples


class Perceptron(Stepped):
    """MLPClassifier and MLPRegressor: an update for each batch, with the bundle's optimizer."""

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(model, task)
        model.set_params(learning_rate="constant", early_stopping=False, shuffle=False)
        self._renew()

    def arrays(self) -> dict[str, Array]:
        """Return each layer's weights and biases."""
        layers = enumerate(zip(self.model.coefs_, self.model.intercepts_, strict=True))
        return {
            f"{kind}/{i}": array for i, pair in layers for kind, array in zip(("coef", "intercept"), pair, strict=True)
        }

    def state(self) -> list[Array]:
        """Return the solver's moments."""
        # Private: scikit-learn offers no other way to keep a solver's moments over a restart.
        solver = self.model._optimizer
        if self.model.solver == "adam":
            return [np.array(solver.t), *map(np.array, solver.ms), *map(np.array, solver.vs)]
        return [np.array(velocity) for velocity in solver.velocities]

    def restore(self, state: Sequence[Array]) -> None:
        """Put the solver's moments back."""
        check_state(state, [value.shape for value in self.state()])
        solver = self.model._optimizer
        if self.model.solver == "adam":
            half = len(solver.ms)
            solver.t, solver.ms, solver.vs = int(state[0]), list(state[1 : 1 + half]), list(state[1 + half :])
        else:
            solver.velocities = list(state)

    def _set_rate(self, rate: float) -> None:
        self._renew()
        solver = self.model._optimizer
        solver.learning_rate_init = solver.learning_rate = rate
        # The step that made the solver has left its trace in the moments and in Adam's counter.
        self.restore([np.zeros_like(value) for value in self.state()])

    def _updates_of(self, examples: int) -> int:
        # partial_fit cuts what it is given into batches of this size, and must see one.
        self.model.batch_size = examples
        return 1

    def _renew(self) -> None:
        optimizer = self.task.optimizer
        self.model.set_params(
            solver="adam" if optimizer.name == "adam" else "sgd",
            momentum=optimizer.momentum if optimizer.name == "momentum" else 0.0,
            nesterovs_momentum=False,
            beta_1=optimizer.beta_1,
            beta_2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            learning_rate_init=_NO_STEP,
            batch_size=1,
        )
        # partial_fit makes a solver only where there is none, and would go on with the old settings.
        self.model.__dict__.pop("_optimizer", None)
        self._prime()

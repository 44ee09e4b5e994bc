"""Training scikit-learn's linear models and perceptrons, batch by batch with ``partial_fit``.

Estimators: SGDClassifier(loss="log_loss"), SGDRegressor, MLPClassifier, MLPRegressor. scikit-learn gives no gradients, so the
proximal term and clipping act on each batch's whole step: the proximal term as its closed-form operator (Parikh and
Boyd 2014, section 6.1), clipping as a bound of ``learning_rate × clip_norm`` for each update that the estimator makes in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedgrass.bundle import Bundle, Manifest, Optimizer, Parameters, check_parameters
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.builders import builder_of
from fedgrass.engines.loop import OutputEngine, check_state
from fedgrass.engines.metrics import losses
from fedgrass.errors import BundleError, EngineError
from fedgrass.tensors import Array

try:
    from sklearn.linear_model import SGDClassifier, SGDRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
except ImportError as error:
    raise EngineError("engine sklearn: scikit-learn is not installed; pip install 'fedgrass[sklearn]'") from error

Builder = str | Callable[[], Any]

_LINEAR = (SGDClassifier, SGDRegressor)
_CLASSIFIERS = (SGDClassifier, MLPClassifier)
_LOSSES = {
    SGDClassifier: ("sparse_categorical_crossentropy", "binary_crossentropy"),
    MLPClassifier: ("sparse_categorical_crossentropy", "binary_crossentropy"),
    SGDRegressor: ("mean_squared_error", "mean_absolute_error", "huber"),
    MLPRegressor: ("mean_squared_error",),
}
_NO_STEP = 1e-30
"""A learning rate at which a step changes no parameter."""


def initial_parameters(builder: Builder, *, features: int, classes: int = 0, outputs: int = 1) -> Parameters:
    """Return the parameters of a fresh estimator for flat inputs of ``features`` values.

    Parameters
    ----------
    classes
        Number of labels of a classifier.
    outputs
        Number of targets of a regressor.
    """
    model = _build(builder)
    _prime(model, features, classes, outputs)
    return {name: np.array(value, np.float32) for name, value in _arrays(model).items()}


class SklearnEngine(OutputEngine):
    """An estimator that holds the bundle's parameters at first.

    Parameters
    ----------
    builder
        Makes the estimator; the learning rate, and the solver of a perceptron, are the round's and the bundle's.
    threads
        Not used: these estimators are bound by memory.
    """

    takes_builder = True

    def __init__(self, bundle: Bundle, *, threads: int = 1, builder: Builder = "") -> None:
        del threads
        super().__init__(bundle)
        self._model = _build(builder)
        manifest = self.manifest
        _require_suitable(self._model, manifest)
        if not isinstance(self._model, _LINEAR):
            _use_optimizer(self._model, manifest.optimizer)
        self._classes = 2 if manifest.loss == "binary_crossentropy" else manifest.output.size
        _prime(self._model, manifest.x.size, self._classes, manifest.output.size)
        found = {name: value.shape for name, value in _arrays(self._model).items()}
        expected = {p.name: p.shape for p in manifest.parameters}
        if found != expected:
            raise BundleError(f"builder {builder!r}: its estimator has {found}, model {manifest.name!r} has {expected}")
        self.set_parameters(bundle.parameters())

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        arrays = _arrays(self._model)
        with np.errstate(over="ignore"):  # becomes infinite, and is told as divergence
            return {p.name: np.array(arrays[p.name], np.float32) for p in self.manifest.parameters}

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        arrays = _arrays(self._model)
        for name, value in check_parameters(parameters, self.manifest).items():
            arrays[name][...] = value

    def _begin(self, settings: FitSettings) -> None:
        self._settings = settings
        self._anchor = _copies(self._model)
        if isinstance(self._model, _LINEAR):
            self._model.set_params(eta0=settings.learning_rate)
            return
        _prime(self._model, self.manifest.x.size, self._classes, self.manifest.output.size)
        solver = self._model._optimizer
        solver.learning_rate_init = solver.learning_rate = settings.learning_rate
        self._set_optimizer_state([np.zeros_like(value) for value in self._optimizer_state()])

    def _step(self, batch: Batch) -> float:
        x, y = self._flat(batch.x), self._targets(batch.y)
        each = losses(self.manifest.loss, self._outputs(batch.x), batch.y)
        loss = float(each.mean() if batch.weights is None else (each * batch.weights).mean())
        before = _copies(self._model)
        updates = len(x)
        if not isinstance(self._model, _LINEAR):
            updates, self._model.batch_size = 1, len(x)
        try:
            self._model.partial_fit(x, y, **({} if batch.weights is None else {"sample_weight": batch.weights}))
        except TypeError as error:
            raise EngineError(
                "engine sklearn: this scikit-learn's perceptrons take no weights; set fit.class_weight to null, or use 1.7"
            ) from error
        except ValueError as error:  # parameters that are no longer finite
            raise self._diverged(str(error)) from error
        self._shorten(before, updates)
        pull = self._settings.learning_rate * self._settings.proximal_mu * updates
        if pull:
            for name, value in _arrays(self._model).items():
                value[...] = (value + pull * self._anchor[name]) / (1 + pull)
        return loss

    def _shorten(self, before: Parameters, updates: int) -> None:
        if not self._settings.clip_norm:
            return
        arrays = _arrays(self._model)
        length = np.sqrt(sum(float(np.sum((arrays[name] - old) ** 2)) for name, old in before.items()))
        longest = self._settings.learning_rate * self._settings.clip_norm * updates
        if length > longest:
            for name, old in before.items():
                arrays[name][...] = old + (arrays[name] - old) * (longest / length)

    def _outputs(self, x: Array) -> Array:
        flat = self._flat(x)
        if self.manifest.loss == "sparse_categorical_crossentropy":
            return np.asarray(self._model.predict_proba(flat))
        if self.manifest.loss == "binary_crossentropy":
            return np.asarray(self._model.predict_proba(flat)[:, 1]).reshape(-1, *self.manifest.output.shape)
        return np.asarray(self._model.predict(flat)).reshape(-1, *self.manifest.output.shape)

    def _flat(self, x: Array) -> Array:
        return np.asarray(x, np.float64).reshape(len(x), -1)

    def _targets(self, y: Array) -> Array:
        if isinstance(self._model, _CLASSIFIERS):
            return np.asarray(y).reshape(len(y)).astype(int)
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        return targets[:, 0] if targets.shape[1] == 1 else targets

    def _optimizer_state(self) -> list[Array]:
        if isinstance(self._model, _LINEAR):
            return []
        solver = self._model._optimizer
        if self._model.solver == "adam":
            return [np.array(solver.t), *map(np.array, solver.ms), *map(np.array, solver.vs)]
        return [np.array(velocity) for velocity in solver.velocities]

    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        check_state(state, [value.shape for value in self._optimizer_state()])
        if isinstance(self._model, _LINEAR):
            return
        solver = self._model._optimizer
        if self._model.solver == "adam":
            half = len(solver.ms)
            solver.t, solver.ms, solver.vs = int(state[0]), list(state[1 : 1 + half]), list(state[1 + half :])
        else:
            solver.velocities = list(state)


def _build(builder: Builder) -> Any:
    model = builder_of("sklearn", builder)()
    if not isinstance(model, (SGDClassifier, SGDRegressor, MLPClassifier, MLPRegressor)):
        raise EngineError(
            f"builder {builder!r}: gave {type(model).__name__}; expected SGDClassifier (log_loss is logistic regression), "
            "SGDRegressor, MLPClassifier or MLPRegressor"
        )
    return model


def _require_suitable(model: Any, manifest: Manifest) -> None:
    kind = type(model).__name__
    allowed = next(losses for known, losses in _LOSSES.items() if isinstance(model, known))
    if manifest.loss not in allowed:
        raise EngineError(
            f"model {manifest.name!r}: {kind} cannot train {manifest.loss}; it takes {', '.join(allowed)}"
        )
    if isinstance(model, SGDClassifier) and model.loss != "log_loss":
        raise EngineError(
            f"model {manifest.name!r}: SGDClassifier has loss {model.loss!r}; build it with loss='log_loss'"
        )


def _use_optimizer(model: Any, optimizer: Optimizer) -> None:
    model.set_params(
        solver="adam" if optimizer.name == "adam" else "sgd",
        momentum=optimizer.momentum if optimizer.name == "momentum" else 0.0,
        nesterovs_momentum=False,
        beta_1=optimizer.beta_1,
        beta_2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        learning_rate="constant",
        shuffle=False,
    )


def _prime(model: Any, features: int, classes: int, outputs: int) -> None:
    """Bring the estimator's arrays, and a fresh solver, into being by a step that changes nothing."""
    x = np.zeros((1, features))
    if isinstance(model, _LINEAR):
        model.set_params(learning_rate="constant", eta0=_NO_STEP)
    else:
        model.set_params(learning_rate_init=_NO_STEP, batch_size=1)
        model.__dict__.pop("_optimizer", None)
    if isinstance(model, _CLASSIFIERS):
        model.partial_fit(x, np.zeros(1, int), classes=np.arange(classes))
    else:
        model.partial_fit(x, np.zeros((1, outputs)) if outputs > 1 else np.zeros(1))


def _arrays(model: Any) -> Parameters:
    """Return the estimator's own arrays by name."""
    if isinstance(model, _LINEAR):
        return {"coef": model.coef_, "intercept": model.intercept_}
    layers = enumerate(zip(model.coefs_, model.intercepts_, strict=True))
    return {f"{kind}/{i}": array for i, pair in layers for kind, array in zip(("coef", "intercept"), pair, strict=True)}


def _copies(model: Any) -> Parameters:
    return {name: array.copy() for name, array in _arrays(model).items()}


engine = SklearnEngine

"""Training scikit-learn's estimators: by ``partial_fit``, by ``fit`` and a mean of coefficients, or by sums over the fleet.

`fedgrass.engines.estimators.choice.LEARNERS` lists them; a `Pipeline` may put a StandardScaler in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Bundle, InitialParameters, Manifest, Parameters, check_parameters
from fedgrass.engines.base import Batch, Dataset, FitResult, FitSettings, FitState, Hooks
from fedgrass.engines.builders import builder_of
from fedgrass.engines.loop import OutputEngine
from fedgrass.engines.metrics import losses
from fedgrass.engines.several import require_one_of_each
from fedgrass.engines.weights import ClassWeight
from fedgrass.errors import BundleError, EngineError
from fedgrass.tensors import Array

try:
    from fedgrass.engines.estimators.base import Learner, Task
    from fedgrass.engines.estimators.chain import Chain
    from fedgrass.engines.estimators.choice import learner_for
    from fedgrass.engines.estimators.counted import Clusters
except ImportError as error:
    raise EngineError("engine sklearn: scikit-learn is not installed; pip install 'fedgrass[sklearn]'") from error

Builder = str | Callable[[], Any]

_NOT_FINITE = ("finite", "overflow", "infinity", "nan")
"""Words of scikit-learn's messages about numbers that grew too large."""


def initial_parameters(
    builder: Builder, *, features: int, classes: int = 0, outputs: int = 1, sample: Array | None = None
) -> InitialParameters:
    """Return the parameters of a fresh estimator for flat inputs of ``features`` values.

    Parameters
    ----------
    builder
        Makes the estimator, as ``module:function`` or the function itself.
    features
        Number of values of x.
    classes
        Number of labels of a classifier.
    outputs
        Number of targets of a regressor.
    sample
        Some examples of x [n, features], where MiniBatchKMeans finds its first centres.

    Raises
    ------
    EngineError
        If the estimator cannot be trained over a fleet.
    """
    learner, _ = _learner(builder, Task(features, classes, outputs))
    last = learner.last if isinstance(learner, Chain) else learner
    if isinstance(last, Clusters):
        last.place(None if sample is None else np.asarray(sample, np.float64).reshape(len(sample), -1))
    arrays = {name: np.array(value, np.float32) for name, value in learner.arrays().items()}
    return InitialParameters(arrays, learner.statistics)


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
        require_one_of_each(self.manifest, "sklearn")
        manifest = self.manifest
        # A sigmoid's bundle has one output for two classes.
        classes = 2 if manifest.loss == "binary_crossentropy" else manifest.output.size
        task = Task(manifest.x.size, classes, manifest.output.size, manifest.optimizer)
        self._learner, self._class_weight = _learner(builder, task, manifest)
        _require_targets(self._learner, manifest)
        found = {name: value.shape for name, value in self._learner.arrays().items()}
        expected = {p.name: p.shape for p in manifest.parameters}
        if found != expected:
            raise BundleError(f"builder {builder!r}: its estimator has {found}, model {manifest.name!r} has {expected}")
        self.set_parameters(bundle.parameters())

    @property
    def estimator(self) -> Any:
        """The fitted estimator itself, with the present parameters."""
        return self._learner.model

    def save(self, path: Path) -> None:
        """Write the fitted estimator, for scikit-learn users or for applications.

        Parameters
        ----------
        path
            Ends in ``.joblib``. Such a file is a pickle: whoever loads it runs what is in it, so load none but your own. Or in
            ``.tflite``: a LiteRT model with the signature ``infer(x) -> y``, of linear models and perceptrons.

        Raises
        ------
        EngineError
            If it ends otherwise, or the estimator cannot be written so.
        """
        if path.suffix == ".tflite":
            from fedgrass.engines.estimators.litert import litert_model

            path.write_bytes(litert_model(self.estimator, self.manifest))
            return
        if path.suffix != ".joblib":
            raise EngineError(f"{path}: engine sklearn writes .joblib (scikit-learn) or .tflite (LiteRT)")
        import joblib

        joblib.dump(self.estimator, path)

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        arrays = self._learner.arrays()
        with np.errstate(over="ignore"):  # becomes infinite, and is told as divergence
            return {p.name: np.array(arrays[p.name], np.float32) for p in self.manifest.parameters}

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        self._learner.load(check_parameters(parameters, self.manifest))

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        """Train from the present parameters; see `fedgrass.engines.base.Engine.fit`.

        The estimator's own ``class_weight`` holds unless the round has one.

        Parameters
        ----------
        data
            The examples, which are checked first.
        settings
            Epochs, rates, seed and the weights of classes.
        hooks
            Called after batches and epochs.
        resume
            Where an earlier process came to in this training.

        Returns
        -------
        FitResult
            The parameters, and how the training went.

        Raises
        ------
        DataError
            If the data are empty or do not fit the model.
        DivergedError
            If the loss stops being finite.
        EngineError
            If the estimator cannot do what the round asks for.
        """
        weights = settings.class_weight or self._class_weight
        return super().fit(data, replace(settings, class_weight=weights), hooks=hooks, resume=resume)

    def _batch_size(self, data: Dataset) -> int:
        return len(data) if self._learner.whole else super()._batch_size(data)

    def _begin(self, settings: FitSettings) -> None:
        self._learner.begin(settings)

    def _step(self, batch: Batch) -> float:
        # Before the step, as the other engines report it.
        before = self._loss(batch)
        try:
            self._learner.step(replace(batch, x=self._flat(batch.x), y=self._targets(batch.y)))
        except ValueError as error:
            if any(word in str(error).lower() for word in _NOT_FINITE):
                raise self._diverged(str(error)) from error
            raise EngineError(
                f"model {self.manifest.name!r}: {self._learner.kind} refuses to train ({error})"
            ) from error
        # One step that does all is told by what came of it.
        return self._loss(batch) if self._learner.whole else before

    def _loss(self, batch: Batch) -> float:
        each = losses(self.manifest.loss, self._outputs(batch.x), batch.y, self.manifest.loss_options)
        return float(each.mean() if batch.weights is None else (each * batch.weights).mean())

    def _outputs(self, x: Array) -> Array:
        outputs = self._learner.outputs(self._flat(x))
        if self.manifest.loss == "sparse_categorical_crossentropy":
            return outputs
        if self.manifest.loss == "binary_crossentropy":
            # The probability of the second class is what a sigmoid would give.
            outputs = outputs[:, 1]
        return outputs.reshape(-1, *self.manifest.output.shape)

    def _flat(self, x: Array) -> Array:
        return np.asarray(x, np.float64).reshape(len(x), -1)

    def _targets(self, y: Array) -> Array:
        if self.manifest.loss in ("sparse_categorical_crossentropy", "binary_crossentropy"):
            return np.asarray(y).reshape(len(y)).astype(int)
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        return targets[:, 0] if targets.shape[1] == 1 else targets

    def _optimizer_state(self) -> list[Array]:
        return self._learner.state()

    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        self._learner.restore(state)


def _learner(builder: Builder, task: Task, manifest: Manifest | None = None) -> tuple[Learner, ClassWeight]:
    """Return what trains the builder's estimator, and the weights of classes that the estimator asks for."""
    model = builder_of("sklearn", builder)()
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    weight = getattr(last, "class_weight", None)
    if weight is not None:
        # Given with the examples: partial_fit knows no "balanced", and a device not all classes.
        last.set_params(class_weight=None)
    weights: ClassWeight = weight
    if isinstance(weight, dict):
        weights = {str(key): float(value) for key, value in weight.items()}
    try:
        return learner_for(model, task, manifest.loss if manifest else None), weights
    except EngineError as error:
        raise EngineError(f"builder {builder!r}: {error}") from error


def _require_targets(learner: Learner, manifest: Manifest) -> None:
    if learner.reconstructs and not manifest.x.size == manifest.y.size == manifest.output.size:
        raise EngineError(
            f"model {manifest.name!r}: {learner.kind} has no targets; y and output must be as x is, {list(manifest.x.shape)}, "
            "and y the same values"
        )


engine = SklearnEngine

"""Training with Keras on TensorFlow: for participants that have the room, such as silos.

A Keras model whose variables are named as a LiteRT bundle's parameters trains that bundle too, in one fleet with LiteRT devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedgrass.bundle import (
    Bundle,
    InitialParameters,
    Loss,
    LossOptions,
    Optimizer,
    Parameters,
    Statistic,
    check_parameters,
)
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.builders import builder_of, the_manifests
from fedgrass.engines.loop import OutputEngine, check_state
from fedgrass.engines.metrics import BINARY, CLASSIFIERS, sigmoid, softmax
from fedgrass.engines.several import require_one_of_each
from fedgrass.errors import EngineError
from fedgrass.tensors import Array

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise EngineError("engine keras: tensorflow is not installed; pip install 'fedgrass[keras]'") from error

Builder = str | Callable[[], keras.Model]


def loss_object(loss: Loss, options: LossOptions, *, from_logits: bool) -> keras.losses.Loss:
    """Make Keras' loss of a name.

    Parameters
    ----------
    loss
        The manifest's.
    options
        The manifest's, of which the loss takes those it knows.
    from_logits
        Whether a classifier's output are logits rather than probabilities.

    Returns
    -------
    Loss
        A Keras loss.
    """
    known = {name: value for name, value in options.model_dump().items() if name in _OPTIONS.get(loss, ())}
    if loss in CLASSIFIERS:
        known["from_logits"] = from_logits
    return keras.losses.get({"class_name": _CLASSES[loss], "config": known})


_CLASSES: dict[Loss, str] = {
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "binary_crossentropy": "BinaryCrossentropy",
    "mean_squared_error": "MeanSquaredError",
    "mean_absolute_error": "MeanAbsoluteError",
    "huber": "Huber",
    "mean_absolute_percentage_error": "MeanAbsolutePercentageError",
    "mean_squared_logarithmic_error": "MeanSquaredLogarithmicError",
    "log_cosh": "LogCosh",
    "poisson": "Poisson",
    "kl_divergence": "KLDivergence",
    "hinge": "Hinge",
    "squared_hinge": "SquaredHinge",
    "categorical_hinge": "CategoricalHinge",
    "cosine_similarity": "CosineSimilarity",
    "binary_focal_crossentropy": "BinaryFocalCrossentropy",
    "categorical_focal_crossentropy": "CategoricalFocalCrossentropy",
}

_OPTIONS: dict[Loss, tuple[str, ...]] = {
    "categorical_crossentropy": ("label_smoothing",),
    "binary_crossentropy": ("label_smoothing",),
    "huber": ("delta",),
    "binary_focal_crossentropy": ("label_smoothing", "gamma", "alpha", "apply_class_balancing"),
    "categorical_focal_crossentropy": ("label_smoothing", "gamma", "alpha"),
}


def initial_parameters(builder: Builder) -> InitialParameters:
    """Return every float variable of the model that the builder makes, moving statistics included.

    What no gradient trains is a statistic; the variance of a normalization is held above zero.
    """
    model = _build(builder)
    variables = _variables(model)
    variances = {id(v) for layer in model._flatten_layers() if (v := _variance(layer)) is not None}
    statistics: dict[str, Statistic] = {
        name: "variance" if id(variable) in variances else "mean"
        for name, variable in variables.items()
        if not variable.trainable
    }
    return InitialParameters({name: np.array(variable.numpy()) for name, variable in variables.items()}, statistics)


class KerasEngine(OutputEngine):
    """A Keras model that holds the bundle's parameters at first.

    Parameters
    ----------
    builder
        Makes a built model; its variables are called as the manifest's parameters are, without the model's own name.
    threads
        For TensorFlow's kernels, if none has run yet in this process.
    """

    takes_builder = True
    takes_correction = True

    def __init__(self, bundle: Bundle, *, threads: int = 1, builder: Builder = "") -> None:
        super().__init__(bundle)
        require_one_of_each(self.manifest, "keras")
        _use_threads(threads)
        self._model = _build(builder)
        self._variables = the_manifests(_variables(self._model), self.manifest, builder)
        # Unlike the LiteRT exporter this engine trains the model as built, so it has to know what the last layer
        # gives.
        self._logits = getattr(self._model.layers[-1], "activation", None) not in (
            keras.activations.softmax,
            keras.activations.sigmoid,
        )
        self._loss = loss_object(self.manifest.loss, self.manifest.loss_options, from_logits=self._logits)
        # Variables, not constants: the compiled step reads what each round assigns.
        self._anchor = [tf.Variable(variable) for variable in self._trained()]
        self._scalars = [tf.Variable(0.0) for _ in range(2)]
        # State of Keras' random layers: part of a checkpoint, or a resumed training would drop other units.
        self._draws = [v for v in self._model.variables if v.path.endswith("seed_generator_state")]
        self.set_parameters(bundle.parameters())

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        return {name: np.array(variable.numpy()) for name, variable in self._variables.items()}

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        for name, value in check_parameters(parameters, self.manifest).items():
            self._variables[name].assign(value)

    def _trained(self) -> list[keras.Variable]:
        # A variable that the manifest does not name is frozen: nobody would carry its change to the cloud.
        return [v for v in self._model.trainable_variables if any(v is known for known in self._variables.values())]

    def _begin(self, settings: FitSettings) -> None:
        trained = self._trained()
        for anchor, variable in zip(self._anchor, trained, strict=True):
            anchor.assign(variable)
        # As variables, so that another round's values do not trace the step again.
        for scalar, value in zip(self._scalars, (settings.proximal_mu, settings.clip_norm), strict=True):
            scalar.assign(value)
        given = settings.correction or {}
        names = {id(variable): name for name, variable in self._variables.items()}
        self._added = [given.get(names[id(variable)]) for variable in trained] if given else [None] * len(trained)
        for index, draw in enumerate(self._draws):
            # The index keeps two Dropout layers from drawing the same mask.
            draw.assign([settings.masks_seed(), index])
        self._optimizer = optimizer_object(self.manifest.optimizer, settings.learning_rate)
        self._optimizer.build(trained)
        # Compiled for each training: the optimizer's variables are new ones.
        self._compiled = tf.function(self._train, reduce_retracing=True)

    def _train(self, x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
        mu, clip = self._scalars
        trained = self._trained()
        with tf.GradientTape() as tape:
            loss = self._loss(y, self._model(x, training=True), sample_weight=weights)
        gradients = [
            gradient + mu * (variable - anchor)
            for gradient, variable, anchor in zip(tape.gradient(loss, trained), trained, self._anchor, strict=True)
        ]
        # After the proximal term and before clipping, as the LiteRT graph has it.
        gradients = [g if added is None else g + added for g, added in zip(gradients, self._added, strict=True)]
        norm = tf.linalg.global_norm(gradients)
        scale = tf.where((clip > 0) & (norm > clip), clip / norm, 1.0)
        self._optimizer.apply([gradient * scale for gradient in gradients])
        return loss

    def _step(self, batch: Batch) -> float:
        x, y = np.asarray(batch.x, self.manifest.x.dtype), np.asarray(batch.y, self.manifest.y.dtype)
        weights = None if batch.weights is None else tf.constant(batch.weights, tf.float32)
        return float(self._compiled(tf.constant(x), tf.constant(y), weights))

    def _set_rate(self, rate: float) -> None:
        self._optimizer.learning_rate = rate

    def _outputs(self, x: Array) -> Array:
        # Called directly: `predict` would build a data pipeline for each batch.
        outputs = np.asarray(self._model(np.asarray(x, self.manifest.x.dtype), training=False))
        if self.manifest.loss not in CLASSIFIERS or not self._logits:
            return outputs
        return sigmoid(outputs) if self.manifest.loss in BINARY else softmax(outputs)

    def _optimizer_state(self) -> list[Array]:
        return [np.array(variable.numpy()) for variable in self._state_variables()]

    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        variables = self._state_variables()
        check_state(state, [tuple(variable.shape) for variable in variables])
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)

    def _state_variables(self) -> list[keras.Variable]:
        return [*self._optimizer.variables, *self._draws]


def _build(builder: Builder) -> keras.Model:
    if keras.backend.backend() != "tensorflow":
        raise EngineError(f"engine keras: backend {keras.backend.backend()!r} is in use; set KERAS_BACKEND=tensorflow")
    # Layers without a given name are numbered through the process: start again, so that every build has the same names.
    keras.utils.clear_session(free_memory=False)
    model = builder_of("keras", builder)()
    if not isinstance(model, keras.Model) or not model.built:
        raise EngineError(f"builder {builder!r}: gave {type(model).__name__}, expected a built Keras model")
    return model


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    # Counters and seeds are integers, and are not averaged.
    floats = [variable for variable in model.weights if str(variable.dtype) == "float32"]
    return {str(variable.path.removeprefix(f"{model.name}/")): variable for variable in floats}


def _variance(layer: keras.Layer) -> keras.Variable | None:
    """Return the variable in which a normalization keeps a variance of its inputs."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.moving_variance
    return getattr(layer, "adapt_variance", None) if isinstance(layer, keras.layers.Normalization) else None


def optimizer_object(settings: Optimizer, learning_rate: float) -> keras.optimizers.Optimizer:
    """Return Keras' optimizer with these settings, at a constant rate."""
    common: dict[str, float | None] = {
        "learning_rate": learning_rate,
        "clipnorm": settings.clipnorm,
        "clipvalue": settings.clipvalue,
        "global_clipnorm": settings.global_clipnorm,
        # To Keras 0 is a decay that is on, and costs a pass over all variables.
        "weight_decay": settings.decay or None,
    }
    if settings.name in ("adam", "adamw"):
        kind = keras.optimizers.AdamW if settings.name == "adamw" else keras.optimizers.Adam
        if settings.name == "adamw":
            common["weight_decay"] = settings.decay
        moments = {"beta_1": settings.beta_1, "beta_2": settings.beta_2}
        return kind(**common, **moments, epsilon=settings.epsilon, amsgrad=settings.amsgrad)
    if settings.name == "rmsprop":
        squares = {"rho": settings.rho, "momentum": settings.rmsprop_momentum, "centered": settings.centered}
        return keras.optimizers.RMSprop(**common, **squares, epsilon=settings.epsilon)
    if settings.name == "adagrad":
        first = settings.initial_accumulator_value
        return keras.optimizers.Adagrad(**common, initial_accumulator_value=first, epsilon=settings.epsilon)
    momentum = settings.momentum if settings.name == "momentum" else 0.0
    return keras.optimizers.SGD(**common, momentum=momentum, nesterov=settings.nesterov)


def _use_threads(threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        return  # TensorFlow runs already: another engine of this process has set them


engine = KerasEngine

"""Training on the device equals TensorFlow's, for every loss and optimizer that authoring offers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fedgrass import bundle
from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.litert import LiteRTEngine

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
layers = keras.layers

from fedgrass.authoring import convolution  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.export import export  # noqa: E402
from tests.fedgrass.authoring.nets import BATCH, REFERENCE, examples, for_loss, network  # noqa: E402

TOLERANCE = 1e-5


def reference_steps(
    model: Any,
    loss: bundle.Loss,
    data: ArrayDataset,
    optimizer: Any,
    settings: FitSettings,
) -> float:
    """Train ``model`` itself with TensorFlow's gradients on the batches that the engine sees; return the last epoch's loss."""
    variables = [variable.value for variable in model.trainable_variables]
    anchors = [variable.numpy() for variable in variables]
    losses: list[float] = []
    for epoch in range(settings.epochs):
        losses.clear()
        for batch in data.batches(BATCH, seed=settings.epoch_seed(epoch)):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(REFERENCE[loss](batch.y, model(batch.x, training=True)))
            gradients = [
                gradient + settings.proximal_mu * (variable - anchor)
                for gradient, variable, anchor in zip(tape.gradient(value, variables), variables, anchors, strict=True)
            ]
            if settings.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, settings.clip_norm)
            optimizer.apply(gradients, model.trainable_variables)
            losses += [float(value)] * len(batch.x)
    return float(np.mean(losses))


def assert_parity(
    folder: Path,
    model: Any,
    *,
    loss: bundle.Loss = "sparse_categorical_crossentropy",
    optimizer: bundle.Optimizer | None = None,
    keras_optimizer: Any = None,
    count: int = BATCH,
    settings: FitSettings | None = None,
) -> None:
    settings = settings or FitSettings(learning_rate=0.1)
    written = export(model, folder, loss=loss, batch_size=BATCH, optimizer=optimizer, prove=False)
    engine = LiteRTEngine(written)
    data = examples(model, loss, count)
    np.testing.assert_allclose(engine.infer(data.x), model.predict(data.x, verbose=0), atol=TOLERANCE)
    result = engine.fit(data, settings)
    expected = reference_steps(
        model, loss, data, keras_optimizer or keras.optimizers.SGD(settings.learning_rate), settings
    )
    assert result.metrics["loss"] == pytest.approx(expected, abs=TOLERANCE * max(1.0, abs(expected)))
    for found, variable in zip(result.parameters.values(), model.trainable_variables, strict=True):
        np.testing.assert_allclose(found, variable.numpy(), atol=TOLERANCE, err_msg=variable.path)


def test_max_pooling_gives_the_gradient_of_a_tie_to_the_first_as_tensorflow_does(tmp_path: Path) -> None:
    model = network((4, 4, 1), layers.Conv2D(2, 3, padding="same"), layers.MaxPooling2D(2))
    model.layers[0].kernel.assign(np.zeros(model.layers[0].kernel.shape))  # every place of a window is the bias
    assert_parity(tmp_path, model)


def test_images_too_large_for_patches_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MAX_PATCH_BYTES", 0)
    convolutions = [layers.Conv2D(3, 3, padding="same"), layers.Conv2D(4, (3, 2), strides=2, padding="same")]
    assert_parity(tmp_path, network((7, 6, 2), *convolutions, layers.Conv2D(2, 2, activation="relu")))


@pytest.mark.parametrize("loss", get_args(bundle.Loss))
def test_losses(tmp_path: Path, loss: bundle.Loss) -> None:
    # Percentages of labels near 0 are thousands: at 0.1 the weights would be hundreds after a step.
    rate = 1e-4 if loss == "mean_absolute_percentage_error" else 0.1
    assert_parity(tmp_path, for_loss(loss), loss=loss, count=2 * BATCH + 1, settings=FitSettings(learning_rate=rate))


@pytest.mark.parametrize(
    ("optimizer", "keras_optimizer"),
    [
        (bundle.Optimizer(name="sgd"), lambda rate: keras.optimizers.SGD(rate)),
        (bundle.Optimizer(name="momentum", momentum=0.8), lambda rate: keras.optimizers.SGD(rate, momentum=0.8)),
        (bundle.Optimizer(name="adam", beta_1=0.8), lambda rate: keras.optimizers.Adam(rate, beta_1=0.8)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_optimizers_with_proximal_term_and_clipping(
    tmp_path: Path, optimizer: bundle.Optimizer, keras_optimizer: Callable[[float], Any]
) -> None:
    settings = FitSettings(epochs=3, learning_rate=0.02, proximal_mu=0.5, clip_norm=0.7)
    assert_parity(
        tmp_path,
        network((5,), layers.Dense(6, activation="relu")),
        optimizer=optimizer,
        keras_optimizer=keras_optimizer(0.02),
        count=2 * BATCH + 3,
        settings=settings,
    )


def stopped(engine: LiteRTEngine, data: ArrayDataset, settings: FitSettings, *, after: tuple[int, int]) -> FitState:
    """Stop a training after this batch of this epoch."""
    states: list[FitState] = []

    def stop(epoch: int, step: int) -> None:
        if (epoch, step) == after:
            raise StopTraining

    with pytest.raises(StopTraining):
        engine.fit(data, settings, hooks=Hooks(stop, stopped=states.append))
    return states[0]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_an_optimizers_state_survives_in_a_checkpoint_and_not_in_the_next_round(tmp_path: Path, name: Any) -> None:
    model = network((5,))
    written = export(
        model, tmp_path, loss="sparse_categorical_crossentropy", batch_size=BATCH, optimizer=bundle.Optimizer(name=name)
    )
    data, settings = examples(model, "sparse_categorical_crossentropy", 10), FitSettings(epochs=3)
    states: list[FitState] = []
    hooks = Hooks(after_epoch=states.append)
    engine = LiteRTEngine(written)
    unbroken = engine.fit(data, settings, hooks=hooks).parameters
    resumed = LiteRTEngine(written).fit(data, settings, resume=states[0]).parameters
    within = stopped(LiteRTEngine(written), data, settings, after=(1, 1))
    resumed_within = LiteRTEngine(written).fit(data, settings, resume=within).parameters
    assert (within.epoch, within.step) == (1, 1)
    engine.set_parameters(written.parameters())
    next_round = engine.fit(data, settings).parameters
    assert any(np.any(value) for value in states[0].optimizer)
    forgotten = FitState(1, states[0].parameters, [np.zeros_like(value) for value in states[0].optimizer])
    forgetful = LiteRTEngine(written).fit(data, settings, resume=forgotten).parameters
    for key, value in unbroken.items():
        np.testing.assert_array_equal(value, resumed[key])
        np.testing.assert_array_equal(value, resumed_within[key])
        np.testing.assert_array_equal(value, next_round[key])
        assert not np.array_equal(value, forgetful[key])


def test_the_bundle_is_written_from_the_models_weights_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = network((5,))
    weights = model.get_weights()
    written = Bundle.open(export(model, tmp_path, loss="sparse_categorical_crossentropy", batch_size=BATCH).folder)
    for value, before, after in zip(written.parameters().values(), weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, before)
        np.testing.assert_array_equal(value, after)
    assert model.layers[-1].activation.__name__ == "softmax"

"""One training step of every layer and activation that authoring offers equals TensorFlow's."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from fedgrass.authoring.model import frozen  # noqa: E402 - only where TensorFlow is
from tests.fedgrass.authoring import nets  # noqa: E402 - only where TensorFlow is

TOLERANCE = 1e-5


@pytest.mark.parametrize("build", ["images", "sequences", "activations"])
def test_one_step_of_every_layer_equals_tensorflows(tmp_path: Path, build: str) -> None:
    keras.utils.set_random_seed(0)
    found = nets.one_step(getattr(nets, build)(), "sparse_categorical_crossentropy", tmp_path)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize(("dropout", "draws"), [(0.0, False), (0.2, True)])
def test_attention_draws_only_with_dropout(dropout: float, draws: bool) -> None:
    inputs = keras.Input((4, 6))
    attended = keras.layers.MultiHeadAttention(2, 3, dropout=dropout)(inputs, inputs)
    with frozen(keras.Model(inputs, attended), ()) as model:
        assert model.draws_masks is draws

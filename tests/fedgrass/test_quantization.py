"""Int8 weights in models of any layers, held against TensorFlow's converter and ai-edge-quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from fedgrass.errors import BundleError
from fedgrass.quantization import quantized
from fedgrass.tensors import Array

DIGITS = (Path(__file__).parents[2] / "examples" / "digits" / "bundle" / "inference.tflite").read_bytes()


def run(content: bytes, x: Array) -> Array:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    [entry], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for example in x:
        interpreter.set_tensor(entry["index"], example[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"])[0])
    return np.stack(outputs)


def close(content: bytes, x: Array, *, ratio: float) -> bytes:
    small = quantized(content)
    assert small is not None
    assert len(small) <= ratio * len(content)
    exact, found = run(content, x), run(small, x)
    assert np.abs(exact - found).max() <= 0.05 * np.abs(exact).max()
    return small


def test_the_digits_model_is_as_small_and_as_close_as_ai_edge_quantizers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (50, 8, 8, 1)).astype(np.float32)
    small = close(DIGITS, x, ratio=0.30)
    peer = pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed: fedgrass[authoring]")
    path = tmp_path / "model.tflite"
    path.write_bytes(DIGITS)
    theirs = bytes(peer.quantizer.Quantizer(str(path), peer.recipe.dynamic_wi8_afp32()).quantize().quantized_model)
    assert len(small) <= 1.02 * len(theirs)
    error, their_error = (np.abs(run(model, x) - run(DIGITS, x)).mean() for model in (small, theirs))
    assert error <= 1.1 * their_error + 1e-6


def convert(layers: Any, shape: tuple[int, ...], dtype: str) -> bytes:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape, batch_size=1, dtype=dtype), *layers(keras.layers)])
    return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


@pytest.mark.authoring
@pytest.mark.parametrize(
    ("layers", "shape", "dtype"),
    [
        (
            lambda k: [
                k.Conv2D(16, 3, strides=2),
                k.DepthwiseConv2D(3),
                k.Conv2DTranspose(32, 3, activation="relu"),
                k.SeparableConv2D(64, 3),
                k.GlobalAveragePooling2D(),
                k.Dense(64, "gelu"),
                k.Dense(5),
            ],
            (16, 16, 3),
            "float32",
        ),
        (lambda k: [k.Embedding(500, 16), k.Conv1D(64, 3), k.LSTM(24, unroll=True), k.Dense(4)], (8,), "int32"),
    ],
    ids=["image", "sequence"],
)
def test_every_kind_of_weight_is_made_small_and_stays_close(layers: Any, shape: tuple[int, ...], dtype: str) -> None:
    pytest.importorskip("tensorflow")
    generator = np.random.default_rng(0)
    whole = dtype == "int32"
    x = generator.integers(0, 500, (20, *shape)) if whole else generator.normal(size=(20, *shape))
    close(convert(layers, shape, dtype), x.astype(dtype), ratio=0.5)


def test_a_model_that_would_not_get_smaller_has_no_int8_version(tmp_path: Path) -> None:
    small = quantized(DIGITS)
    assert small is not None
    assert quantized(small) is None


@pytest.mark.parametrize("content", [b"", b"not a model at all", DIGITS[:4] + b"TFL3" + b"\xff" * 40])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="inference model"):
        quantized(content)

"""A round's peak of memory, as a multiple of the model: what was read and written is not kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedgrass
from benchmarks import model_memory
from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset, Split
from fedgrass.engines import signatures
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.engines.signatures import LEAST_PASSING, Signature

if sys.platform != "linux":
    pytest.skip("peaks are read from /proc", allow_module_level=True)


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_round_takes_less_than_eight_times_the_models_size(codec: str, tmp_path: Path) -> None:
    # Twelve times before; five and a half here, as something of the 16 MB model does not grow with its parameters.
    bundle = model_memory.export(model_memory.WIDTHS["4M"], tmp_path / "4M")
    found = model_memory.apart("fedgrass", bundle, codec)
    assert isinstance(found, dict), found
    assert found["times_parameters"] < 8


def bytes_of(signature: Signature, index: int) -> int:
    """Return a float32 tensor's bytes."""
    return int(4 * np.prod(signature._interpreter.TensorSize(index, signature._subgraph)))


NET = """
import keras
def build_model():
    return keras.Sequential([
        keras.Input((64,)),
        keras.layers.Dense(600, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(600, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ])
EXPORT = {"batch_size": 32, "loss": "sparse_categorical_crossentropy", "optimizer": "OPTIMIZER"}
"""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_is_given_back_between_two_steps_changes_no_byte(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "net.py", tmp_path / "bundle"
    source.write_text(NET.replace("OPTIMIZER", optimizer))
    export = "from fedgrass.cli import app; app()"
    argv = [sys.executable, "-c", export, "model", "export", str(source), "--output", str(folder)]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    bundle, examples = Bundle.open(folder), ArrayDataset(*model_memory.examples())
    engine = LiteRTEngine(bundle)
    engine.fit(examples, FitSettings(epochs=1, learning_rate=0.01))
    train = engine._signatures["train_plain"]
    sizes = [bytes_of(train, index) for index in train._passing]
    assert len(sizes) >= 2  # what is read of the large matrix, and what it is set to
    assert min(sizes) >= LEAST_PASSING
    dropped: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(signatures, "drop_pages", lambda array: dropped.append(array.nbytes))
        train.rest()
    assert dropped
    assert set(dropped) <= set(sizes)

    def update(name: str) -> bytes:
        path = tmp_path / name
        fedgrass.train(bundle, Split(examples, examples), path, thing="t", epochs=3, learning_rate=0.01)
        return path.read_bytes()

    given_back = update("given-back")
    monkeypatch.setattr(Signature, "rest", lambda _signature: None)
    assert update("kept") == given_back

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedgrass.bundle import Parameters, TensorDescription
from fedgrass.protocol.messages import UpdateTask
from fedgrass.update import UpdateHeader, write_update

CODECS = (
    "float32",
    "float16",
    "int8",
    "int4",
    "topk:0.05",
    "topk:0.1+int8",
    "topk:0.3+int4+zstd",
    "float32+zstd",
    "int8+zstd",
)
DESCRIPTIONS = (
    TensorDescription(name="dense/kernel", shape=(301, 7), dtype="float32"),
    TensorDescription(name="dense/bias", shape=(7,), dtype="float32"),
    TensorDescription(name="empty", shape=(0, 3), dtype="float32"),
    TensorDescription(name="scale", shape=(), dtype="float32"),
)
HEADER = UpdateHeader(
    fleet="mill",
    round=7,
    thing="press-01",
    base_sha256="a" * 64,
    graph_sha256="b" * 64,
    num_examples=120,
    metrics={"loss": 0.25, "accuracy": 0.9},
)


def draw_parameters(seed: int) -> Parameters:
    generator = np.random.default_rng(seed)
    return {d.name: generator.normal(size=d.shape).astype(np.float32).reshape(d.shape) for d in DESCRIPTIONS}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes the update from parameters 0 to parameters 1."""

    def write(codec: str = "float32", clip_norm: float = 0.0, header: UpdateHeader = HEADER) -> Path:
        path = tmp_path / "update.safetensors"
        write_update(path, draw_parameters(0), draw_parameters(1), header, UpdateTask(codec=codec, clip_norm=clip_norm))
        return path

    return write

"""A small convolutional net in PyTorch for 32×32 colour images: ``examples.cnn.model:build`` is the ``builder`` of every device.

The images come as [32, 32, 3], as any engine's data do; the net permutes them to channels first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.tensors import Array

CLASSES = ("circle", "square", "stripes")
EXPORT = {"input": (32, 32, 3), "loss": "CrossEntropyLoss", "batch_size": 16, "class_names": CLASSES}
"""What else would be options of ``fedgrass model export``, which makes the same net trainable without PyTorch."""


def build() -> Any:
    """Return the untrained net; the same weights each time."""
    import torch
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc]
        """Two convolutions and two dense layers; gives logits."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 5)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * 5 * 5, 64)
            self.fc2 = nn.Linear(64, len(CLASSES))

        def forward(self, image: Any) -> Any:
            """Map images [B, 32, 32, 3] to logits [B, 3]."""
            x = torch.relu(self.conv1(image.permute(0, 3, 1, 2)))
            x = torch.relu(self.conv2(nn.functional.max_pool2d(x, 2)))
            x = nn.functional.max_pool2d(x, 2).flatten(1)
            return self.fc2(torch.relu(self.fc1(x)))

    torch.manual_seed(1)
    return Net()


def build_model() -> Any:
    """Return the net for ``fedgrass model export``."""
    return build()


def images(count: int, seed: int) -> tuple[Array, Array]:
    """Return made-up images, float32 [n, 32, 32, 3] from 0 to 1, and labels, int32 [n]: shapes of any colour, with noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(len(CLASSES), size=count).astype(np.int32)
    rows, columns = np.mgrid[:32, :32]
    x = 0.2 * rng.random((count, 32, 32, 3))
    for image, label in zip(x, y, strict=True):
        centre, size = rng.integers(12, 20, size=2), rng.integers(5, 11)
        down, across = np.abs(rows - centre[0]), np.abs(columns - centre[1])
        inside = {
            "circle": down**2 + across**2 <= size**2,
            "square": np.maximum(down, across) <= size,
            "stripes": (columns + rng.integers(8)) % 8 < 4,
        }[CLASSES[label]]
        image[inside] += 0.4 + 0.4 * rng.random(3)
    return x.astype(np.float32), y


def write_first_bundle(folder: Path) -> Bundle:
    """Write the fleet's first model."""
    from fedgrass.engines.torch import initial_parameters

    return new_bundle(
        folder,
        NewModel(
            engine="torch",
            name="shapes",
            parameters=initial_parameters(build),
            x=TensorDescription(name="x", shape=(32, 32, 3), dtype="float32"),
            y=TensorDescription(name="y", shape=(), dtype="int32"),
            output=TensorDescription(name="y", shape=(len(CLASSES),), dtype="float32"),
            loss="sparse_categorical_crossentropy",
            batch_size=16,
            class_names=CLASSES,
        ),
    )


def write(folder: Path, devices: int = 2) -> None:
    """Write ``bundle/``, ``device-<n>.npz`` for each device, ``all.npz`` and ``evaluation.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_first_bundle(folder / "bundle")
    parts = [images(120, seed) for seed in range(1, devices + 1)]
    for number, (x, y) in enumerate(parts, start=1):
        np.savez(folder / f"device-{number}.npz", x=x, y=y)
    np.savez(folder / "all.npz", x=np.concatenate([x for x, _ in parts]), y=np.concatenate([y for _, y in parts]))
    x, y = images(200, 0)
    np.savez(folder / "evaluation.npz", x=x, y=y)


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""PyTorch over tables and vectors: dense nets, autoencoders, embedded categories, several inputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.zoo import Module

Build = Callable[[], Module]


def _dense(*sizes: int, activation: Callable[[], Any] = nn.ReLU) -> Any:
    layers: list[Any] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class _Tabular(nn.Module):  # type: ignore[misc]
    """Categories as vectors, beside normalized numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 4) for size in (400, 400, 400))
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.Sequential(nn.Linear(18, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 2))

    def forward(self, categories: Any, numbers: Any) -> Any:
        embedded = [table(categories[:, at]) for at, table in enumerate(self.embeddings)]
        return self.body(torch.cat([*embedded, self.norm(numbers)], 1))


class _ImageAndNumbers(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.numbers = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
        self.head = nn.Linear(48, 4)

    def forward(self, image: Any, numbers: Any) -> Any:
        return self.head(torch.cat([self.image(image), self.numbers(numbers)], 1))


class _Siamese(nn.Module):  # type: ignore[misc]
    """Whether two images are of one kind, by the distance of their vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.project, self.head = nn.Linear(576, 32), nn.Linear(32, 1)

    def forward(self, first: Any, second: Any) -> Any:
        return self.head((self.project(self.tower(first)) - self.project(self.tower(second))).abs())


class _DenoisingAutoencoder(nn.Module):  # type: ignore[misc]
    """Reconstructs what a fifth of was left out."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Dropout(0.2)
        self.encoder, self.decoder = _dense(32, 24, 8), _dense(8, 24, 32)

    def forward(self, x: Any) -> Any:
        return self.decoder(F.relu(self.encoder(self.noise(x))))


class _ResidualTable(nn.Module):  # type: ignore[misc]
    """A ResNet of tables: blocks of norm, dense, activation, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


MODELS: dict[str, Build] = {
    "torch_mlp": lambda: Module(_dense(784, 128, 64, 10), (784,)),
    "torch_mlp_silu": lambda: Module(_dense(20, 64, 64, 5, activation=nn.SiLU), (20,)),
    "torch_mlp_gelu": lambda: Module(_dense(20, 64, 64, 5, activation=nn.GELU), (20,)),
    "torch_mlp_dropout": lambda: Module(
        nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 5)), (20,)
    ),
    "torch_regression": lambda: Module(_dense(13, 64, 64, 1), (13,), "mse_loss"),
    "torch_multi_label": lambda: Module(_dense(30, 64, 6), (30,), "binary_cross_entropy_with_logits"),
    "torch_autoencoder": lambda: Module(_dense(32, 16, 4, 16, 32), (32,), "mse_loss"),
    "torch_denoising_autoencoder": lambda: Module(_DenoisingAutoencoder(), (32,), "mse_loss"),
    "torch_residual_table": lambda: Module(_ResidualTable(), (20,)),
    "torch_tabular_embeddings": lambda: Module(
        _Tabular(), {"categories": {"shape": (3,), "dtype": "int64"}, "numbers": (6,)}
    ),
    "torch_image_and_numbers": lambda: Module(_ImageAndNumbers(), {"image": (1, 16, 16), "numbers": (5,)}),
    "torch_siamese": lambda: Module(
        _Siamese(), {"first": (1, 28, 28), "second": (1, 28, 28)}, "binary_cross_entropy_with_logits"
    ),
}

"""PyTorch over images: classifiers, residual and mobile nets, transformers, autoencoders, segmentation, super-resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.zoo import Module

Build = Callable[[], Module]
SIZE = (3, 32, 32)


def _conv(inputs: int, outputs: int, stride: int = 1, norm: Callable[[int], Any] = nn.BatchNorm2d) -> list[Any]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU(inplace=True)]


def _pooled(*layers: Any, features: int) -> Any:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10))


def _lenet() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


def _plain(norm: Callable[[int], Any]) -> Any:
    layers = [*_conv(3, 16, norm=norm), nn.MaxPool2d(2), *_conv(16, 32, norm=norm), nn.MaxPool2d(2)]
    return _pooled(*layers, *_conv(32, 64, norm=norm), features=64)


class _BasicBlock(nn.Module):  # type: ignore[misc]
    """ResNet's block of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.body = nn.Sequential(*_conv(inputs, outputs, stride), second, nn.BatchNorm2d(outputs))
        self.past: Any = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.past = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Any) -> Any:
        return F.relu(self.body(x) + self.past(x))


def _resnet18(width: int) -> Any:
    layers: list[Any] = [*_conv(3, width)]
    before = width
    for stage in range(4):
        outputs = width * 2**stage
        layers += [_BasicBlock(before, outputs, 2 if stage else 1), _BasicBlock(outputs, outputs, 1)]
        before = outputs
    return _pooled(*layers, features=before)


class _Inverted(nn.Module):  # type: ignore[misc]
    """MobileNetV2's block: wider, depthwise, narrow again."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        return x + self.body(x) if self.adds else self.body(x)


class _ConvNeXtBlock(nn.Module):  # type: ignore[misc]
    """A wide depthwise convolution, layer normalization over channels, a dense pair, a learnt scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Any) -> Any:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class _VisionTransformer(nn.Module):  # type: ignore[misc]
    """Patches of 8 pixels, a class token, learnt positions, layers with the norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.body(x)[:, 0]))


class _UNet(nn.Module):  # type: ignore[misc]
    """Two levels, with what was seen before each pooling joined on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(*_conv(3, 8)), nn.Sequential(*_conv(8, 16))
        self.bottom = nn.Sequential(*_conv(16, 32))
        self.up_second, self.up_first = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.join_second, self.join_first = nn.Sequential(*_conv(32, 16)), nn.Sequential(*_conv(16, 8))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Any) -> Any:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        x = self.up_second(self.bottom(F.max_pool2d(second, 2)))
        x = self.up_first(self.join_second(torch.cat([second, x], 1)))
        return self.head(self.join_first(torch.cat([first, x], 1)))


class _Gated(nn.Module):  # type: ignore[misc]
    """Squeeze and excite."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(self.wide(F.silu(self.narrow(F.adaptive_avg_pool2d(x, 1)))))


def _autoencoder(*decoder: Any) -> Any:
    encoder = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*encoder, *decoder)


def _super_resolution() -> Any:
    """Twice the height and width, from channels (ESPCN)."""
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 8, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))


MODELS: dict[str, Build] = {
    "torch_lenet": lambda: Module(_lenet(), (1, 28, 28)),
    "torch_cnn_batch_norm": lambda: Module(_plain(nn.BatchNorm2d), SIZE),
    "torch_cnn_group_norm": lambda: Module(_plain(lambda width: nn.GroupNorm(4, width)), SIZE),
    "torch_resnet_block": lambda: Module(_pooled(*_conv(3, 16), _BasicBlock(16, 32, 2), features=32), SIZE),
    "torch_resnet18_small": lambda: Module(_resnet18(8), SIZE),
    "torch_mobilenet_v2": lambda: Module(
        _pooled(*_conv(3, 16, 2), _Inverted(16, 16, 1), _Inverted(16, 24, 2), _Inverted(24, 24, 1), features=24), SIZE
    ),
    "torch_convnext": lambda: Module(
        _pooled(nn.Conv2d(3, 24, 4, 4), _ConvNeXtBlock(24), _ConvNeXtBlock(24), features=24), SIZE
    ),
    "torch_vision_transformer": lambda: Module(_VisionTransformer(), SIZE),
    "torch_u_net": lambda: Module(_UNet(), SIZE),
    "torch_squeeze_excite": lambda: Module(
        _pooled(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), _Gated(16), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(), features=32),
        SIZE,
    ),
    "torch_depthwise": lambda: Module(
        _pooled(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            nn.Conv2d(16, 32, 1),
            nn.ReLU(),
            features=32,
        ),
        SIZE,
    ),
    "torch_dilated": lambda: Module(
        _pooled(
            nn.Conv2d(3, 8, 3, dilation=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=4, dilation=4),
            nn.ReLU(),
            features=16,
        ),
        SIZE,
    ),
    "torch_conv_autoencoder": lambda: Module(
        _autoencoder(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 1, 3, padding=1),
        ),
        (1, 28, 28),
        "mse_loss",
    ),
    "torch_transposed_autoencoder": lambda: Module(
        _autoencoder(nn.ConvTranspose2d(4, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2)),
        (1, 28, 28),
        "mse_loss",
    ),
    "torch_super_resolution": lambda: Module(_super_resolution(), (1, 16, 16), "mse_loss"),
}

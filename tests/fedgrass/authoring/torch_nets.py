"""PyTorch modules of every operator in the table, as branches of a few nets, and the kinds of nets that people have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it


class Branches(nn.Module):  # type: ignore[misc]
    """Several modules behind one, their outputs flattened and joined before the head."""

    def __init__(self, stem: Any, branches: Sequence[Any], features: int) -> None:
        super().__init__()
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.head = nn.Linear(features, 3)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        found = [branch(x) for branch in self.branches]
        return self.head(torch.cat([one.flatten(1) for one in found], 1) * 0.3)


class Lambda(nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class First(nn.Module):  # type: ignore[misc]
    """A recurrent layer's outputs without its last state."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


def joined(stem: Any, branches: Sequence[Any], shape: Sequence[int]) -> Any:
    with torch.no_grad():
        x = stem.eval()(torch.zeros(2, *shape))
        features = sum(branch.eval()(x).flatten(1).shape[1] for branch in branches)
    return Branches(stem, branches, features).train()


def activations() -> Any:
    names = (
        "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus Softsign "
        "LogSigmoid PReLU Tanhshrink Softshrink Hardshrink"
    )
    others = [nn.GELU("tanh"), nn.GLU(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Threshold(0.1, 2.0)]
    return joined(nn.Linear(6, 8), [*(getattr(nn, name)() for name in names.split()), *others], (6,))


_FUNCTIONS: list[Callable[[Any], Any]] = [
    lambda x: x.abs().sqrt(),
    lambda x: torch.exp(x) - torch.log1p(x.abs()) + torch.expm1(x),
    lambda x: torch.sin(x) + torch.cos(x) * torch.erf(x),
    lambda x: x.pow(2) + x.pow(3) - (x.abs() + 0.1) ** 0.5,
    lambda x: torch.where(x > 0, x, x * 0.1),
    lambda x: x.masked_fill(x > 0.5, 0.5).clamp(-0.3, 0.4),
    lambda x: torch.maximum(x, -x) / (1 + torch.minimum(x, 2 * x).square()),
    lambda x: x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8) * torch.arange(8.0),
    lambda x: torch.stack(x.chunk(2, dim=1), dim=2).permute(0, 2, 1),
    lambda x: torch.cat([part * 2 for part in x.split([3, 5], dim=1)], dim=1),
    lambda x: x.unfold(1, 4, 2).sum(-1),
    lambda x: x[:, ::3] + x[:, [0, 5, 2]],
    lambda x: torch.einsum("bi,bj->bij", x, x).mean((1,)),
    lambda x: x.var(1, keepdim=True) + x.std(1, keepdim=True) + x.norm(dim=1, keepdim=True),
    lambda x: x.logsumexp(1, keepdim=True) + x.amax(1, keepdim=True) + x.max(1, keepdim=True)[0],
    lambda x: torch.cumsum(x, 1).roll(2, 1).flip(1),
    lambda x: F.pad(x, (1, 2)).tril(1) + F.pad(x.unsqueeze(1), (1, 2), mode="reflect").squeeze(1),
    lambda x: x.gather(1, torch.argmax(x, 1, keepdim=True)),
    lambda x: torch.baddbmm(torch.ones(1, 1, 1), x.view(-1, 2, 4), x.view(-1, 4, 2)),
    lambda x: F.normalize(x, dim=1) + F.cosine_similarity(x, x.flip(1), dim=1).unsqueeze(1),
    lambda x: x.unsqueeze(1).expand(-1, 3, -1).repeat(1, 1, 2).repeat_interleave(2, 1),
    lambda x: torch.index_select(x, 1, torch.tensor([7, 0, 0])).prod(1, keepdim=True),
    lambda x: (x.detach() * x + x.new_zeros(8)).to(torch.float32).contiguous(),
    lambda x: x.masked_fill(~x.new_ones((8, 8), dtype=torch.bool).tril()[3], 0.0),
    lambda x: x[:, x.new_zeros(8, dtype=torch.long)] + x[:, x.new_full((8,), 5, dtype=torch.long)],
    lambda x: torch.where(torch.ones_like(x, dtype=torch.bool), x, -x).masked_fill(torch.zeros_like(x > 0), 9.0),
]


def functions() -> Any:
    return joined(nn.Linear(6, 8), [Lambda(function) for function in _FUNCTIONS], (6,))


def images() -> Any:
    c = nn.Conv2d
    layers = [
        c(8, 5, 3, stride=2, padding=1),
        c(8, 5, (2, 3), stride=(1, 2), padding=(0, 1)),
        c(8, 5, 4, padding="same"),
        c(8, 5, 3, padding=1, padding_mode="reflect"),
        c(8, 5, 3, padding=1, padding_mode="circular"),
        c(8, 5, 3, padding=2, dilation=2),
        c(8, 5, 3, padding=2, dilation=2, stride=2),
        c(8, 8, 3, padding=1, groups=8),
        c(8, 16, 3, stride=2, padding=1, groups=8),
        c(8, 8, 3, padding=2, dilation=2, groups=8),
        c(8, 12, 3, padding=1, groups=4),
        c(8, 4, 1, stride=2),
        nn.ConvTranspose2d(8, 5, 2, stride=2),
        nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 3, dilation=2, padding=1),
    ]
    return joined(c(3, 8, 3, padding=1), layers, (3, 9, 8))


def pooling() -> Any:
    layers = [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((4, 3)),
        nn.AdaptiveMaxPool2d((3, 4)),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample((13, 20), mode="bilinear", align_corners=True),
        nn.Upsample((13, 5), mode="bicubic"),
        nn.PixelShuffle(2),
        nn.ChannelShuffle(2),
        nn.ZeroPad2d((1, 2, 0, 1)),
        nn.ReplicationPad2d((1, 2, 3, 0)),
    ]
    return joined(nn.Conv2d(3, 8, 3, padding=1), layers, (3, 9, 8))


def normalizations() -> Any:
    layers = [
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, momentum=0.4, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.GroupNorm(4, 8),
        nn.InstanceNorm2d(8, affine=True),
        nn.LayerNorm([8, 6, 5]),
        nn.RMSNorm([8, 6, 5]),
        nn.PReLU(8),
    ]
    return joined(nn.Conv2d(3, 8, 3, padding=1), layers, (3, 6, 5))


def sequences() -> Any:
    class TimeLast(nn.Module):  # type: ignore[misc]
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Any) -> Any:
            return self.layer(x.transpose(1, 2))

    convolutions = [
        nn.Conv1d(6, 5, 3, stride=2, padding=1),
        nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(6, 5, 3, dilation=2)),
        nn.Conv1d(6, 12, 3, groups=6),
        nn.ConvTranspose1d(6, 3, 4, stride=2, padding=1),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(3),
        nn.BatchNorm1d(6),
    ]
    recurrent = [
        nn.LSTM(6, 4, batch_first=True),
        nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True),
        nn.LSTM(6, 4, batch_first=True, proj_size=3, bias=False),
        nn.GRU(6, 4, batch_first=True, bidirectional=True),
        nn.RNN(6, 4, batch_first=True, nonlinearity="relu"),
    ]
    branches = [*(TimeLast(layer) for layer in convolutions), *(First(layer) for layer in recurrent)]
    return joined(nn.Linear(5, 6), branches, (6, 5))


class TokenTransformer(nn.Module):  # type: ignore[misc]
    """Embeddings with padding, a table of positions that is not trained, attention with a mask, and a tied head."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8, padding_idx=0)
        self.register_buffer("positions", torch.sin(torch.arange(48.0).view(6, 8)))
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=causal
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight
        self.causal = causal

    def forward(self, tokens: Any) -> Any:
        x = self.tokens(tokens) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(6) if self.causal else None
        x = self.blocks(x, mask=mask, src_key_padding_mask=None if self.causal else tokens == 0)
        return self.head(self.norm(x))


class Long(nn.Module):  # type: ignore[misc]
    """Recurrent layers over more steps than are copied into the graph, the second of them backwards too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        steps, (_, cell) = self.first(x)
        return self.head(self.second(steps + cell[0].unsqueeze(1))[0].mean(1))


class Bags(nn.Module):  # type: ignore[misc]
    """Texts as the mean, the weighed sum, and the largest of their words' vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.largest = nn.EmbeddingBag(11, 4, padding_idx=0), nn.EmbeddingBag(11, 4, mode="max")
        self.sum = nn.EmbeddingBag(11, 4, mode="sum", padding_idx=2)
        self.weights = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Any) -> Any:
        weighed = self.sum(tokens, per_sample_weights=self.weights.expand(tokens.shape[0], -1))
        return self.head(torch.cat([self.mean(tokens), self.largest(tokens), weighed], 1))


class Residual(nn.Module):  # type: ignore[misc]
    """A ResNet's block with a projection, before a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.first, self.norm = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.second, self.other = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.shorter = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        y = self.other(self.second(F.relu(self.norm(self.first(x)))))
        return self.head(F.adaptive_avg_pool2d(F.relu(y + self.shorter(x)), 1).flatten(1))


class Segmentation(nn.Module):  # type: ignore[misc]
    """A U-Net of one level: a class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, 4, 1)

    def forward(self, x: Any) -> Any:
        wide = F.relu(self.down(x))
        deep = F.relu(self.bottom(F.max_pool2d(wide, 2)))
        return self.last(torch.cat([wide, self.up(deep)], dim=1))


def perceptron() -> Any:
    return nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def regressor(outputs: int = 2) -> Any:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs))

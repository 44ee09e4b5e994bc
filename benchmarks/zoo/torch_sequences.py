"""PyTorch over time series, sound and text: recurrent, convolutional and attention nets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.zoo import Module

Build = Callable[[], Module]
TOKENS = {"shape": (32,), "dtype": "int64"}


class _Recurrent(nn.Module):  # type: ignore[misc]
    """The last step's state of a recurrent layer, before a dense one."""

    def __init__(self, layer: Any, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x)[0][:, -1])


class _RecurrentText(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 16, padding_idx=0)
        self.layer, self.head = nn.GRU(16, 24, batch_first=True, bidirectional=True), nn.Linear(48, 4)

    def forward(self, tokens: Any) -> Any:
        _, state = self.layer(self.embedding(tokens))
        return self.head(torch.cat([state[0], state[1]], 1))


class _TemporalBlock(nn.Module):  # type: ignore[misc]
    """Two causal dilated convolutions and a way past them."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.before = 2 * dilation
        self.first = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        self.second = nn.Conv1d(outputs, outputs, 3, dilation=dilation)
        self.past = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Any) -> Any:
        y = F.relu(self.first(F.pad(x, (self.before, 0))))
        y = F.relu(self.second(F.pad(y, (self.before, 0))))
        return F.relu(y + self.past(x))


def _convolutional(*layers: Any, features: int) -> Any:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(features, 4))


def _fcn() -> Any:
    layers: list[Any] = []
    for before, after, kernel in ((1, 32, 8), (32, 64, 5), (64, 32, 3)):
        layers += [nn.Conv1d(before, after, kernel, padding="same"), nn.BatchNorm1d(after), nn.ReLU()]
    return _convolutional(*layers, features=32)


def _activity() -> Any:
    """Human activity from nine channels of a sensor."""
    return nn.Sequential(
        nn.Conv1d(9, 32, 5),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(1856, 64),
        nn.ReLU(),
        nn.Linear(64, 6),
    )


def _keyword_spotting() -> Any:
    """DS-CNN over 49 frames of 10 coefficients: separable convolutions with batch normalization."""
    layers: list[Any] = [nn.Conv2d(1, 32, (10, 4), stride=2, padding=(5, 1)), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        layers += [nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 12))


def _encoder(width: int, layers: int, **options: Any) -> Any:
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, **{"dropout": 0.0, **options})
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class _SeriesTransformer(nn.Module):  # type: ignore[misc]
    """Encoder layers over a series with positions of sines."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(6, 16), _encoder(16, 2), nn.Linear(16, 4)
        angles = torch.arange(32.0)[:, None] * torch.exp(torch.arange(0, 16, 2) * -(math.log(1e4) / 16))
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.first(x) + self.positions).mean(1))


class _DistilBert(nn.Module):  # type: ignore[misc]
    """Words, learnt positions, layers of attention with padding masked; the first word's vector says the class."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, 32, padding_idx=0), nn.Embedding(32, 32)
        self.norm = nn.LayerNorm(32, eps=1e-12)
        self.body = _encoder(32, 2, activation="gelu", layer_norm_eps=1e-12)
        self.first, self.head = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, tokens: Any) -> Any:
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.norm(self.words(tokens) + places)
        x = self.body(x, src_key_padding_mask=tokens == 0)
        return self.head(F.relu(self.first(x[:, 0])))


class _MeanOfWords(nn.Module):  # type: ignore[misc]
    """The mean of the vectors of words that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(1000, 32, padding_idx=0), nn.Linear(32, 4)

    def forward(self, tokens: Any) -> Any:
        mask = (tokens != 0).to(torch.float32).unsqueeze(-1)
        return self.head((self.words(tokens) * mask).sum(1) / mask.sum(1).clamp(min=1.0))


class _AttentionPooling(nn.Module):  # type: ignore[misc]
    """A learnt weight for each step of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.score = nn.LSTM(6, 24, batch_first=True), nn.Linear(24, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Any) -> Any:
        steps, _ = self.layer(x)
        return self.head((torch.softmax(self.score(torch.tanh(steps)), 1) * steps).sum(1))


class _Bag(nn.Module):  # type: ignore[misc]
    """The text classifier of PyTorch's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(1000, 32, padding_idx=0), nn.Linear(32, 4)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.bag(tokens))


MODELS: dict[str, Build] = {
    "torch_lstm_40": lambda: Module(_Recurrent(nn.LSTM(6, 32, batch_first=True), 32), (40, 6)),
    "torch_gru_40": lambda: Module(_Recurrent(nn.GRU(6, 32, batch_first=True), 32), (40, 6)),
    "torch_bidirectional_gru_30": lambda: Module(
        _Recurrent(nn.GRU(6, 16, batch_first=True, bidirectional=True), 32), (30, 6)
    ),
    "torch_two_lstms_30": lambda: Module(_Recurrent(nn.LSTM(6, 24, 2, batch_first=True), 24), (30, 6)),
    "torch_text_gru": lambda: Module(_RecurrentText(), TOKENS),
    "torch_tcn": lambda: Module(
        _convolutional(_TemporalBlock(4, 16, 1), _TemporalBlock(16, 16, 2), _TemporalBlock(16, 16, 4), features=16),
        (4, 128),
    ),
    "torch_fcn_200": lambda: Module(_fcn(), (1, 200)),
    "torch_activity_cnn": lambda: Module(_activity(), (9, 128)),
    "torch_keyword_spotting": lambda: Module(_keyword_spotting(), (1, 49, 10)),
    "torch_series_transformer": lambda: Module(_SeriesTransformer(), (32, 6)),
    "torch_distilbert": lambda: Module(_DistilBert(), TOKENS),
    "torch_embedding_bag": lambda: Module(_Bag(), TOKENS),
    "torch_mean_of_words": lambda: Module(_MeanOfWords(), TOKENS),
    "torch_attention_pooling": lambda: Module(_AttentionPooling(), (30, 6)),
}

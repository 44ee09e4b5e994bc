"""PyTorch modules that cannot be trained on a device: what `fedgrass.export` would be called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Build = Callable[[], dict[str, Any]]


class _Function(nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class _Packed(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Any) -> Any:
        lengths = torch.full((x.shape[0],), 5)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.layer(packed)[1][0][-1])


class _Unpooled(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool, self.up = nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Any) -> Any:
        return self.up(*self.pool(self.down(x)))


def _within(body: Any, **others: Any) -> dict[str, Any]:
    """Put it between two dense layers of eight."""
    body = body if isinstance(body, nn.Module) else _Function(body)
    return _net(nn.Linear(8, 8), body, **{"input": (8,), **others})


def _net(*layers: Any, **others: Any) -> dict[str, Any]:
    return {"model": nn.Sequential(*layers), "loss": "mse_loss", **others}


def _branch(x: Any) -> Any:
    return x * 2 if x.sum() > 0 else x


MODELS: dict[str, Build] = {
    "torch_branch_on_data": lambda: _within(_branch),
    "torch_boolean_index": lambda: _within(lambda x: x[x > 0]),
    "torch_fft": lambda: _within(torch.fft.rfft),
    "torch_complex": lambda: _within(lambda x: torch.view_as_real(torch.complex(x, x))),
    "torch_sort": lambda: _within(lambda x: torch.sort(x, 1)[0]),
    "torch_half": lambda: _within(lambda x: x.half().float()),
    "torch_float64": lambda: _net(nn.Linear(8, 2).double(), input=(8,)),
    "torch_rrelu": lambda: _within(nn.RReLU()),
    "torch_cumulative_batch_norm": lambda: _within(nn.BatchNorm1d(8, momentum=None)),
    "torch_linalg_inverse": lambda: _within(lambda x: torch.linalg.inv(x.view(-1, 2, 4) @ x.view(-1, 4, 2)).flatten(1)),
    "torch_conv3d": lambda: _net(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(128, 2), input=(1, 6, 6, 6)),
    "torch_packed_sequence": lambda: {"model": _Packed(), "loss": "mse_loss", "input": (5, 4)},
    "torch_unpooling": lambda: {"model": _Unpooled(), "loss": "mse_loss", "input": (1, 10, 10)},
    "torch_all_frozen": lambda: _net(nn.Linear(8, 2).requires_grad_(False), input=(8,)),
    "torch_label_smoothing": lambda: _net(nn.Linear(8, 2), input=(8,), loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "torch_class_weights": lambda: _net(nn.Linear(8, 2), input=(8,), loss=nn.CrossEntropyLoss(weight=torch.ones(2))),
    "torch_ctc": lambda: _net(nn.Linear(8, 2), input=(8,), loss=nn.CTCLoss()),
    "torch_triplet": lambda: _net(nn.Linear(8, 2), input=(8,), loss=nn.TripletMarginLoss()),
    "torch_without_input": lambda: _net(nn.Linear(8, 2)),
    "torch_sum_of_batch": lambda: _within(lambda x: x.sum()),
    "torch_lists": lambda: _within(lambda x: (x, 2)),
}

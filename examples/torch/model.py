"""A PyTorch net for scikit-learn's handwritten digits, which devices train without PyTorch.

The images come as [8, 8, 1], as any engine's data do: ``permute`` to channels first costs nothing in the exported graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

EXPORT = {
    "input": (8, 8, 1),
    "loss": "CrossEntropyLoss",
    "batch_size": 16,
    "class_names": tuple("0123456789"),
}
"""What else would be options of ``fedgrass model export``."""


class Digits(nn.Module):  # type: ignore[misc]
    """One convolution and two dense layers; gives logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 3, padding=1)
        self.hidden = nn.Linear(24 * 4 * 4, 64)
        self.digit = nn.Linear(64, 10)

    def forward(self, image: Any) -> Any:
        """Map images [B, 8, 8, 1] to logits [B, 10]."""
        x = torch.relu(self.conv(image.permute(0, 3, 1, 2)))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.digit(torch.relu(self.hidden(x)))


def build_model() -> Any:
    """Return the untrained module; the same weights each time."""
    torch.manual_seed(1)
    return Digits()

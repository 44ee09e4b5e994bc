"""Part of the stand-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


class Compose:
    """One after the other."""

    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self._steps = steps

    def __call__(self, image: Any) -> Any:
        """Return the image after all steps."""
        for step in self._steps:
            image = step(image)
        return image


class ToTensor:
    """Channels first, from 0 to 1."""

    def __call__(self, image: Any) -> Any:
        """Return a float tensor."""
        pixels = np.asarray(image, np.float32) / 255
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0).copy())


class Normalize:
    """Less the mean, over the deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = (torch.tensor(one)[:, None, None] for one in (mean, std))

    def __call__(self, image: Any) -> Any:
        """Return the image."""
        return (image - self._mean) / self._std


class _Same:
    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        return

    def __call__(self, image: Any) -> Any:
        return image


RandomCrop = RandomHorizontalFlip = _Same

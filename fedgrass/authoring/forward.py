"""What a model's forward pass gives to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import tensorflow as tf

Tensor: TypeAlias = "tf.Tensor"


@dataclass(frozen=True)
class Forwarded:
    """What the loss takes, the new statistics, losses beside the loss (regularization), and a mask.

    ``logits`` is [B, …]; ``mask`` [B, positions …] says which of its positions count; none: all. ``penalties`` are scalars.
    """

    logits: Tensor
    statistics: Sequence[Tensor] = ()
    penalties: Sequence[Tensor] = ()
    mask: Tensor | None = None

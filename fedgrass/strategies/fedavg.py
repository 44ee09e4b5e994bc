"""FedAvg: the weighted mean."""

from __future__ import annotations

from dataclasses import dataclass

from fedgrass.strategies.base import MeanStrategy


@dataclass(frozen=True)
class FedAvg(MeanStrategy):
    """Weighted mean of the updates.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    https://arxiv.org/abs/1602.05629
    """


strategy = FedAvg

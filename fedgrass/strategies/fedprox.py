"""FedProx: the weighted mean, of devices that are kept near the base."""

from __future__ import annotations

from dataclasses import dataclass

from fedgrass.strategies.base import MeanStrategy


@dataclass(frozen=True)
class FedProx(MeanStrategy):
    """Weighted mean; the proximal term is the devices' (``fit.proximal_mu``).

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127
    """


strategy = FedProx

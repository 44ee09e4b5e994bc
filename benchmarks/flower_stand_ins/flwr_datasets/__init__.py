"""Stand-in for ``flwr_datasets``: each partition is other made-up examples."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, made_up


class FederatedDataset:
    """A data set in partitions."""

    def __init__(self, *, dataset: str, partitioners: Any = None, **_more: Any) -> None:
        self._name = dataset
        self.partitioners = partitioners

    def load_partition(self, partition_id: int, split: str | None = None) -> Dataset:
        """Return a partition."""
        del split
        return made_up(self._name, 100 + partition_id)

    def load_split(self, split: str) -> Dataset:
        """Return a part that is not partitioned."""
        return made_up(self._name, len(split))

"""Training data on a device: loaders by name, and the split that keeps some for admission."""

from fedgrass.data.arrays import ArrayDataset, Source, Split, divide, split
from fedgrass.data.loaders import count, load
from fedgrass.data_settings import DataSettings

__all__ = ["ArrayDataset", "DataSettings", "Source", "Split", "count", "divide", "load", "split"]

"""The images loader: a folder with one folder of images for each class.

A batch is in memory.
"""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.images import ImageFolder
from fedgrass.data.loaders import needed_path
from fedgrass.data_settings import DataSettings


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Open the folder."""
    return ImageFolder(needed_path(settings), manifest, settings)


loader = load

"""The sounds loader: a folder with one folder of WAV files for each class.

A batch is in memory.
"""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.class_folder import ClassFolder, refuse_several
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.sounds import SUFFIXES, Sounds
from fedgrass.data_settings import DataSettings


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Open the folder."""
    folder = needed_path(settings)
    refuse_several(f"data {folder}", manifest, "a sound")
    return ClassFolder(folder, manifest, settings, Sounds(manifest, f"data {folder}"))


loader = FileLoader(load, contents=SUFFIXES)

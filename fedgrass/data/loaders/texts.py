"""The texts loader: a folder with one folder of text files for each class, by the bundle's vocabulary.

A batch is in memory. Texts in a column are read by the loaders of tables.
"""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.class_folder import ClassFolder, refuse_several
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.texts import SUFFIXES, TextFiles
from fedgrass.data_settings import DataSettings


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Open the folder."""
    folder = needed_path(settings)
    refuse_several(f"data {folder}", manifest, "a text")
    return ClassFolder(folder, manifest, settings, TextFiles(manifest, settings, f"data {folder}"))


loader = FileLoader(load, contents=SUFFIXES)

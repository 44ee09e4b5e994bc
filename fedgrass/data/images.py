"""Examples from a folder of images, one folder for each class; an image is read when its turn comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Indices
from fedgrass.engines.base import Batch
from fedgrass.errors import DataError
from fedgrass.tensors import Array

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_PIXELS = 64 << 20
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFolder:
    """``<folder>/<class>/<image>`` as examples: x scaled to the model's size and to 0..1, y the number of the class.

    Classes are numbered as in the manifest; where it names none, in the order of the folders' names.

    Raises
    ------
    DataError
        If the model takes no images or classes, Pillow is not installed, or the folder is not as described.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._image = _pillow()
        shape = manifest.x.shape
        if len(shape) != 3 or shape[2] not in _MODES or manifest.y.shape != ():
            raise DataError(
                f"data {folder}: model {manifest.name!r} takes x {list(shape)} and y {list(manifest.y.shape)}; images need "
                "x [height, width, 1, 3 or 4] and a class number for y"
            )
        self._manifest = manifest
        if not folder.is_dir():
            raise DataError(f"data {folder}: is no folder; expected one folder of images for each class in it")
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        classes = list(manifest.class_names) or found
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise DataError(
                f"data {folder}: folder {unknown[0]!r} is none of the model's classes {', '.join(classes[:10])}"
            )
        self._files = [
            (file, classes.index(name))
            for name in found
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in SUFFIXES
        ]
        if not self._files:
            raise DataError(f"data {folder}: no images ({', '.join(SUFFIXES)}) in folders of classes")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Indices) -> Batch:
        """Decode these images; see `fedgrass.data.arrays.Source`."""
        chosen = [self._files[index] for index in indices]
        x = np.stack([self._pixels(file) for file, _ in chosen])
        return Batch(x.astype(self._manifest.x.dtype), np.array([label for _, label in chosen], self._manifest.y.dtype))

    def _pixels(self, file: Path) -> Array:
        height, width, channels = self._manifest.x.shape
        try:
            with self._image.open(file) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise DataError(
                        f"data {file}: {image.width}×{image.height} pixels; at most {_MOST_PIXELS} are decoded"
                    )
                fitted = image.convert(_MODES[channels]).resize((width, height), self._image.Resampling.BILINEAR)
                pixels: Array = np.asarray(fitted, np.float32).reshape(height, width, channels)
        except (OSError, SyntaxError, ValueError, self._image.DecompressionBombError) as error:
            raise DataError(f"data {file}: is no readable image ({error})") from error
        return np.asarray(pixels / np.float32(255))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("data loader images: Pillow is not installed; pip install 'fedgrass[images]'") from error
    return Image

"""One image file as the model's x: turned as its camera was held, fitted, and between the model's black and white."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.rows import limits
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError
from fedgrass.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
UNREAD = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".eps", ".heic", ".heics", ".heif", ".jxl"),
    *(".nef", ".orf", ".psd", ".raf", ".raw", ".rw2", ".svg"),
)
"""Images that are not read; they are counted as bad, and not overlooked."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_FORMATS = ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
# 64 million pixels, some 200 MB as RGB: a small file may claim any size (a decompression bomb).
_MOST_PIXELS = 64 << 20
_WIDE = ("I", "F")
# What white may be in images of more than 8 bits.
_RANGES = (1.0, 255.0, 65535.0)


class Pixels:
    """Reads images for one model.

    Raises
    ------
    DataError
        If Pillow is not installed, or the model takes no images.
    """

    unit = "images"
    suffixes = SUFFIXES
    unread = UNREAD

    def __init__(self, manifest: Manifest, settings: DataSettings, what: str) -> None:
        self._pillow, self._ops = _pillow()
        shape = manifest.x.shape
        if len(shape) != 3 or shape[2] not in MODES:
            raise DataError(
                f"{what}: model {manifest.name!r} takes x {list(shape)} and y {list(manifest.y.shape)}; images need "
                "x [height, width, 1, 3 or 4] and a class number for y"
            )
        self._shape = shape
        self._dtype = np.dtype(manifest.x.dtype)
        self._black, self._white = _ends(manifest, settings, what)

    def read(self, file: Path) -> Array:
        """Return x [height, width, channels] in the model's dtype; raises `DataError` if the file is not such an image."""
        height, width, _ = self._shape
        with _decoding(file), self._opened(file) as image:
            self._require_one(image, file)
            # Cameras store how they were held; a model was trained on upright pictures.
            turned = self._ops.exif_transpose(image)
            values = self._wide(turned, file) if turned.mode.startswith(_WIDE) else self._narrow(turned)
        # Grey goes into each channel of a colour model.
        values = np.broadcast_to(values.reshape(height, width, -1), self._shape)
        scaled = self._black + values * np.float32(self._white - self._black)
        return np.asarray(scaled if self._dtype.kind == "f" else np.rint(scaled), self._dtype)

    def _narrow(self, image: Image) -> Array:
        """Return an image of 8 bits as 0..1."""
        height, width, channels = self._shape
        # Converted directly, a palette's transparent colour would become an ordinary one.
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        fitted = image.convert(MODES[channels]).resize((width, height), self._pillow.Resampling.BILINEAR)
        return np.asarray(np.asarray(fitted, np.float32) / np.float32(255))

    def _wide(self, image: Image, file: Path) -> Array:
        """Return a grey image of more than 8 bits as 0..1, by the range that its values are from."""
        height, width, channels = self._shape
        values = np.asarray(image, np.float32)
        whole = image.mode != "F"
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > _RANGES[-1]:
            raise DataError(
                f"data {file}: values from {values.min():g} to {values.max():g}; an image of more than 8 bits has 0 to 65535, "
                "or is float of 0 to 1 or 0 to 255"
            )
        # Whole numbers are of the full range, so that a dark image stays dark; floats have no range of their own.
        most = _RANGES[-1] if whole else next(most for most in _RANGES if values.max() <= most)
        grey = self._pillow.fromarray(values / np.float32(most)).resize(
            (width, height), self._pillow.Resampling.BILINEAR
        )
        fitted = np.clip(np.asarray(grey, np.float32), 0, 1)[..., np.newaxis]
        if channels == 4:
            return np.concatenate([np.broadcast_to(fitted, (height, width, 3)), np.ones_like(fitted)], axis=-1)
        return fitted

    def _opened(self, file: Path) -> Image:
        if file.suffix.lower() in UNREAD:
            raise DataError(f"data {file}: {file.suffix[1:].upper()} is not read; convert it to JPEG or PNG")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own bound, which is wider than ours
            return self._pillow.open(file, formats=self._formats)

    @staticmethod
    def _require_one(image: Image, file: Path) -> None:
        """Refuse what is too large, or several pictures, before it is decoded; a camera's MPO has its picture first."""
        if image.width * image.height > _MOST_PIXELS:
            raise DataError(f"data {file}: {image.width}×{image.height} pixels; at most {_MOST_PIXELS} are decoded")
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) != 1:
            raise DataError(f"data {file}: has {frames} pictures, as an animation or pages; expected one")

    @property
    def _formats(self) -> list[str]:
        """What Pillow may take a file for: not, say, what it would have another program draw."""
        self._pillow.init()
        return [name for name in _FORMATS if name in self._pillow.OPEN]


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    """Say of which file it is that it cannot be decoded."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise whatever comes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"data {file}: is no readable image ({reason})") from error


def _ends(manifest: Manifest, settings: DataSettings, what: str) -> tuple[float, float]:
    """Return what black and white are to the model."""
    if settings.pixels:
        low, _, high = settings.pixels.partition("..")
        try:
            black, white = float(low), float(high)
        except ValueError:
            black = white = math.nan
        return _two_ends(black, white, manifest, f"{what}: pixels is {settings.pixels!r}")
    if manifest.data.pixels is not None:
        black, white = manifest.data.pixels
        return _two_ends(black, white, manifest, f"the model's data.pixels is {black:g}..{white:g}")
    if np.dtype(manifest.x.dtype).kind == "f":
        return 0.0, 1.0
    low_end, high_end = limits(manifest.x.dtype)
    # Wider integers hold pixels of 8 bits as they are.
    return (low_end, high_end) if high_end - low_end <= 255 else (0.0, 255.0)


def _two_ends(black: float, white: float, manifest: Manifest, said: str) -> tuple[float, float]:
    """Refuse what would make all pixels alike, or wrap around in the model's dtype."""
    if not (math.isfinite(black) and math.isfinite(white) and black != white):
        raise DataError(f"{said}; expected black..white, two numbers that differ, such as 0..255")
    if np.dtype(manifest.x.dtype).kind != "f":
        least, most = limits(manifest.x.dtype)
        if not least <= min(black, white) <= max(black, white) <= most:
            raise DataError(f"{said}; the model takes {manifest.x.dtype}, so from {least:g} to {most:g}")
    return black, white


def _pillow() -> tuple[ModuleType, ModuleType]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("data loader images: Pillow is not installed; pip install 'fedgrass[images]'") from error
    return Image, ImageOps

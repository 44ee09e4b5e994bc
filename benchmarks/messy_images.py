"""Folders of images as they lie on devices; see `benchmarks.messy`."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.messy import Case, model
from fedgrass.bundle import DataDescription

CLASSES = ("cat", "dog")
GREY = model((2, 3, 1), classes=CLASSES)
COLOUR = model((2, 3, 3), classes=CLASSES)
BYTES = model((2, 3, 1), classes=CLASSES, dtypes=("uint8", "int32"))
SIGNED = model((2, 3, 1), classes=CLASSES, dtypes=("int8", "int32"))
RESCALING = model((2, 3, 1), classes=CLASSES, data=DataDescription(pixels=(0, 255)))
CENTRED = model((2, 3, 1), classes=CLASSES, data=DataDescription(pixels=(-1, 1)))
SIGMOID = model((2, 3, 1), (1,), classes=CLASSES, loss="binary_crossentropy", dtypes=("float32", "float32"))
ONE_HOT = model((2, 3, 1), (2,), classes=CLASSES, loss="categorical_crossentropy", dtypes=("float32", "float32"))
AUTOENCODER = model((2, 3, 1), (2, 3, 1), loss="mean_squared_error", dtypes=("float32", "float32"))

Draw = Callable[[Path], Any]


def array(values: Any, dtype: str = "uint8", **options: Any) -> Draw:
    """Return what writes these pixels."""

    def write(path: Path) -> None:
        from PIL import Image

        Image.fromarray(np.array(values, dtype)).save(path, **options)

    return write


def made(mode: str, colour: Any, **options: Any) -> Draw:
    """Return what writes an image of one colour."""

    def write(path: Path) -> None:
        from PIL import Image

        Image.new(mode, (3, 2), colour).save(path, **options)

    return write


def content(data: bytes) -> Draw:
    """Return what writes these bytes."""
    return lambda path: path.write_bytes(data)


def turned(path: Path) -> None:
    """Write an image that its EXIF says to turn: stored 2 wide and 3 high, shown 3 wide and 2 high."""
    from PIL import Image

    exif = Image.Exif()
    # The tag Orientation; 6: turn by a quarter, clockwise.
    exif[0x0112] = 6
    Image.fromarray(np.array([[0, 255], [51, 204], [102, 153]], "uint8")).save(path, exif=exif)


def several(path: Path) -> None:
    """Write an animation, or a file of pages."""
    from PIL import Image

    frames = [Image.new("L", (3, 2), shade) for shade in (10, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def palette(path: Path) -> None:
    """Write an image whose pixels are numbers of colours."""
    from PIL import Image

    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.save(path)


def cut(path: Path) -> None:
    """Write half a JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    # Noise hardly packs: half of the file then holds half of the picture.
    Image.effect_noise((64, 64), 90).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


def bomb(path: Path) -> None:
    """Write a PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (60_000).to_bytes(4, "big")
    # 8 bits, grey, and none of PNG's options.
    head = chunk(b"IHDR", size + size + b"\x08\x00\x00\x00\x00")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


def folder(files: Mapping[str, Draw]) -> Draw:
    """Return what writes files, by their paths."""

    def write(path: Path) -> None:
        for name, draw in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            draw(path / name)

    return write


def many(name: str, draw: Draw) -> Draw:
    """Return what writes a file beside twenty good ones."""
    return folder({**{f"cat/{i}.png": array(PIXELS) for i in range(20)}, name: draw})


PIXELS = [[0, 51, 102], [153, 204, 255]]
# The same pixels as a model of 0 to 1 takes them.
UNIT: list[Any] = [[[0], [0.2], [0.4]], [[0.6], [0.8], [1]]]
RED = np.broadcast_to([1.0, 0.0, 0.0], (2, 3, 3)).tolist()


def case(name: str, draw: Draw, x: Any = None, y: Any = None, **options: Any) -> Case:
    """Return a case of the images loader."""
    return Case(name, draw, x, y, suffix="", loader="images", **{"model": GREY, **options})


def one(draw: Draw, suffix: str = "png") -> Draw:
    """Return what writes one image, of a dog."""
    return folder({f"dog/a.{suffix}": draw})


IMAGES = [
    case("PNG, 8 bits", one(array(PIXELS)), [UNIT], [1]),
    case("upper-case suffix", one(array(PIXELS), "PNG"), [UNIT], [1]),
    case("a uint8 model takes bytes", one(array(PIXELS)), [np.array(PIXELS)[..., None]], [1], model=BYTES),
    case("an int8 model", one(array(PIXELS)), [np.array(PIXELS)[..., None] - 128], [1], model=SIGNED),
    case(
        "a model that rescales itself",
        one(array(PIXELS)),
        [np.array(PIXELS)[..., None]],
        [1],
        model=RESCALING,
        tolerance=1e-4,
    ),
    case("a model of -1 to 1", one(array(PIXELS)), [np.array(UNIT) * 2 - 1], [1], model=CENTRED, tolerance=1e-6),
    case(
        "pixels from the settings",
        one(array(PIXELS)),
        [np.array(PIXELS)[..., None]],
        [1],
        settings={"pixels": "0..255"},
        tolerance=1e-4,
    ),
    # 257 is 65535 / 255: white stays white.
    case("16 bits", one(array(np.array(PIXELS) * 257, "uint16")), [UNIT], [1], tolerance=1e-6),
    case("16 bits, TIFF", one(array(np.array(PIXELS) * 257, "uint16"), "tif"), [UNIT], [1], tolerance=1e-6),
    case(
        "16 bits to colour",
        one(array(np.array(PIXELS) * 257, "uint16")),
        [np.repeat(UNIT, 3, axis=-1)],
        [1],
        model=COLOUR,
        tolerance=1e-6,
    ),
    case("float of 0 to 1, TIFF", one(array(np.array(PIXELS) / 255, "float32"), "tiff"), [UNIT], [1], tolerance=1e-6),
    case("float of 0 to 255, TIFF", one(array(PIXELS, "float32"), "tiff"), [UNIT], [1], tolerance=1e-6),
    case("float below zero, TIFF", one(array([[-1, 0, 1]], "float32"), "tiff"), refused="values from -1"),
    case("turned by EXIF", one(turned, "png"), [[[[0.4], [0.2], [0]], [[0.6], [0.8], [1]]]], [1], tolerance=1e-6),
    case("1 bit", one(made("1", 1)), [np.ones((2, 3, 1))], [1]),
    case("a palette", one(palette), [RED], [1], model=COLOUR),
    case("with alpha", one(made("RGBA", (255, 0, 0, 255))), [RED], [1], model=COLOUR),
    case("grey with alpha", one(made("LA", (255, 255))), [np.ones((2, 3, 1))], [1]),
    case("CMYK, TIFF", one(made("CMYK", (0, 255, 255, 0)), "tif"), [RED], [1], model=COLOUR),
    # Of several pictures none is the example.
    case("an animated GIF", many("dog/a.gif", several), [UNIT] * 20, [0] * 20, trouble="2 pictures"),
    case("pages of a TIFF", one(several, "tif"), refused="2 pictures"),
    # Pillow reads HEIC only with a plug-in.
    case("HEIC", many("dog/a.HEIC", content(b"....ftypheic")), [UNIT] * 20, [0] * 20, trouble="HEIC is not read"),
    case("raw of a camera", one(content(b"II*"), "dng"), refused="DNG is not read"),
    case("cut short", many("dog/a.jpg", cut), [UNIT] * 20, [0] * 20, trouble="is no readable image"),
    case("empty", many("dog/a.png", content(b"")), [UNIT] * 20, [0] * 20, trouble="is no readable image"),
    case("a web page called PNG", one(content(b"<html>")), refused="is no readable image"),
    # Pillow would hand PostScript to Ghostscript, which runs it as a program.
    case(
        "PostScript called PNG",
        one(content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        refused="is no readable image",
    ),
    case(
        "a JPEG called PNG",
        folder({"dog/a.png": made("L", 255, format="JPEG")}),
        [np.ones((2, 3, 1))],
        [1],
        tolerance=0.01,
    ),
    case("a decompression bomb", one(bomb), refused="pixels"),
    case(
        "more bad ones than the share",
        folder({"cat/a.png": array(PIXELS), "cat/b.png": content(b"")}),
        refused="1 of 2 images are bad",
    ),
    case(
        "what macOS leaves",
        folder(
            {
                "dog/a.png": array(PIXELS),
                "dog/._a.png": content(b"\0"),
                "dog/.DS_Store": content(b"\0"),
                "__MACOSX/dog/._a.png": content(b""),
            }
        ),
        [UNIT],
        [1],
    ),
    case("folders in a class's folder", folder({"dog/x/y/a.png": array(PIXELS)}), [UNIT], [1]),
    case("other files beside them", folder({"dog/a.png": array(PIXELS), "dog/notes.txt": content(b"x")}), [UNIT], [1]),
    case("no class names", one(array(PIXELS)), refused="class_names", model=model((2, 3, 1))),
    case(
        "a class of another's",
        folder({"cow/a.png": array(PIXELS)}),
        refused="'cow' is none of the model's classes cat, dog",
    ),
    case("a class in capitals", folder({"DOG/a.png": array(PIXELS)}), [UNIT], [1]),
    case("a sigmoid's label", one(array(PIXELS)), [UNIT], [[1]], model=SIGMOID),
    case("one-hot", one(array(PIXELS)), [UNIT], [[0, 1]], model=ONE_HOT),
    case(
        "an autoencoder, no classes",
        folder({"a.png": array(PIXELS), "x/b.png": array(PIXELS)}),
        [UNIT] * 2,
        [UNIT] * 2,
        model=AUTOENCODER,
    ),
    case(
        "the newest alone",
        folder({"cat/a.png": array(PIXELS), "dog/b.png": array(PIXELS)}),
        [UNIT],
        [1],
        settings={"window_rows": 1},
    ),
    case("no images", folder({"dog/notes.txt": content(b"x")}), refused="no images"),
]

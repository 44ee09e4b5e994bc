"""Texts, sounds and JSON lines as they lie on devices; see `benchmarks.messy`."""

from __future__ import annotations

import gzip
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.messy import AUTOENCODER, GOOD, MANY, MANY_X, MANY_Y, NAMED, NAMED_WORDS, Case, X, Y, model
from fedgrass.bundle import DataDescription, Manifest

VOCABULARY = ("", "[UNK]", "good", "bad", "film", "dont", "café")


def _words(vocabulary: tuple[str, ...] = VOCABULARY, *, columns: tuple[str, ...] = (), label: str = "") -> Manifest:
    data = DataDescription(vocabulary=vocabulary, columns=columns, labels=(label,) if label else ())
    return model((4,), classes=("neg", "pos"), dtypes=("int32", "int32"), data=data)


WORDS = _words()
NAMED_TEXT = _words(columns=("text",), label="mood")
BAD, GOOD_FILM = [3, 0, 0, 0], [2, 4, 0, 0]


def files(**contents: Any) -> Callable[[Path], None]:
    """Write a folder: a keyword ``pos__a_txt`` is the file pos/a.txt."""

    def write(path: Path) -> None:
        for name, content in contents.items():
            file = path / name.replace("__", "/").replace("_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(file)
            else:
                file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def _folder(name: str, content: Callable[[Path], None], x: Any = None, y: Any = None, **more: Any) -> Case:
    return Case(name, content, x, y, **{"model": WORDS, "loader": "texts", "suffix": "", **more})


def _column(name: str, content: str | bytes, x: Any = None, y: Any = None, **more: Any) -> Case:
    return Case(f"texts, {name}", content, x, y, **{"model": WORDS, **more})


TWO = files(neg__a_txt="bad", pos__b_txt="Good film!\n")
TEXTS = [
    _folder("a folder of texts", TWO, [BAD, GOOD_FILM], [0, 1]),
    _folder(
        "longer than the model, and unknown words", files(pos__a_txt="A good, GOOD film: don't!"), [[1, 2, 2, 4]], [1]
    ),
    _folder("an apostrophe and an accent", files(pos__a_txt="don't café"), [[5, 6, 0, 0]], [1]),
    _folder("Latin-1", files(pos__a_txt="café café".encode("latin-1")), [[6, 6, 0, 0]], [1]),
    _folder("UTF-16", files(pos__a_txt="good".encode("utf-16")), [[2, 0, 0, 0]], [1]),
    _folder("a byte order mark", files(pos__a_txt=b"\xef\xbb\xbfgood"), [[2, 0, 0, 0]], [1]),
    _folder("what macOS leaves", files(**{"pos__a_txt": "bad", "pos___DS_Store": "x", "pos__.a_txt": "x"}), [BAD], [1]),
    _folder("an empty text", files(pos__a_txt="good", pos__b_txt=" \n"), refused="has no words"),
    _folder(
        "an empty one of twenty",
        files(pos__b_txt="", **{f"neg__{i}_txt": "bad" for i in range(20)}),
        [BAD] * 20,
        [0] * 20,
        trouble="1 of 21 texts left out",
    ),
    _folder("a binary file", files(pos__a_txt=b"\x00\x01\x02good\x00"), refused="no text"),
    _folder("a PDF", files(pos__a_pdf=b"%PDF"), refused="PDF is not read"),
    _folder("a PDF called .txt", files(pos__a_txt=b"%PDF-1.7"), refused="is a PDF"),
    _folder("a folder that is no class", files(so__a_txt="bad"), refused="'so' is none of the model's classes"),
    _folder("no texts", files(pos__a_csv="bad"), refused="no texts"),
    _folder(
        "a model without vocabulary", TWO, refused="has no vocabulary", model=model((4,), dtypes=("int32", "int32"))
    ),
    _folder("a vocabulary without padding", TWO, refused="no line for padding", model=_words(("good", "[UNK]"))),
    _folder("a vocabulary without unknown words", TWO, refused="no line for unknown", model=_words(("<pad>", "good"))),
    _folder(
        "a vocabulary with capitals", TWO, [[1, 0, 0, 0], [2, 1, 0, 0]], [0, 1], model=_words(("", "[UNK]", "Good"))
    ),
    _column("a table", "text,mood\ngood film,pos\nbad,neg\n", [GOOD_FILM, BAD], [1, 0]),
    _column("quoted, over lines", 'text,mood\n"Good,\nfilm",pos\n', [GOOD_FILM], [1]),
    _column("no header", "good film,pos\nbad,neg\n", [GOOD_FILM, BAD], [1, 0]),
    _column("numbers of classes, tabs", "bad\t0\ngood\t1\n", [BAD, [2, 0, 0, 0]], [0, 1]),
    _column("a hash tag", "text,mood\n#good film,pos\nbad,neg\n", [GOOD_FILM, BAD], [1, 0]),
    _column("named columns among others", "id,mood,text\n7,pos,good film\n", [GOOD_FILM], [1], model=NAMED_TEXT),
    _column("others, and no names", "id,mood,text\n7,pos,good film\n", refused="3 columns"),
    _column(
        "the label first, no header",
        "pos\tgood film\nneg\tbad\n",
        [GOOD_FILM, BAD],
        [1, 0],
        settings={"columns": "2", "label": "1"},
    ),
    _column("an empty one", "text,mood\n,pos\n", refused="row 2, column 'text': has no words in it"),
    _column(
        "an empty one, left out",
        "text,mood\n,pos\nbad,neg\n",
        [BAD],
        [0],
        settings={"missing": "skip"},
        trouble="1 rows",
    ),
    _column("1,5 and 2.5 in texts", 'text,mood\n"1,5",pos\n2.5,neg\n', [[1, 0, 0, 0]] * 2, [1, 0]),
    _column("an unknown label", "text,mood\ngood,so\n", refused="'so' is not a number or one of neg, pos"),
    _column(
        "JSON lines",
        '{"text": "Good film", "id": 3, "mood": "pos"}\n{"mood": "neg", "text": "bad"}\n',
        [GOOD_FILM, BAD],
        [1, 0],
        loader="jsonl",
        model=NAMED_TEXT,
    ),
]

LINES = '{"a": 1, "state": 0, "b": 10}\n{"b": 20, "a": 2.5, "state": 1}\n{"a": 3, "b": 30, "state": 2}\n'
MANY_LINES = "".join(f'{{"a": {i}, "b": {i}, "state": {i % 3}}}\n' for i in range(40))


def _lines(name: str, content: str | bytes | Callable[[Path], None], x: Any = None, y: Any = None, **more: Any) -> Case:
    return Case(name, content, x, y, **{"model": NAMED, "loader": "jsonl", "suffix": ".jsonl", **more})


JSON = [
    _lines("JSON lines, keys in any order", LINES, X, Y),
    _lines("no names", LINES, refused="no order", model=model()),
    _lines("packed", gzip.compress(LINES.encode()), X, Y, suffix=".jsonl.gz"),
    _lines("UTF-16", LINES.encode("utf-16"), X, Y),
    _lines(
        "words, null and others",
        '{"a":1,"b":10,"state":"ok","t":null}\n\n{"a":null,"b":1,"state":"worn"}\n',
        X[:1],
        [0],
        model=NAMED_WORDS,
        settings={"missing": "skip"},
        trouble="1 rows with a missing value",
    ),
    _lines("a key is missing", '{"a": 1, "b": 10, "state": 0}\n{"a": 1, "state": 0}\n', refused="missing value"),
    _lines("a key is missing in all", '{"a": 1, "state": 0}\n', refused="lacks column 'b'"),
    _lines("a line cut while being written", LINES + '{"a": 4, "b"', X, Y),
    _lines(
        "a broken line of forty", MANY_LINES + '{"a": 4, "b"\n', MANY_X, MANY_Y, trouble="row 41: is no JSON object"
    ),
    _lines(
        "text for a number",
        MANY_LINES + '{"a":"cold","b":1,"state":0}\n',
        MANY_X,
        MANY_Y,
        trouble="row 41, column 'a': 'cold'",
    ),
    _lines("NaN", '{"a": NaN, "b": 1, "state": 0}\n', refused="missing value"),
    _lines("infinite", '{"a": Infinity, "b": 1, "state": 0}\n', refused="not finite"),
    _lines("a JSON array", '[{"a": 1}]\n', refused="is a JSON array, expected an object"),
    _lines("an object over lines", '{\n"a": 1\n}\n', refused="has to hold a whole one"),
    _lines("nested too deep", '{"a":' * 100_000 + "\n", refused="is no JSON object"),
    _lines("a list for x", '{"y": 2, "x": [1, 10]}\n', X[:1], [2], model=model(), settings={"label": "y"}),
    _lines("a list for x alone", '{"x": [1, 10]}\n', X[:1], X[:1], model=AUTOENCODER),
    _lines(
        "objects in objects", '{"at": {"a": 1, "b": 10}, "state": 0}\n', X[:1], [0], settings={"columns": "at.a,at.b"}
    ),
    _lines("a folder of them", files(a_jsonl=LINES, b_ndjson=LINES, c_csv=GOOD), X + X, Y + Y, suffix=""),
    _lines("empty", "", refused="no examples"),
    _lines("the last two", LINES, X[1:], Y[1:], settings={"window_rows": 2}),
    Case("CSV for JSON lines", MANY, refused="40 of 40 rows are bad", model=NAMED, loader="jsonl", suffix=".jsonl"),
]

HEARD = model((4,), classes=("no", "yes"), data=DataDescription(sample_rate=8000))
SOUND = [0.0, 0.5, -0.5, 0.25]


def sound(samples: Any = SOUND, *, width: int = 2, channels: int = 1, rate: int = 8000) -> Callable[[Path], None]:
    """Write a PCM WAV file, by Python's own module."""

    def write(path: Path) -> None:
        with wave.open(str(path), "wb") as file:
            file.setparams((channels, width, rate, 0, "NONE", ""))
            whole = np.rint(np.array(samples) * 2.0 ** (8 * width - 1)).astype(np.int64)
            if width == 1:
                whole = whole + 128
            file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole.reshape(-1)))

    return write


def riff(samples: bytes, *, kind: int, bits: int, size: int | None = None, before: bytes = b"") -> bytes:
    """Return a WAV file made by hand."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, 1, 8000, 8000 * bits // 8, bits // 8, bits)
    head = struct.pack("<4sI", b"data", len(samples) if size is None else size)
    return b"RIFF\0\0\0\0WAVE" + before + form + head + samples


def _heard(name: str, content: Any, x: Any = None, y: Any = None, **more: Any) -> Case:
    written = content if callable(content) and more.pop("whole", False) else files(yes__a_wav=content)
    return Case(name, written, x, y, **{"model": HEARD, "loader": "sounds", "suffix": "", **more})


FLOATS = np.array(SOUND, "<f4").tobytes()
SOUNDS = [
    *(_heard(f"{8 * width} bits", sound(width=width), [SOUND], [1], tolerance=1e-6) for width in (1, 2, 3, 4)),
    _heard("stereo", sound([[0, 1 / 2], [0.5, 0], [0, 0], [0, 0]], channels=2), [[0.25, 0.25, 0, 0]], [1]),
    _heard("float", riff(FLOATS, kind=3, bits=32), [SOUND], [1]),
    _heard("a list of notes before it", riff(FLOATS, kind=3, bits=32, before=b"LIST\x03\0\0\0abc\0"), [SOUND], [1]),
    _heard("streamed, of unknown length", riff(FLOATS, kind=3, bits=32, size=0xFFFFFFFF), [SOUND], [1]),
    _heard("shorter", sound(SOUND[:2]), [[0, 0.5, 0, 0]], [1]),
    _heard("longer", sound([*SOUND, 0.9]), [SOUND], [1]),
    _heard("another rate", sound(rate=44100), refused="has 44100 samples a second, the model takes 8000"),
    _heard("A-law", riff(b"\0" * 4, kind=6, bits=8), refused="format 6 of 8 bits"),
    _heard("cut short", riff(FLOATS[:8], kind=3, bits=32, size=16), refused="cut short"),
    _heard("not finite", riff(np.array([np.nan] * 4, "<f4").tobytes(), kind=3, bits=32), refused="not finite"),
    _heard("no samples", sound([]), refused="no samples"),
    _heard("a web page called WAV", b"<html>" * 9, refused="does not begin with RIFF"),
    _heard("empty file", b"", refused="its head is cut short"),
    _heard("an MP3", files(yes__a_mp3=b"ID3"), refused="MP3 is not read", whole=True),
    _heard(
        "a bad one of twenty",
        files(yes__b_wav=b"", **{f"no__{i}_wav": sound() for i in range(20)}),
        [SOUND] * 20,
        [0] * 20,
        whole=True,
        trouble="1 of 21 sounds left out",
    ),
    _heard("a model of tables", sound(), refused="sounds need x [samples]", model=model((2, 3), classes=("no", "yes"))),
]

"""Files as they lie on devices, each with what has to come of it; written by hand, not by what reads them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgrass.bundle import DataDescription, Manifest, TensorDescription


def model(
    x: tuple[int, ...] = (2,),
    y: tuple[int, ...] = (),
    *,
    classes: tuple[str, ...] = (),
    count: int = 3,
    loss: str = "sparse_categorical_crossentropy",
    dtypes: tuple[str, str] = ("float32", "int32"),
    data: DataDescription | None = None,
) -> Manifest:
    """Return what a loader needs of a bundle."""
    # Unchecked: this is a part of a manifest, and no bundle is behind it.
    return Manifest.model_construct(
        name="mill",
        batch_size=32,
        x=TensorDescription.model_validate({"name": "x", "shape": x, "dtype": dtypes[0]}),
        y=TensorDescription.model_validate({"name": "y", "shape": y, "dtype": dtypes[1]}),
        output=TensorDescription(name="y", shape=(len(classes) or count,), dtype="float32"),
        class_names=classes,
        loss=loss,
        data=data or DataDescription(),
    )


@dataclass(frozen=True)
class Case:
    """A file and what has to come of it.

    ``x`` and ``y`` are the examples that have to be read, in the file's order; ``refused`` is a part of the message if they
    have to be refused, and ``trouble`` of what is said to the operator if they are read in part.
    """

    name: str
    content: str | bytes | Callable[[Path], Any]
    x: Any = None
    y: Any = None
    refused: str = ""
    trouble: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    model: Manifest = field(default_factory=model)
    suffix: str = ".csv"
    loader: str = "csv"
    tolerance: float = 0.0

    def write(self, folder: Path) -> Path:
        """Write the file; returns its path."""
        path = folder / f"data{self.suffix}"
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content if isinstance(self.content, bytes) else self.content.encode())
        return path


NAMED = model(data=DataDescription(columns=("a", "b"), labels=("state",)))
WORDS = model(classes=("ok", "worn", "broken"))
NAMED_WORDS = model(classes=("ok", "worn", "broken"), data=DataDescription(columns=("a", "b"), labels=("state",)))
NUMBERS = model(classes=("10", "20", "30"))
FROM_ONE = model(classes=("1", "2", "3"))
REGRESSION = model(loss="mean_squared_error", dtypes=("float32", "float32"))
AUTOENCODER = model((2,), (2,), loss="mean_squared_error", dtypes=("float32", "float32"))
ONE_HOT = model(
    (2,), (3,), classes=("ok", "worn", "broken"), loss="categorical_crossentropy", dtypes=("float32", "float32")
)
BINARY = model((2,), (1,), loss="binary_crossentropy", dtypes=("float32", "float32"), count=1)
BYTES = model(dtypes=("uint8", "int32"))
MEANS = model(data=DataDescription(means=(7.5, -1.0)))

X: list[Any] = [[1, 10], [2.5, 20], [3, 30]]
Y = [0, 1, 2]
GOOD = "a,b,state\n1,10,0\n2.5,20,1\n3,30,2\n"
# Forty rows: one bad row more is below the share of bad rows that the settings allow.
MANY = "".join(f"{i},{i},{i % 3}\n" for i in range(40))
MANY_X, MANY_Y = [[i, i] for i in range(40)], [i % 3 for i in range(40)]


TEXT = [
    Case("plain", GOOD, X, Y),
    Case("no header", GOOD.split("\n", 1)[1], X, Y),
    # First how text is encoded: what Windows' editors and spreadsheets write.
    Case("UTF-8 with its mark", b"\xef\xbb\xbf" + GOOD.encode(), X, Y, model=NAMED),
    Case("UTF-16, little end first", GOOD.encode("utf-16"), X, Y, model=NAMED),
    Case("UTF-16, big end first, no mark", GOOD.encode("utf-16-be"), X, Y, model=NAMED),
    Case("UTF-32", GOOD.encode("utf-32"), X, Y),
    Case(
        "Latin-1 header",
        "größe,b,state\n1,10,0\n".encode("latin-1"),
        [[1, 10]],
        [0],
        model=model(data=DataDescription(columns=("größe", "b"))),
    ),
    # Then what ends a line, and what divides columns.
    Case("Windows line ends", GOOD.replace("\n", "\r\n"), X, Y),
    Case("old Mac line ends", GOOD.replace("\n", "\r"), X, Y),
    Case("no line end at the end", GOOD[:-1], X, Y),
    Case("semicolons", GOOD.replace(",", ";"), X, Y),
    Case("tabs", GOOD.replace(",", "\t"), X, Y),
    Case("pipes", GOOD.replace(",", "|"), X, Y),
    Case("blanks to align columns", "a    b   state\n1    10  0\n2.5  20  1\n3    30  2\n", X, Y),
    Case("blanks after commas", GOOD.replace(",", ", "), X, Y),
    # Numbers as a country writes them. 1,234 alone may be 1.234 or 1234, and nothing in the file decides.
    Case("semicolons and decimal commas", "a;b;state\n1,0;10;0\n2,5;20;1\n3;30;2\n", X, Y),
    Case("decimal commas, quoted", 'a,b,state\n"1,0","10,0",0\n"2,5",20,1\n3,30,2\n', X, Y),
    Case("decimal comma or thousands", "a;b;state\n1,234;10;0\n", refused="may be a decimal comma"),
    Case("decimal comma said", "a;b;state\n1,234;10;0\n", [[1.234, 10]], [0], settings={"decimal": ","}),
    Case("thousands, English", 'a,b,state\n"1,234.5",10,0\n"1,000,000",2,1\n', [[1234.5, 10], [1e6, 2]], [0, 1]),
    Case("thousands, German", "a;b;state\n1.234,5;10;0\n2,5;2;1\n", [[1234.5, 10], [2.5, 2]], [0, 1]),
    Case("thousands, Swiss", "a;b;state\n1'234.5;10;0\n", [[1234.5, 10]], [0]),
    Case("thousands, French", "a;b;state\n1\u202f234,5;10;0\n", [[1234.5, 10]], [0]),
    Case("points and commas mixed", "a;b;state\n1,5;10;0\n2.5;1;0\n", refused="some a comma"),
    # What programs put around a table.
    Case("Excel's sep= line", "sep=;\na;b;state\n1;10;0\n", [[1, 10]], [0]),
    Case("all quoted", '"a","b","state"\n"1","10","0"\n"2.5","20","1"\n"3","30","2"\n', X, Y),
    Case("single quotes", "'a','b','state'\n'1','10','0'\n'2.5','20','1'\n'3','30','2'\n", X, Y),
    Case("separator after each row", "a,b,state,\n1,10,0,\n2.5,20,1,\n3,30,2,\n", X, Y),
    Case("separator after each row but the header", "a,b,state\n1,10,0,\n2.5,20,1,\n3,30,2,\n", X, Y),
    Case("comments", "# logger 3\na,b,state\n1,10,0\n# rain\n2.5,20,1\n3,30,2\n", X, Y),
    Case("header in a comment", "#a,b,state\n1,10,0\n2.5,20,1\n3,30,2\n", X, Y, model=NAMED),
    Case("a logger's preamble", "Logger,X200\nSerial,7\n\nstate,b,a\n0,10,1\n1,20,2.5\n2,30,3\n", X, Y, model=NAMED),
    Case("lines to skip", "Logger\n" + GOOD, X, Y, settings={"skip_lines": 1}),
    Case("blank rows of a spreadsheet", GOOD + ",,\n , ,\n", X, Y),
    Case("lines of blanks", GOOD + "   \n\t\n", X, Y),
    Case("a DOS end of file", GOOD.encode() + b"\x1a", X, Y),
    Case(
        "a row of units",
        GOOD.replace("\n", "\nC,bar,-\n", 1),
        X,
        Y,
        settings={"max_bad_share": 0.3},
        trouble="row 2, column 'a': 'C'",
    ),
    Case("blank lines", GOOD.replace("\n", "\n\n"), X, Y),
    # Other formats under a table's name. An .xlsx is a ZIP archive: it begins with PK.
    Case("packed with gzip", gzip.compress(GOOD.encode()), X, Y, suffix=".csv.gz"),
    Case("gzip cut short", gzip.compress(MANY.encode() * 100)[:200], refused="gzip", suffix=".csv.gz"),
    Case("an Excel file", b"PK\x03\x04....", refused="Excel"),
    Case("an SQLite file", b"SQLite format 3\x00", refused="set loader to sqlite"),
    Case("empty", "", refused="0 columns"),
    Case("header only", "a,b,state\n", refused="no examples"),
    Case("upper-case exponent and signs", "+1E0,-1.5e1,0\n.5,5.,1\n", [[1, -15], [0.5, 5]], [0, 1]),
    # C's strtod would take the first of these two, and Python's float the second.
    Case("hexadecimal", "a,b,state\n0x10,1,0\n", refused="'0x10' is not a number"),
    Case("Python's underscores", "a,b,state\n1_000,1,0\n", refused="'1_000' is not a number"),
    Case("infinite", "a,b,state\ninf,1,0\n", refused="not finite"),
    # The largest float32 is 3.4e38.
    Case("beyond float32", "a,b,state\n1e39,1,0\n", refused="beyond float32"),
    Case("units in cells", "a,b,state\n20 C,1,0\n", refused="'20 C' is not a number"),
    # A file system may have made the file longer before the rows themselves reached the disk.
    Case("zeros that a power cut left", MANY.encode() + b"\x00" * 64, MANY_X, MANY_Y),
]

COLUMNS = [
    Case("columns in another order", "state,b,a\n0,10,1\n1,20,2.5\n2,30,3\n", X, Y, model=NAMED),
    Case(
        "a time and an index beside them",
        ",time,a,b,state\n0,2024-01-01T00:00:00Z,1,10,0\n1,2024-01-01 01:00:00+02:00,2.5,20,1\n",
        X[:2],
        Y[:2],
        model=NAMED,
    ),
    Case("others, and no names", "time,a,b,state\n2024,1,10,0\n", refused="name those of x"),
    Case(
        "names from the settings",
        "t,a,b,state\n9,1,10,0\n",
        [[10, 1]],
        [0],
        settings={"columns": "b,a", "label": "state"},
    ),
    Case("a column is missing", "a,state\n1,0\n", refused="lacks column 'b'", model=NAMED),
    Case("a column in other letters", "A,b,state\n1,2,0\n", refused="did you mean 'A'", model=NAMED),
    Case("a column twice", "a,b,a,state\n1,2,3,0\n", refused="is there 2 times", model=NAMED),
    Case("an unneeded column twice", "a,b,z,z,state\n1,10,x,y,0\n", [[1, 10]], [0], model=NAMED),
    # Nothing in the file tells a header of numbers from a row: it has to be said.
    Case("header of numbers", "0,1,2\n1,10,0\n", [[1, 10]], [0], settings={"header": True}),
    Case(
        "header of numbers, by name", "2,1,0\n0,10,1\n", [[1, 10]], [0], settings={"columns": ["0", "1"], "label": "2"}
    ),
    Case("names known, no header, exact columns", "1,10,0\n2.5,20,1\n", X[:2], Y[:2], model=NAMED),
    Case("names known, no header, others", "7,1,10,0\n", refused="4 columns", model=NAMED),
    Case("a row too short", GOOD + "1,2\n", refused="row 5: 2 columns, expected 3"),
    Case("a row too long in forty", MANY + "1,2,0,9\n", MANY_X, MANY_Y, trouble="row 41: 4 columns, expected 3"),
    Case(
        "a bad cell in forty", MANY + "1,cold,0\n", MANY_X, MANY_Y, trouble="row 41, column '2': 'cold' is not a number"
    ),
    Case("a bad cell, and no share for it", MANY + "1,cold,0\n", refused="'cold'", settings={"max_bad_share": 0}),
    Case(
        "a bad cell after a quoted line break",
        'a,b,state,note\n1,10,0,"x\ny"\n1,cold,0,\n',
        refused="row 4, column 'b'",
        model=NAMED,
    ),
    Case("a bad cell after a comment", "#\n#\na,b,state\n1,cold,0\n", refused="row 4, column 'b'"),
    # A reader of CSV takes all that follows as one cell: the rows after the quote are lost with it.
    Case(
        "an open quote",
        "a,b,state,note\n" + MANY.replace("\n", ",\n") + '1,1,1,"open\n1,1,1,\n1,1,1,\n',
        MANY_X,
        MANY_Y,
        trouble="3 of 43 rows",
        model=NAMED,
        settings={"max_bad_share": 0.2},
    ),
    Case("cut while being written", GOOD + "4,4", X, Y),
]

MISSING = [
    Case("an empty cell", "a,b,state\n1,,0\n", refused="row 2, column 'b': '' is not a number but a missing value"),
    *(
        Case(
            f"{mark!r} for a missing value, left out",
            f"a,b,state\n1,10,0\n2,{mark},1\n3,30,2\n",
            [X[0], X[2]],
            [0, 2],
            settings={"missing": "skip"},
            trouble="1 rows with a missing value",
        )
        for mark in ("", "NaN", "NULL", "-", "?", "N/A", "none")
    ),
    Case(
        "filled with a number",
        "a,b,state\n,10,0\n2.5,20,1\n",
        [[-1, 10], [2.5, 20]],
        [0, 1],
        settings={"missing": "-1"},
        trouble="1 missing values filled",
    ),
    Case(
        "filled with the fleet's mean",
        "a,b,state\n,10,0\n2.5,nan,1\n",
        [[7.5, 10], [2.5, -1]],
        [0, 1],
        settings={"missing": "mean"},
        model=MEANS,
        trouble="2 missing",
    ),
    Case("the mean, and there is none", "a,b,state\n,10,0\n", refused="give means", settings={"missing": "mean"}),
    Case(
        "a marker of one's own",
        "a,b,state\n-999,10,0\n1,10,0\n",
        [[1, 10]],
        [0],
        settings={"missing": "skip", "missing_values": "-999"},
        trouble="1 rows",
    ),
    Case(
        "a missing label is not filled",
        "a,b,state\n1,10,\n2.5,20,1\n",
        X[1:2],
        Y[1:2],
        settings={"missing": "0"},
        trouble="1 rows",
    ),
    # None is a mark of a missing value as well: where it is a class, the class goes before.
    Case(
        "a class called None", "a,b,state\n1,10,None\n2.5,20,ok\n", X[:2], [1, 0], model=model(classes=("ok", "None"))
    ),
]

LABELS = [
    Case("words", "a,b,state\n1,10,ok\n2.5,20,worn\n3,30,broken\n", X, Y, model=WORDS),
    Case("words without class names", "a,b,state\n1,10,ok\n", refused="class_names"),
    Case("words, with blanks and capitals", "a,b,state\n1,10, OK \n2.5,20,Worn\n3,30,BROKEN\n", X, Y, model=WORDS),
    Case(
        "an accent in two pieces",
        "a,b,state\n1,10,cafe\u0301\n",
        [[1, 10]],
        [1],
        model=model(classes=("tea", "caf\u00e9")),
    ),
    Case("indices in place of words", "a,b,state\n1,10,0\n2.5,20,1\n3,30,2\n", X, Y, model=WORDS),
    Case("an unknown word", "a,b,state\n1,10,wet\n", refused="'wet' is not a number or one of ok, worn", model=WORDS),
    Case("classes that are numbers", "a,b,state\n1,10,10\n2.5,20,20\n3,30,30\n", X, Y, model=NUMBERS),
    Case("the same as 10.0", "a,b,state\n1,10,10.0\n2.5,20,20.0\n3,30,30.0\n", X, Y, model=NUMBERS),
    Case("an index where classes are numbers", "a,b,state\n1,10,1\n", refused="not one of the classes", model=NUMBERS),
    Case(
        "one word at the end of a long file",
        "".join(f"{i % 3},1,{10 * (i % 3 + 1)}\n" for i in range(5000)) + "1,1,30\n",
        [[i % 3, 1] for i in range(5000)] + [[1, 1]],
        [i % 3 for i in range(5000)] + [2],
        model=NUMBERS,
    ),
    Case("from 1, named so", "a,b,state\n1,10,1\n2.5,20,2\n3,30,3\n", X, Y, model=FROM_ONE),
    Case("from 1, not named", MANY + "1,1,3\n", refused="label 3 is not a class's number"),
    Case("1.0 and 2.0", "a,b,state\n1,10,0.0\n2.5,20,1.0\n3,30,2.0\n", X, Y),
    Case("true of three classes", "a,b,state\n1,10,true\n", refused="'true' is not the number of one of 3 classes"),
    Case("a header in the middle", GOOD + GOOD, X + X, Y + Y),
    Case("decimal commas and exponents", "a;b;state\n1,5e3;10;0\n", [[1500, 10]], [0]),
    Case("half a class", "a,b,state\n1,10,0.5\n", refused="0.5 is not a whole number"),
    Case("negative", MANY + "1,1,-1\n", refused="label -1 is not"),
    Case("true and false", "a,b,state\n1,10,true\n2.5,20,FALSE\n", X[:2], [1, 0], model=model(count=2)),
    Case("true and false of a sigmoid", "a,b,state\n1,10,True\n2.5,20,False\n", X[:2], [[1], [0]], model=BINARY),
    Case("words to one-hot", "a,b,state\n1,10,ok\n2.5,20,broken\n", X[:2], [[1, 0, 0], [0, 0, 1]], model=ONE_HOT),
    Case(
        "one-hot columns",
        "a,b,ok,worn,broken\n1,10,1,0,0\n2.5,20,0,0,1\n",
        X[:2],
        [[1, 0, 0], [0, 0, 1]],
        model=ONE_HOT,
    ),
    Case("beyond uint8", "a,b,state\n1,300,0\n", refused="300 is not a whole number from 0 to 255", model=BYTES),
    Case("below uint8", "a,b,state\n1,-1,0\n", refused="-1 is not a whole number", model=BYTES),
    Case("regression", "a,b,y\n1,10,0.25\n2.5,20,-3\n", X[:2], [0.25, -3], model=REGRESSION),
    Case("an autoencoder takes x alone", "a,b\n1,10\n2.5,20\n", X[:2], X[:2], model=AUTOENCODER),
]

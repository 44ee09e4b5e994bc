"""Files as they lie on devices: what is read of each, what is refused; and two million rows of thirteen columns.

``python -m benchmarks.data`` prints a table, then one JSON line. ``--rows 0`` leaves the large file out.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import messy, messy_images, messy_stores, messy_texts
from benchmarks.messy import Case
from fedgrass.data import DataSettings, load
from fedgrass.data.loaders import open_source
from fedgrass.engines.checks import check_dataset
from fedgrass.errors import DataError

ROWS = 2_000_000
FEATURES = 12


def outcome(case: Case, folder: Path) -> tuple[bool, str]:
    """Read a case's file as a device does; returns whether what came of it is what has to, and what it was, in words."""
    # Nothing is held back, so that all rows can be compared.
    settings = DataSettings(loader=case.loader, path=str(case.write(folder)), validation_fraction=0, **case.settings)
    try:
        data = load(settings, case.model)
        check_dataset(data.train, case.model)
        source = open_source(settings, case.model)
        if hasattr(source, "verify"):
            source.verify()
        batch = source.read(np.arange(len(source)))
    except DataError as error:
        said = str(error).replace(str(folder), "…")
        return bool(case.refused) and case.refused in said, f"refused: {said}"
    trouble = data.account.trouble if data.account else ""
    said = f"read: {len(batch.x)} examples" + (f"; {trouble}" if trouble else "")
    # Trouble that was not expected is as wrong as expected trouble that was not told.
    if case.refused or (case.trouble not in trouble) or (trouble and not case.trouble):
        return False, said
    same = all(
        found.shape == np.shape(expected) and np.allclose(found, expected, rtol=1e-6, atol=case.tolerance)
        for found, expected in ((batch.x, case.x), (batch.y, case.y))
    )
    dtypes = (batch.x.dtype.name, batch.y.dtype.name) == (case.model.x.dtype, case.model.y.dtype)
    return same and dtypes, said.replace(str(folder), "…") if same else f"{said} {batch.x.tolist()} {batch.y.tolist()}"[
        :300
    ]


def cases() -> list[Case]:
    """Return all of them."""
    tables = [*messy.TEXT, *messy.COLUMNS, *messy.MISSING, *messy.LABELS, *messy_stores.STORES, *messy_texts.JSON]
    return [*tables, *messy_images.IMAGES, *messy_texts.TEXTS, *messy_texts.SOUNDS]


def table() -> dict[str, int]:
    """Print what came of each; returns how many came as they have to."""
    right = 0
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            good, said = outcome(case, Path(folder))
        right += good
        print(f"{'' if good else 'WRONG '}{case.loader:8} {case.name:45} {said[:150]}", flush=True)
    return {"kinds": len(cases()), "as_they_have_to": right}


def large(rows: int, path: Path) -> dict[str, Any]:
    """Load a file of many rows, and run through it once; the floor is Python's own reader, which makes no numbers."""
    # Drawn once and repeated: the time to make the file is no part of what is measured.
    values = np.random.default_rng(0).normal(size=(20_000, FEATURES))
    text = "".join(",".join(f"{value:.6g}" for value in row) + f",{i % 3}\n" for i, row in enumerate(values))
    with path.open("w") as file:
        file.write(",".join(f"c{i}" for i in range(FEATURES)) + ",label\n")
        for _ in range(rows // len(values)):
            file.write(text)
    manifest = messy.model((FEATURES,))
    marks = [time.process_time()]
    data = load(DataSettings(loader="csv", path=str(path)), manifest)
    marks.append(time.process_time())
    check_dataset(data.train, manifest)
    marks.append(time.process_time())
    for _ in data.train.batches(manifest.batch_size, seed=1):
        pass
    marks.append(time.process_time())
    with path.open(newline="") as file:
        for _ in csv.reader(file):
            pass
    marks.append(time.process_time())
    # Anonymous memory: pages of the file itself do not count, the system can drop them.
    [own] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    seconds = [round(after - before, 2) for before, after in itertools.pairwise(marks)]
    return {
        "rows": rows,
        "columns": FEATURES + 1,
        "file_mb": path.stat().st_size >> 20,
        **dict(
            zip(("load_seconds", "check_seconds", "epoch_seconds", "csv_reader_alone_seconds"), seconds, strict=True)
        ),
        "own_memory_mb": int(own.split()[1]) >> 10,
    }


def main() -> None:
    """Print the table, then a JSON line; seconds are of the processor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the large file (0: none)")
    rows = parser.parse_args().rows
    found: dict[str, Any] = {}
    if rows:
        print("reading a large file", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            found = large(rows, Path(folder) / "large.csv")
    print(json.dumps({"benchmark": "data", **table(), **found}))


if __name__ == "__main__":
    main()

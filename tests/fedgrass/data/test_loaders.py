"""CSV files, mapped arrays, folders of images, and functions of the user's own."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Manifest, TensorDescription
from fedgrass.data import DataSettings, Split, load
from fedgrass.data import tables as tables_module
from fedgrass.errors import DataError
from fedgrass.tensors import Array


def model(
    x: tuple[int, ...] = (3,), y: tuple[int, ...] = (), *, y_dtype: str = "int32", classes: tuple[str, ...] = ()
) -> Manifest:
    return Manifest.model_construct(
        name="plant",
        x=TensorDescription(name="x", shape=x, dtype="float32"),
        y=TensorDescription.model_validate({"name": "y", "shape": y, "dtype": y_dtype}),
        class_names=classes,
    )


def collected(data: Split) -> tuple[Array, Array]:
    """All examples of both parts, in the order of their first value."""
    batches = [batch for part in (data.train, data.validation) for batch in part.batches(7)]
    x, y = (np.concatenate([getattr(batch, name) for batch in batches]) for name in "xy")
    order = np.argsort(x.reshape(len(x), -1)[:, 0])
    return x[order], y[order]


def write_csv(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_a_csv_file_gives_the_models_shapes_and_dtypes(tmp_path: Path) -> None:
    rows = [[i, i / 2, -i, i % 3] for i in range(50)]
    path = write_csv(tmp_path / "a.csv", [["heat", "load", "drift", "state"], *rows])
    settings = DataSettings(loader="csv", path=str(path), validation_fraction=0.2)
    found = load(settings, model((3, 1)))
    assert (len(found.train), len(found.validation)) == (40, 10)
    x, y = collected(found)
    assert (x.dtype.name, y.dtype.name, x.shape, y.shape) == ("float32", "int32", (50, 3, 1), (50,))
    np.testing.assert_array_equal(x[..., 0], np.array(rows, np.float32)[:, :3])
    np.testing.assert_array_equal(y, [row[3] for row in rows])


def test_a_csv_label_may_be_any_column_and_a_class_name_and_the_header_may_be_absent(tmp_path: Path) -> None:
    manifest = model((2,), classes=("ok", "worn"))
    rows = [["worn", 1, 10], ["ok", 2, 20], ["ok", 3, 30]]
    path = write_csv(tmp_path / "a.csv", [["state", "a", "b"], *rows])
    _, y = collected(load(DataSettings(loader="csv", path=str(path), label="state"), manifest))
    assert y.tolist() == [1, 0, 0]
    path = write_csv(tmp_path / "b.csv", [[1, 10, "worn"], [2, 20, "ok"], [], [3, 30, "1"]])
    x, y = collected(load(DataSettings(loader="csv", path=str(path)), manifest))
    assert y.tolist() == [1, 0, 1]
    assert x.tolist() == [[1, 10], [2, 20], [3, 30]]


def test_several_targets_are_the_last_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [[1, 2, 3, 0.5, 0.25], [4, 5, 6, 1.5, 1.25]])
    x, y = collected(load(DataSettings(loader="csv", path=str(path)), model((3,), (2,), y_dtype="float32")))
    assert x.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert y.tolist() == [[0.5, 0.25], [1.5, 1.25]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 columns; model 'plant' takes 3 for x and 1 for y"),
        ("a,b,c,d\n", "no examples"),
        ("a,b,c\n1,2,3\n", "3 columns; model 'plant' takes 3 for x"),
        ("a,b,c,d\n1,2,3,0\n1,2,3\n", "row 3: 3 columns, expected 4"),
        ("a,b,c,d\n1,2,3,0\n1,cold,3,0\n", "row 3, column 'b': 'cold' is not a number"),
        ("a,b,c,d\n1,,3,0\n", "row 2, column 'b': '' is not a number"),
        ("1,2,3,0\n1,2,3,0.5\n", "row 2, column '4': 0.5 is not a whole number"),
        ("1,2,3,20000000\n", "is not a whole number below"),
        ("a,b,c,d\n1,2,3,wet\n", "'wet' is not a number or one of ok, worn"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("a,b,c,d\n" + "1,2,3,0\n" * 5000, "maxBytes"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = DataSettings(loader="csv", path=str(path), max_bytes=50_000)
    with pytest.raises(DataError, match=message):
        load(settings, model(classes=("ok", "worn") if "wet" in message else ()))


def test_an_unknown_label_column_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["a", "b", "c", "d"], [1, 2, 3, 0]])
    with pytest.raises(DataError, match="no single label column 'e' among a, b, c, d"):
        load(DataSettings(loader="csv", path=str(path), label="e"), model())


def test_a_large_csv_file_is_mapped_and_gives_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (9000, 4)).tolist()
    settings = DataSettings(loader="csv", path=str(write_csv(tmp_path / "a.csv", rows)))
    small = load(settings, model())
    monkeypatch.setattr(tables_module, "_IN_MEMORY_BYTES", 10_000)
    large = load(settings, model())
    for left, right in zip(small.train.batches(512, seed=3), large.train.batches(512, seed=3), strict=True):
        np.testing.assert_array_equal(left.x, right.x)
        np.testing.assert_array_equal(left.y, right.y)


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        from pathlib import Path
        from fedgrass.data import DataSettings, load
        from tests.fedgrass.data.test_loaders import model

        folder = Path(sys.argv[1])
        def own_mb():  # what the kernel cannot take back, as it can pages of a mapped file
            [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
            return int(line.split()[1]) // 1024

        x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (200_000, 256))  # 195 MB
        np.save(folder / "y.npy", np.zeros(200_000, np.int32))
        del x
        before = own_mb()
        data = load(DataSettings(loader="npy", path=str(folder)), model((256,)))
        batches = data.train.batches(32, seed=1)
        for _ in range(200):
            next(batches)
        print(len(data.train), own_mb() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    examples, grown = map(int, run.stdout.split())
    assert examples == 160_000
    assert grown < 20


def test_mapped_arrays_that_are_missing_or_no_arrays_are_named(tmp_path: Path) -> None:
    settings = DataSettings(loader="npy", path=str(tmp_path))
    with pytest.raises(DataError, match=r"x\.npy: cannot be read"):
        load(settings, model())
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="plain array"):
        load(settings, model())


def draw(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'fedgrass[images]'")
    path.parent.mkdir(exist_ok=True)
    image.new("RGB", size, colour).save(path)


def test_a_folder_of_images_gives_scaled_pixels_and_class_numbers(tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path / "red" / f"{i}.png", (20, 10), (255, 0, 0))
        draw(tmp_path / "blue" / f"{i}.jpg", (5, 5), (0, 0, 255))
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    settings = DataSettings(loader="images", path=str(tmp_path))
    for classes, red in ((("red", "green", "blue"), 0), (("blue", "red"), 1)):
        x, y = collected(load(settings, model((4, 6, 3), classes=classes)))
        assert (x.shape, x.dtype.name) == ((6, 4, 6, 3), "float32")
        np.testing.assert_allclose(x[y == red], np.broadcast_to([1.0, 0.0, 0.0], (3, 4, 6, 3)), atol=0.02)
    x, _ = collected(load(settings, model((4, 6, 1), classes=("red", "blue"))))
    assert x.shape == (6, 4, 6, 1)
    with pytest.raises(DataError, match="'blue' is text, and model 'plant' has no class names"):
        load(settings, model((4, 6, 3)))


def test_what_is_wrong_in_a_folder_of_images_is_named(tmp_path: Path) -> None:
    settings = DataSettings(loader="images", path=str(tmp_path / "photos"))
    with pytest.raises(DataError, match="is not a folder"):
        load(settings, model((4, 4, 3)))
    draw(tmp_path / "photos" / "in no class.png", (4, 4), (0, 0, 0))
    with pytest.raises(DataError, match="no images"):
        load(settings, model((4, 4, 3)))
    (tmp_path / "photos" / "cat").mkdir()
    (tmp_path / "photos" / "cat" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match="'cat' is none of the model's classes dog"):
        load(settings, model((4, 4, 3), classes=("dog",)))
    with pytest.raises(DataError, match=r"bad\.png: is no readable image"):
        load(settings, model((4, 4, 3), classes=("cat", "dog")))
    with pytest.raises(DataError, match="images need"):
        load(settings, model((16,)))


@pytest.mark.parametrize("loader", ["npz", "npy", "csv", "images"])
def test_a_path_that_is_missing_is_asked_for(loader: str) -> None:
    with pytest.raises(DataError, match=f"the {loader} loader needs 'path'"):
        load(DataSettings(loader=loader), model())


def test_the_same_data_divide_alike_whatever_holds_them(tmp_path: Path) -> None:
    x, y = np.arange(300, dtype=np.float32).reshape(100, 3), np.arange(100, dtype=np.int32) % 5
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    write_csv(tmp_path / "data.csv", np.column_stack([x, y]).tolist())
    found = [
        load(DataSettings(loader=loader, path=str(tmp_path / path), seed=4), model())
        for loader, path in (("npz", "data.npz"), ("npy", ""), ("csv", "data.csv"))
    ]
    for part in ("train", "validation"):
        orders = [
            np.concatenate([b.x for b in getattr(data, part).batches(8, seed=9)])[:, 0].tolist() for data in found
        ]
        assert orders[0] == orders[1] == orders[2]

"""Every kind of file of `benchmarks.data` is read, or refused, as written there by hand; and figures of images by NumPy."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import messy_images
from benchmarks.data import cases, outcome
from benchmarks.messy import GOOD, NAMED, Case, X, Y, model
from fedgrass.bundle import DataDescription
from fedgrass.data import DataSettings, count, load
from fedgrass.data.labels import LabelError, Labels
from fedgrass.data.loaders import open_source
from fedgrass.data.loaders.described import loader_of
from fedgrass.data.times import seconds_of
from fedgrass.engines.checks import check_dataset
from fedgrass.errors import DataError


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.loader}: {case.name}")
def test_a_file_as_it_lies_on_a_device(case: Case, tmp_path: Path) -> None:
    if case.loader == "images":
        pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'fedgrass[images]'")
    right, said = outcome(case, tmp_path)
    assert right, said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), wide=st.booleans(), suffix=st.sampled_from(["png", "tif"]))
def test_pixels_are_those_of_numpy(tmp_path: Path, seed: int, wide: bool, suffix: str) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'fedgrass[images]'")
    most = 65535 if wide else 255
    pixels = np.random.default_rng(seed).integers(0, most + 1, (2, 3)).astype(np.uint16 if wide else np.uint8)
    file = tmp_path / "cat" / f"a.{suffix}"
    file.parent.mkdir(exist_ok=True)
    messy_images.array(pixels, pixels.dtype.name)(file)
    for manifest, low, high in (
        (messy_images.GREY, 0, 1),
        (messy_images.RESCALING, 0, 255),
        (messy_images.CENTRED, -1, 1),
    ):
        source = open_source(DataSettings(loader="images", path=str(tmp_path)), manifest)
        found = source.read(np.array([0])).x[0, ..., 0]
        np.testing.assert_allclose(found, low + pixels / most * (high - low), atol=1e-6 * (high - low))
    file.unlink()


@pytest.mark.parametrize("pixels", ["nan..1", "0..inf", "5..5", "0..", "dark..light", "0..256", "-1..255"])
def test_ends_of_pixels_that_tell_nothing_or_would_wrap_are_refused(tmp_path: Path, pixels: str) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'fedgrass[images]'")
    file = tmp_path / "cat" / "a.png"
    file.parent.mkdir()
    messy_images.array(np.zeros((2, 3), np.uint8), "uint8")(file)
    whole = messy_images.GREY.model_copy(update={"x": messy_images.GREY.x.model_copy(update={"dtype": "uint8"})})
    with pytest.raises(DataError, match=f"pixels is '{re.escape(pixels)}'"):
        open_source(DataSettings(loader="images", path=str(tmp_path), pixels=pixels), whole)
    if pixels in ("0..256", "-1..255"):  # a float model may have them
        open_source(DataSettings(loader="images", path=str(tmp_path), pixels=pixels), messy_images.GREY)


def test_a_parquet_file_is_read_by_name_a_group_of_rows_at_a_time(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'fedgrass[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    columns: dict[str, Any] = {
        "time": np.arange(20_000),
        "state": ["ok", "worn"] * 10_000,
        "b": np.arange(20_000) / 4,
        "a": [None, *range(1, 20_000)],
    }
    parquet.write_table(pyarrow.table(columns), path, row_group_size=700)
    manifest = model(classes=("worn", "ok"), data=NAMED.data)
    source = open_source(DataSettings(loader="parquet", path=str(path), missing="skip"), manifest)
    batch = source.read(np.arange(len(source)))
    np.testing.assert_array_equal(batch.x, np.column_stack([np.arange(1, 20_000), np.arange(1, 20_000) / 4]))
    assert batch.y.tolist() == [i % 2 == 0 for i in range(1, 20_000)]
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        open_source(DataSettings(loader="parquet", path=str(path)), manifest)
    with pytest.raises(DataError, match=r"missing\.parquet: cannot be read"):
        open_source(DataSettings(loader="parquet", path=str(tmp_path / "missing.parquet")), manifest)


def test_an_examples_number_in_a_message_is_that_of_the_file(tmp_path: Path) -> None:
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    x[17, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(30) % 3)
    for seed in range(3):
        data = load(DataSettings(path=str(tmp_path / "a.npz"), seed=seed, validation_fraction=0.1), model())
        parts = [part for part in (data.train, data.validation) if any(np.isnan(b.x).any() for b in part.batches(8))]
        with pytest.raises(DataError, match="x of example 17: value nan is not finite"):
            check_dataset(parts[0], model())


@given(
    names=st.lists(st.integers(-50, 50), unique=True, min_size=1, max_size=8),
    drawn=st.lists(st.integers(-60, 60), max_size=9),
)
def test_numeric_classes_are_found_by_their_value(names: list[int], drawn: list[int]) -> None:
    labels = Labels(model(classes=tuple(map(str, names))))
    values = np.array(drawn, np.float64)
    if set(drawn) <= set(names):
        assert labels.of_numbers(values).tolist() == [names.index(value) for value in drawn]
        assert [labels.of_text(f"{value}.0") for value in drawn] == [names.index(value) for value in drawn]
    else:
        with pytest.raises(LabelError):
            labels.of_numbers(values)


def test_a_bad_image_is_left_out_of_both_parts_and_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'fedgrass[images]'")
    messy_images.many("dog/bad.jpg", messy_images.cut)(tmp_path)
    settings = DataSettings(loader="images", path=str(tmp_path))
    data = load(settings, messy_images.GREY)
    assert len(data.train) + len(data.validation) == 20
    assert sum(len(batch.x) for part in (data.train, data.validation) for batch in part.batches(3, seed=1)) == 20
    assert data.account is not None
    assert "1 of 21 images left out" in data.account.trouble
    assert "bad.jpg: is no readable image" in data.account.trouble
    assert count(settings, messy_images.GREY) == 17  # of 21: not decoded for a count


def test_links_are_followed_but_not_in_circles_and_a_broken_one_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'fedgrass[images]'")
    folder = tmp_path / "data"
    messy_images.many("dog/a.png", messy_images.array(messy_images.PIXELS))(folder)
    (folder / "dog" / "again").symlink_to(folder / "dog", target_is_directory=True)
    (folder / "dog" / "b.png").symlink_to(folder / "dog" / "a.png")
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load(DataSettings(loader="images", path=str(folder)), messy_images.GREY)
    assert data.account is not None
    assert (data.account.good, data.account.bad) == (22, 1)
    assert "gone.png" in data.account.trouble


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(DataError, match=r"a\.csv: cannot be read \(Permission denied\)"):
        open_source(DataSettings(loader="csv", path=str(path)), model())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86_400),
        ("1970-01-01T01:00:00Z", 3600),
        ("1970-01-01 01:00:00.5", 3600.5),
        ("1970-01-01T01:00:00,123456789Z", 3600.123456),
        ("1970-01-01T01:00:00+02:00", -3600),
        ("1970-01-01T01:00:00-0130", 9000),
        ("1700000000", 1.7e9),
        ("1700000000000", 1.7e9),
        ("1700000000000000", 1.7e9),
        (1_700_000_000_000_000_000, 1.7e9),
    ],
)
def test_times_are_read_as_they_are_written(text: object, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "yesterday", "nan", "12:00", "Z"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert np.isnan(seconds_of(text))


def test_settings_may_be_text_as_nucleus_lite_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("0\t1\t2\n" + "\n".join(f"{b}\t{a}\t{y}" for (a, b), y in zip(X, Y, strict=True)) + "\n")
    given = {"loader": "csv", "path": str(path), "columns": "1, 0", "label": "2", "header": "true", "separator": "tab"}
    source = open_source(
        DataSettings.model_validate({**given, "missingValues": '["-9"]', "maxBadShare": "0.5"}), model()
    )
    np.testing.assert_array_equal(source.read(np.arange(3)).x, np.array(X, np.float32))


@pytest.mark.parametrize("missing", ["median", "nan", "inf", ""])
def test_an_unknown_way_with_missing_values_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="refuse, skip, mean or a number"):
        DataSettings(missing=missing)


def test_a_folder_s_loader_is_told_by_the_files_in_it(tmp_path: Path) -> None:
    for suffix, loader in (("txt", "texts"), ("wav", "sounds"), ("png", "images")):
        for number in range(2):
            file = tmp_path / suffix / "yes" / f"{number}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (tmp_path / suffix / "notes.txt").touch()
        assert loader_of(tmp_path / suffix) == loader
    assert loader_of(tmp_path / "a.jsonl") == "jsonl"


def test_a_vocabulary_is_no_longer_than_a_manifest_may_be() -> None:
    assert DataDescription(vocabulary=tuple(f"word{i}" for i in range(50_000)))
    with pytest.raises(ValueError, match="leave rare words out"):
        DataDescription(vocabulary=tuple(f"a long word of the {i}th" for i in range(100_000)))

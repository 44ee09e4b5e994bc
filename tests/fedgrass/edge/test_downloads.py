"""Downloads: what is announced, whole and bounded, or a clear reason."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fedgrass.bundle import GRAPH, INFERENCE, MANIFEST, PARAMETERS, Bundle
from fedgrass.downloads import fetch_bundle
from fedgrass.edge.downloads import keep_newest, retried
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import BundleError, TransferError
from fedgrass.logs import Log
from tests.components.trainer.place import FLEET, FakeS3
from tests.fedgrass.edge import digits

BASE = digits.base_of(Bundle.open(digits.BUNDLE), FLEET)
PREFIX = f"models/{FLEET}/{BASE.version}"


@pytest.fixture
def s3() -> FakeS3:
    made = FakeS3()
    made.hold(Bundle.open(digits.BUNDLE))
    return made


def fetch(s3: FakeS3, folder: Path, *, max_bytes: int = 1 << 30) -> Bundle:
    return fetch_bundle(s3, "bucket", BASE, folder, max_bytes=max_bytes)


def test_a_downloaded_bundle_can_be_trained_and_has_only_what_that_needs(s3: FakeS3, tmp_path: Path) -> None:
    bundle = fetch(s3, tmp_path / "base")
    LiteRTEngine(bundle)
    assert {path.name for path in bundle.folder.iterdir()} == {GRAPH, PARAMETERS}
    assert f"{PREFIX}/{INFERENCE}" not in s3.reads


def test_what_is_there_is_not_downloaded_again_and_what_is_damaged_is(s3: FakeS3, tmp_path: Path) -> None:
    fetch(s3, tmp_path)
    (tmp_path / PARAMETERS).write_bytes(b"x" * (tmp_path / PARAMETERS).stat().st_size)
    s3.reads.clear()
    fetch(s3, tmp_path).verify()
    assert s3.reads == [f"{PREFIX}/{MANIFEST}", f"{PREFIX}/{PARAMETERS}"]


@pytest.mark.parametrize("name", [GRAPH, PARAMETERS])
@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_another_object_than_announced_is_refused_and_not_kept(
    s3: FakeS3, tmp_path: Path, name: str, change: str
) -> None:
    content = s3.objects[f"{PREFIX}/{name}"]
    changed = {"longer": content + b"x" * 3_000_000, "shorter": content[:-1], "other": content[:-1] + b"\x99"}[change]
    s3.objects[f"{PREFIX}/{name}"] = changed
    with pytest.raises(TransferError if change == "shorter" else BundleError):
        fetch(s3, tmp_path)
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


def test_another_model_under_the_announced_name_is_refused(s3: FakeS3, tmp_path: Path) -> None:
    other = digits.version(tmp_path / "other", BASE.version, digits.random())
    s3.hold(other)
    with pytest.raises(BundleError, match="not the model"):
        fetch(s3, tmp_path / "base")


def test_a_model_over_the_bound_is_refused_before_it_is_read(s3: FakeS3, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="maxBundleMb"):
        fetch(s3, tmp_path, max_bytes=1000)
    assert s3.reads == [f"{PREFIX}/{MANIFEST}"]


def test_a_missing_object_is_final_and_a_busy_store_is_not(s3: FakeS3, tmp_path: Path) -> None:
    s3.failures = 1
    with pytest.raises(TransferError, match="SlowDown"):
        fetch(s3, tmp_path)
    s3.objects.clear()
    with pytest.raises(BundleError, match="does not exist"):
        fetch(s3, tmp_path)


def test_trying_goes_on_until_it_works_or_is_cancelled(s3: FakeS3, tmp_path: Path) -> None:
    s3.failures = 3
    cancelled = threading.Event()
    assert retried(lambda: fetch(s3, tmp_path), cancelled, Log("test"), first=0.001) is not None
    s3.failures = 1_000_000
    threading.Timer(0.05, cancelled.set).start()
    assert retried(lambda: fetch(s3, tmp_path), cancelled, Log("test"), first=0.001) is None


def test_only_the_newest_folders_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        os.utime(tmp_path / str(number), (number, number))
    keep_newest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]

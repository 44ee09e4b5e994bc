"""The model store: the active model is whole at every moment, for every reader."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedgrass.bundle import INFERENCE, PARAMETERS, Bundle
from fedgrass.edge.model_store import ModelStore
from fedgrass.errors import AdmissionError
from tests.fedgrass.edge import digits
from tests.fixtures.waiting import PATIENCE


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    base = Bundle.open(digits.BUNDLE).parameters()
    return [
        digits.version(folder / str(number), f"1.{number}.0", {name: value + number for name, value in base.items()})
        for number in range(5)
    ]


def activate(store: ModelStore, bundle: Bundle) -> None:
    with store.lock():
        store.activate(bundle)


def test_an_empty_store_has_no_model(store: ModelStore) -> None:
    assert store.active() is None
    assert store.models() == []
    assert store.admissions() == []


def test_the_application_reads_the_active_model_by_a_path_that_stays(store: ModelStore, bundles: list[Bundle]) -> None:
    for bundle in bundles[:2]:
        activate(store, bundle)
        stable = store.folder / "active" / INFERENCE
        assert stable.read_bytes() == bundle.path(INFERENCE).read_bytes()
    active = store.active()
    assert active is not None
    assert active.manifest == bundles[1].manifest
    active.verify()


def test_activating_twice_is_as_once(store: ModelStore, bundles: list[Bundle]) -> None:
    activate(store, bundles[0])
    inode = (store.folder / "active" / INFERENCE).stat().st_ino
    activate(store, bundles[0])
    assert (store.folder / "active" / INFERENCE).stat().st_ino == inode
    assert store.holds(bundles[0])
    assert not store.holds(bundles[1])


def test_a_damaged_model_is_mended_without_its_path_going_away(store: ModelStore, bundles: list[Bundle]) -> None:
    activate(store, bundles[0])
    damaged = store.folder / "active" / PARAMETERS
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert not store.holds(bundles[0])
    activate(store, bundles[0])
    assert store.holds(bundles[0])


def test_readers_never_see_half_a_model(store: ModelStore, bundles: list[Bundle]) -> None:
    activate(store, bundles[0])
    contents = {bundle.path(INFERENCE).read_bytes() for bundle in bundles[:2]}
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found = (store.folder / "active" / INFERENCE).read_bytes()
            if found not in contents:
                wrong.append(len(found))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        activate(store, bundles[1])
        activate(store, bundles[0])
    stop.set()
    reader.join()
    assert wrong == []


def test_the_last_ones_are_kept_and_the_active_one_always(store: ModelStore, bundles: list[Bundle]) -> None:
    for bundle in [*bundles, bundles[1]]:
        activate(store, bundle)
    with store.lock():
        assert sorted(store.prune(keep=3)) == ["1.0.0", "1.2.0"]
    assert [bundle.manifest.version for bundle in store.models()] == ["1.1.0", "1.4.0", "1.3.0"]
    with store.lock():
        store.prune(keep=1)
    assert [bundle.manifest.version for bundle in store.models()] == ["1.1.0"]


def test_what_a_killed_admission_left_is_cleared_away(store: ModelStore, bundles: list[Bundle]) -> None:
    activate(store, bundles[0])
    (store.folder / "models" / ".1.1.0.99").mkdir()
    activate(store, bundles[1])
    with store.lock():
        store.prune(keep=5)
    assert sorted(path.name for path in (store.folder / "models").iterdir()) == ["1.0.0", "1.1.0"]


def test_a_base_is_found_by_version_and_digests_only(store: ModelStore, bundles: list[Bundle]) -> None:
    activate(store, bundles[0])
    manifest = bundles[0].manifest
    digests = {"parameters_sha256": manifest.parameters_sha256, "graph_sha256": manifest.graph_sha256}
    assert store.find("1.0.0", **digests) is not None
    assert store.find("1.0.0", **{**digests, "parameters_sha256": "0" * 64}) is None
    assert store.find("1.9.0", **digests) is None


def test_an_outcome_is_noted_once_however_often_it_is_repeated(store: ModelStore) -> None:
    with store.lock():
        for _ in range(3):
            store.record("1.1.0", "refused", reason="worse")
        store.record("1.2.0", "active")
        store.record("1.1.0", "refused", reason="worse")
    assert [(a.number, a.version) for a in store.admissions()] == [(1, "1.1.0"), (2, "1.2.0"), (3, "1.1.0")]


def test_the_notes_are_bounded_and_a_damaged_one_is_left_out(store: ModelStore) -> None:
    with store.lock():
        for number in range(120):
            store.record(f"1.{number}.0", "active")
    notes = store.admissions()
    assert [notes[0].number, notes[-1].number] == [21, 120]
    (store.folder / "admissions" / "00000050.json").write_text("{")
    assert len(store.admissions()) == 99


NOTE_TEN = """
import sys
from pathlib import Path
from fedgrass.edge.model_store import ModelStore

store = ModelStore(Path(sys.argv[1]))
for number in range(10):
    with store.lock():
        store.record(sys.argv[2], "active", reason=str(number))
"""


def test_processes_do_not_overwrite_each_other(store: ModelStore) -> None:
    root = Path(__file__).resolve().parents[3]
    children = [
        subprocess.Popen([sys.executable, "-c", NOTE_TEN, str(store.folder), version], cwd=root)
        for version in ("1.1.0", "1.2.0")
    ]
    assert [child.wait(PATIENCE) for child in children] == [0, 0]
    assert [admission.number for admission in store.admissions()] == list(range(1, 21))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_says_who_makes_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AdmissionError, match=r"com\.fedgrass\.ModelDeployer"), ModelStore(tmp_path / "store").lock():
        pass

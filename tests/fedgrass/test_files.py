"""Files are whole or absent."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedgrass.files import bytes_below, replacing, write_atomically


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail() -> None:
        with replacing(path) as stream:
            stream.write(b"ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_size_of_a_folder_can_be_asked_while_its_files_go(tmp_path: Path) -> None:
    stopping = threading.Event()

    def churn() -> None:
        while not stopping.is_set():
            write_atomically(tmp_path / "a" / "b", b"x" * 100)
            (tmp_path / "a" / "b").unlink()
            (tmp_path / "a").rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {bytes_below(tmp_path) for _ in range(500)}
    finally:
        stopping.set()
        thread.join()
    assert sizes <= {0, 100}
    assert bytes_below(tmp_path / "missing") == 0

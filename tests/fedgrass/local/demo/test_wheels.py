"""The devices' packages are downloaded once, also for several demos that begin at the same time."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedgrass.errors import TransferError
from fedgrass.local.demo import wheels
from tests.fixtures.waiting import eventually


def test_of_several_at_a_time_one_downloads_and_the_others_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        eventually(lambda: len(begun) == 3)
        return subprocess.CompletedProcess(argv, 1 if len(asked) == 1 else 0, "", "no network")

    begun: list[int] = []

    def fill(number: int) -> dict[str, str]:
        begun.append(number)
        return wheels.fill(tmp_path)

    monkeypatch.setattr(subprocess, "run", download)
    with ThreadPoolExecutor(3) as pool:
        filling = [pool.submit(fill, number) for number in range(3)]
    failed = [one.exception() for one in filling if one.exception()]
    assert [str(error) for error in failed] == ["pip could not download the devices' packages: no network"]
    assert isinstance(failed[0], TransferError)
    # One of the two that had waited tried again, and the third found what that one had brought.
    assert len(asked) == 2
    [folder] = {one.result()["PIP_FIND_LINKS"] for one in filling if not one.exception()}
    assert Path(folder, ".complete").exists()

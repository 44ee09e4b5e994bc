"""A local fleet's devices, whatever their names are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from fedgrass.local import fleet as module
from fedgrass.local.fleet import LocalFleet


@pytest.mark.parametrize("thing", ["device-1", "line:3", "a:b:c", "a_b-c"])
def test_a_venv_can_be_made_where_a_device_lives_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thing: str
) -> None:
    started: list[list[str]] = []

    def spawn(argv: list[str], **_options: Any) -> MagicMock:
        started.append(argv)
        return MagicMock()

    monkeypatch.setattr(module, "spawn", spawn)
    monkeypatch.setattr(module, "stop", lambda _process: None)
    with LocalFleet(tmp_path, fleet="f") as fleet:
        fleet.aws = MagicMock(environment=dict, endpoint_url="http://127.0.0.1:1", mqtt="127.0.0.1:2")
        fleet.outputs = SimpleNamespace(token_exchange_role_arn="arn")  # type: ignore[assignment]
        device = fleet.start_device(thing)
    [argv] = started
    assert argv[argv.index("--thing") + 1] == thing
    assert argv[argv.index("--root") + 1] == str(device.greengrass_root)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", device.greengrass_root / "venv"], check=True)

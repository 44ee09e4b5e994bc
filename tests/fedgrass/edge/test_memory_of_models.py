"""A model that does not fit into the memory left is declined with both figures."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from fedgrass.bundle import Bundle, Manifest
from fedgrass.edge import system
from fedgrass.edge.memory import needed_bytes, require_memory
from fedgrass.edge.resource_policy import UnavailableError
from fedgrass.edge.system import Sensors, available_bytes
from tests.fedgrass.edge import digits

MANIFEST = Bundle.open(digits.BUNDLE).manifest
MB = 1 << 20


def large(optimizer: str) -> Manifest:
    [first, *rest] = MANIFEST.parameters
    return MANIFEST.model_copy(
        update={
            "parameters": (first.model_copy(update={"shape": (25 * MB,)}), *rest),
            "optimizer": MANIFEST.optimizer.model_copy(update={"name": optimizer}),
        }
    )


@pytest.mark.parametrize(("optimizer", "least"), [("sgd", 400), ("momentum", 500), ("adam", 600)])
def test_it_names_what_it_needs_and_what_there_is(optimizer: str, least: int) -> None:
    manifest = large(optimizer)
    assert needed_bytes(manifest) // MB == least
    with pytest.raises(UnavailableError, match=rf"needs about {least + 1} MB of memory, {least} MB are free"):
        require_memory(manifest, least * MB)
    require_memory(manifest, (least + 1) * MB)


def groups(folder: Path, controllers: str, files: dict[str, str]) -> int:
    own = folder / "self"
    own.write_text(f"5:devices:/\n1:{controllers}:/system.slice/trainer\n")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return available_bytes(groups=folder, own=own)


def test_the_tightest_control_group_counts_without_the_files_that_it_could_give_up(tmp_path: Path) -> None:
    found = groups(
        tmp_path,
        "",
        {
            "system.slice/trainer/memory.max": "max\n",
            "system.slice/trainer/memory.current": "5\n",
            "system.slice/memory.max": f"{100 * MB}\n",
            "system.slice/memory.current": f"{90 * MB}\n",
            "system.slice/memory.stat": f"anon 1\ninactive_file {20 * MB}\n",
        },
    )
    assert found == 30 * MB


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    files = {
        "memory/system.slice/trainer/memory.limit_in_bytes": f"{50 * MB}\n",
        "memory/system.slice/trainer/memory.usage_in_bytes": f"{60 * MB}\n",
    }
    assert groups(tmp_path, "memory", files) == 0


def test_without_bounds_the_system_counts(tmp_path: Path) -> None:
    assert available_bytes(groups=tmp_path, own=tmp_path / "missing") == pytest.approx(
        psutil.virtual_memory().available, rel=0.5
    )
    assert groups(tmp_path, "", {"system.slice/trainer/memory.max": "no number"}) > 0


def test_a_control_group_s_bound_counts_for_min_free_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_left_in_groups", lambda _groups, _own: iter([7 * MB, 9 * MB]))
    assert Sensors(tmp_path).read().memory_free_bytes == 7 * MB
    assert available_bytes() == 7 * MB

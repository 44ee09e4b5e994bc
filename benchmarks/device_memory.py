"""What a device's processes take of its memory: idle, in a round, and with an upper bound for all of them; one JSON line.

``python -m benchmarks.device_memory`` runs the demo's fleet and looks at its first device. Resident memory counts a page in each
process that shares it; the proportional share (PSS) adds up to what they take together.

``--limit-mb N`` puts that device, its core device included, into a control group of so much memory for the round (needs root).
``--out-of-memory`` has the kernel kill who trains in it once, and then runs the round to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from fedgrass.local.demo.run import Demo, DemoOptions
from fedgrass.protocol import tables
from fedgrass.protocol.names import TRAINER
from tests.faults.fleet import MODULES, FaultyFleet
from tests.faults.rounds import UNDER_FAULTS
from tests.fixtures.waiting import eventually

THING = "device-1"
OURS = {**{module: module.rpartition(".")[2] for module in MODULES.values()}, "fedgrass.edge.admit": "admission"}
GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LONG = {**UNDER_FAULTS, "fit": {"epochs": 100, "learning_rate": 0.1}, "deadline_seconds": 400}
MB = 1 << 20


def main() -> None:
    """Run a fleet, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=int, default=0, help="bound for the device in the round; 0 is none")
    parser.add_argument("--out-of-memory", action="store_true", help="have who trains killed for memory")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options, wheels = DemoOptions(devices=2, rounds=1, seed=1), Path(".fedgrass/wheels").resolve()
        with Demo(
            options, Path(folder) / "fleet", cache=wheels, console=Console(stderr=True), make_fleet=FaultyFleet
        ) as demo:
            demo.start()
            assert isinstance(demo.fleet, FaultyFleet)
            found = {"machine": platform.machine(), "able_seconds": round(time.monotonic() - began, 1)}
            # Seconds for what started to come to rest; nothing tells when it has.
            time.sleep(3)
            found["idle"] = added_up(look(demo.fleet))
            with group(demo.fleet, arguments.limit_mb, needed=arguments.out_of_memory) as bound:
                found["round"] = a_round(demo, bound, kill=arguments.out_of_memory)
                found |= {"limit_mb": arguments.limit_mb, "most_in_the_group_mb": peak_of(bound)} if bound else {}
            time.sleep(3)
            found["idle_after"] = added_up(look(demo.fleet))
    print(json.dumps(found))


def a_round(demo: Demo, bound: Path | None, *, kill: bool) -> dict[str, object]:
    """Run one round; the largest sizes seen meanwhile."""
    assert isinstance(demo.fleet, FaultyFleet)
    peaks: dict[str, dict[str, float]] = defaultdict(lambda: {"rss": 0.0, "pss": 0.0})
    ended, together, killed = threading.Event(), [0.0], False

    def watch() -> None:
        # Ten looks a second: a peak shorter than that is missed.
        while not ended.wait(0.1):
            seen = look(demo.fleet)  # type: ignore[arg-type]
            together[0] = max(together[0], sum(one["pss"] for one in seen.values()))
            for name, one in seen.items():
                peaks[name] = {kind: max(peaks[name][kind], one[kind]) for kind in one}

    def until_training() -> None:
        nonlocal killed
        assert isinstance(demo.fleet, FaultyFleet)
        assert bound is not None
        checkpoint = demo.fleet.devices[THING].greengrass_root / "work" / TRAINER / "checkpoint.safetensors"
        eventually(checkpoint.exists, timeout=300)
        killed = out_of_memory(demo.fleet, bound)

    threads = [threading.Thread(target=watch)] + ([threading.Thread(target=until_training)] if kill else [])
    for thread in threads:
        thread.start()
    functions, machine = demo.fleet.aws.client("stepfunctions"), demo.fleet.outputs.state_machine_arn
    execution = functions.start_execution(stateMachineArn=machine, input=json.dumps({"rounds": 1, **LONG}))[
        "executionArn"
    ]

    def over() -> dict[str, Any] | None:
        described: dict[str, Any] = functions.describe_execution(executionArn=execution)
        return None if described["status"] == "RUNNING" else described

    described = eventually(over, timeout=600) or {}
    ended.set()
    for thread in threads:
        thread.join()
    if not (records := tables.recent_rounds(demo.rounds_table, demo.fleet.fleet)):
        raise SystemExit(f"no round was opened: {described.get('error')}: {described.get('cause')}")
    record, status = records[0], described["status"]
    said = {"status": status, "outcome": record.outcome, "uploaded": record.uploaded, "active": record.active}
    return {
        **said,
        **({"killed_and_trained_again": killed} if kill else {}),
        "peak": peaks,
        "peak_pss_together": round(together[0], 1),
    }


def look(fleet: FaultyFleet) -> dict[str, dict[str, float]]:
    """Sizes of the suite's processes on the device, in MB."""
    folder, found = str(fleet.devices[THING].folder), {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        name = next((OURS[word] for word in words if word in OURS), "")
        if name and not words[0].endswith("sh") and any(folder in word for word in words):
            with contextlib.suppress(psutil.Error):
                sizes = process.memory_full_info()
                found[name] = {"rss": round(sizes.rss / MB, 1), "pss": round(sizes.pss / MB, 1)}
                for child in process.children(recursive=True):
                    sizes = child.memory_full_info()
                    found[f"{name}'s child"] = {"rss": round(sizes.rss / MB, 1), "pss": round(sizes.pss / MB, 1)}
    found.pop("stream_manager", None)  # the stand-in's; the real one is Java
    return found


def added_up(sizes: dict[str, dict[str, float]]) -> dict[str, object]:
    """The sizes, and their sums."""
    sums = {f"{kind}_together": round(sum(one[kind] for one in sizes.values()), 1) for kind in ("rss", "pss")}
    return {**sizes, **sums}


@contextlib.contextmanager
def group(fleet: FaultyFleet, limit_mb: int, *, needed: bool) -> Iterator[Path | None]:
    """A control group that holds the device's processes and those they start; None without a limit."""
    if not limit_mb and not needed:
        yield None
        return
    root = next((folder for folder in GROUPS if (folder / "cgroup.procs").exists()), None)
    if root is None or os.geteuid() != 0:
        raise SystemExit("--limit-mb needs root and the memory controller under /sys/fs/cgroup")
    bound = root / f"fedgrass-{os.getpid()}"
    bound.mkdir()
    try:
        device = psutil.Process(fleet.devices[THING].process.pid)
        for process in (device, *device.children(recursive=True)):
            (bound / "cgroup.procs").write_text(str(process.pid))
        # What they had before stays with the group that they had it in: start over, as at a boot.
        for name in ("Stream Manager", *(module for module in MODULES if module != "Stream Manager")):
            fleet.kill(THING, name)
        set_limit(bound, limit_mb * MB if limit_mb else -1)
        yield bound
    finally:
        set_limit(bound, -1)
        for pid in (bound / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            bound.rmdir()


def set_limit(bound: Path, limit: int) -> None:
    """Bound the group's memory, in bytes; -1 takes the bound away."""
    old = bound / "memory.limit_in_bytes"
    # cgroup v1 and v2 write "no limit" differently.
    (old if old.exists() else bound / "memory.max").write_text(str(limit) if old.exists() or limit >= 0 else "max")


def peak_of(bound: Path) -> float:
    """The most that the group has taken, in MB; the page cache of its files included."""
    name = next(name for name in ("memory.max_usage_in_bytes", "memory.peak") if (bound / name).exists())
    return round(int((bound / name).read_text()) / MB, 1)


def out_of_memory(fleet: FaultyFleet, bound: Path) -> bool:
    """Have the kernel kill who trains, in a group below of less memory than its next page takes; whether the trainer lives on."""
    trainer = fleet.running(THING, TRAINER)
    training = eventually(trainer.children)[0]
    below = bound / "little"
    below.mkdir()
    set_limit(below, MB)
    (below / "cgroup.procs").write_text(str(training.pid))
    eventually(lambda: not psutil.pid_exists(training.pid), timeout=120)
    below.rmdir()
    again = eventually(trainer.children)[0]
    return again.pid != training.pid and trainer.is_running()


if __name__ == "__main__":
    main()

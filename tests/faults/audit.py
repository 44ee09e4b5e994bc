"""What the promise is measured by: nothing lost after acceptance, nothing counted twice, always a model, nothing hung."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.errors import BundleError
from fedgrass.local.demo.run import Demo
from fedgrass.protocol.names import TRAINER
from fedgrass.protocol.participations import participations
from tests.faults.rounds import Rounds
from tests.fixtures.waiting import eventually


class ModelWatch:
    """Looks all the time whether each device's application would find a whole model at its stable path."""

    def __init__(self, demo: Demo) -> None:
        self._stores = {thing: device.store for thing, device in demo.fleet.devices.items()}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)
        self.looks = 0
        self.missing: Counter[str] = Counter()

    def __enter__(self) -> ModelWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            for thing, store in self._stores.items():
                self.looks += 1
                try:
                    Bundle.open((store / "active").resolve())
                except BundleError:
                    self.missing[thing] += 1


def accepted(demo: Demo) -> set[tuple[int, str]]:
    """Rounds and devices whose trainer took an update over for upload, by its own log."""
    found = set()
    for thing, device in demo.fleet.devices.items():
        for line in (device.greengrass_root / "logs" / f"{TRAINER}.log").read_text(errors="replace").splitlines():
            start = line.find("{")
            try:
                said = json.loads(line[start:]) if start >= 0 else {}
            except ValueError:
                continue  # cut short by a kill
            if said.get("event") == "trained":
                found.add((int(said["round"]), thing))
    return found


def drained(demo: Demo) -> bool:
    """Wait until no device holds an update or a message back."""

    def waiting() -> list[Path]:
        works = [device.greengrass_root / "work" / TRAINER for device in demo.fleet.devices.values()]
        return [
            path
            for work in works
            for pattern in ("uploads/*/upload.json", "outbox/[0-9]*.json")
            for path in work.glob(pattern)
        ]

    try:
        eventually(lambda: not waiting())
    except AssertionError:
        return False
    return True


class Audit:
    """The state of things when a campaign is over and the fleet has come to rest."""

    def __init__(self, demo: Demo, rounds: Rounds) -> None:
        self.accepted = accepted(demo)
        self.told: set[tuple[int, str]] = set()
        self.counted_twice = 0
        for record in rounds.records():
            parts = list(participations(demo.rounds_table, demo.fleet.fleet, record.round))
            uploads = [part for part in parts if part.status == "uploaded"]
            self.told |= {(record.round, part.thing) for part in uploads}
            in_time = sum(not part.late for part in uploads)
            self.counted_twice += max(0, record.uploaded - in_time) + max(0, record.late - (len(parts) - in_time))
            if (report := demo.report_of(record.round)) is not None and report.outcome == "released":
                names = Counter(entry.thing for entry in report.updates)
                self.counted_twice += sum(count - 1 for count in names.values())
        self.lost = sorted(self.accepted - self.told)

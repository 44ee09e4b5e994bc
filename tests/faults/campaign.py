"""Many faults at random, on a fleet that runs rounds all the while; then rest, one clean round, and the audit."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from fedgrass.local.demo.run import Demo
from tests.faults.audit import Audit, ModelWatch, drained
from tests.faults.fleet import FaultyFleet
from tests.faults.injectors import FAULTS, Place
from tests.faults.rounds import Rounds
from tests.fixtures.waiting import PATIENCE, eventually


@dataclass
class Findings:
    """What a campaign found; ``outcomes`` by fault."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: float = 0.0
    rounds: int = 0
    accepted: int = 0
    lost: list[tuple[int, str]] = field(default_factory=list)
    counted_twice: int = 0
    looks: int = 0
    without_model: int = 0
    hung: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.counted_twice or self.without_model or self.hung)

    @property
    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(vars(self))

    def __add__(self, other: Findings) -> Findings:
        outcomes = {
            name: self.outcomes.get(name, Counter()) + other.outcomes.get(name, Counter())
            for name in (*self.outcomes, *(name for name in other.outcomes if name not in self.outcomes))
        }
        added = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)[1:]}
        return Findings(outcomes, **added)


def merged(lines: Iterable[str]) -> Findings:
    """Add up the findings of several campaigns, from their lines."""
    total = Findings()
    for line in lines:
        found = json.loads(line)
        total += Findings(
            **{
                **found,
                "outcomes": {name: Counter(counts) for name, counts in found["outcomes"].items()},
                "lost": [(number, thing) for number, thing in found["lost"]],
            }
        )
    return total


def run(demo: Demo, folder: Path, times: Mapping[str, int], *, seed: int, between: float = 0.5) -> Findings:
    """Inject each fault so many times, spread over the devices, in random order, at most ``between`` seconds apart."""
    fleet = demo.fleet
    if not isinstance(fleet, FaultyFleet):
        raise TypeError("a campaign needs a FaultyFleet")
    began = time.monotonic()
    rounds = Rounds(demo)
    findings = Findings(outcomes={name: Counter() for name, count in times.items() if count})
    order = [name for name, count in times.items() for _ in range(count)]
    random.Random(seed).shuffle(order)
    things = sorted(fleet.devices)
    lock = threading.Lock()

    def harm(thing: str) -> None:
        while True:
            with lock:
                if not order:
                    return
                name, left = order.pop(), len(order)
            place.moment(between)
            try:
                outcome = FAULTS[name](place, thing)
            except AssertionError as error:
                outcome = "did not come back"
                findings.hung.append(f"{name} on {thing}: {error}")
            with lock:
                findings.outcomes[name][outcome] += 1
            print(f"  {time.monotonic() - began:6.0f} s, {left:4d} left: {name} on {thing}: {outcome}", file=sys.stderr)

    place = Place(fleet, rounds, folder, seed)
    if times.get("bad model"):
        rounds.run()  # a model that knows nothing must be worse than the active one, or there is nothing to refuse
    with ModelWatch(demo) as watch:
        with rounds.going_on():
            threads = [threading.Thread(target=harm, args=(thing,), name=f"harm-{thing}") for thing in things]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        _rest(demo, rounds, findings)
    place.close()
    audit = Audit(demo, rounds)
    findings.rounds = len(rounds.records())
    findings.accepted, findings.lost, findings.counted_twice = len(audit.accepted), audit.lost, audit.counted_twice
    findings.looks, findings.without_model = watch.looks, watch.missing.total()
    findings.hung += [f"round {arn.rpartition(':')[2]}" for arn in rounds.hung]
    findings.seconds = time.monotonic() - began
    return findings


def _rest(demo: Demo, rounds: Rounds, findings: Findings) -> None:
    """Let the fleet come to rest, and have it show that everything works: a hung process would be missed in a round."""
    if not drained(demo):
        findings.hung.append("an update or a message never left its device")

    def all_in() -> bool:
        wanted = {
            "min_devices": len(demo.fleet.devices),
            "min_updates": len(demo.fleet.devices),
            "gate": {"tolerance": 1},
        }
        status = rounds.run(deadline_seconds=int(PATIENCE), **wanted)
        [last, *_] = rounds.records()
        return status == "SUCCEEDED" and last.uploaded == len(demo.fleet.devices) == last.active

    try:
        eventually(all_in)
    except AssertionError:
        [last, *_] = rounds.records()
        findings.hung.append(
            f"no clean round any more: {last.outcome} ({last.reason}), {last.uploaded} updates, {last.active} active"
        )

"""Schedules, made of a scenario and a seed, run and judged."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.explorer.invariants import violations
from tests.explorer.scenario import Plan, Scenario, Schedule
from tests.explorer.scheduler import EndlessError
from tests.explorer.world import World

SCENARIOS = (
    Scenario("release"),
    Scenario("canaries", {"rollout": {"canary_group": "canaries", "canary_seconds": 5}}),
    Scenario("devices judge", {"gate": {"devices_seconds": 30}}),
    Scenario("advance", {"release_every": 9}),
    Scenario("hold", {}, {"release": "never"}),
    Scenario("several rounds", {}, {"rounds": 2}, second={}),
    Scenario("quorum", {"quorum": 0.5, "min_updates": 1}),
    Scenario(
        "stream",
        {
            "mode": "asynchronous",
            "buffer_size": 2,
            "min_updates": 1,
            "strategy": {"name": "fedbuff", "options": {"staleness": 3}},
        },
        {"rounds": 3},
        slow=("b",),
    ),
    Scenario("run of two executions", {}, {"rounds": 3}, of_an_execution=2, resumes=True),
    Scenario("devices refuse", refused="1.1.0"),
    Scenario("devices refuse the first of two rounds", {}, {"rounds": 2}, refused="1.1.0"),
    Scenario("person goes back", released_before=True, operator=("roll_back",)),
    Scenario("person releases", held_before=True, operator=("release",)),
    Scenario("two persons", held_before=True, operator=("release", "roll_back")),
    Scenario("person deploys", operator=("deploy",)),
)

SINGLE: tuple[tuple[Any, ...], ...] = (
    ("stop",),
    ("timeout",),
    ("kill",),
    ("term",),
    ("clone",),
    ("crash",),
    ("delay",),
    ("conflict", 2),
    ("throttle", 2),
)
_WEIGHTS = {
    "stop": 6,
    "timeout": 3,
    "kill": 3,
    "term": 1,
    "clone": 2,
    "crash": 3,
    "delay": 8,
    "prefer": 6,
    "conflict": 2,
    "throttle": 1,
}


@dataclass
class Tally:
    """What a campaign found."""

    schedules: int = 0
    crashes: int = 0
    steps: int = 0
    broken: int = 0
    did: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[Schedule, str]] = field(default_factory=dict)
    by_disturbance: dict[str, list[int]] = field(default_factory=dict)

    def add(self, world: World, found: dict[str, str]) -> None:
        self.schedules += 1
        self.steps += world.scheduler.steps
        self.did.update(world.did)
        self.crashes += bool(world.did.keys() & {"kill", "term", "crash"})
        self.broken += bool(found)
        self.kinds.update(found.keys())
        for kind, how in found.items():
            self.examples.setdefault(kind, (world.schedule, how))
        for kind in world.did or ["nothing"]:
            counts = self.by_disturbance.setdefault(kind, [0, 0])
            counts[0] += 1
            counts[1] += bool(found)


class _Judged(World):
    """Looks before the next round too: by then the sweep has mended what a lost event or a person's end left."""

    def between(self) -> None:
        self.before_next = dict(violations(self, at_the_end=False))


def run(schedule: Schedule) -> tuple[World, dict[str, str]]:
    """Run a schedule; returns its world and the invariants that it broke."""
    world = _Judged(schedule)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            world.run()
        found = {**dict(violations(world, at_the_end=True)), **world.before_next}
    except EndlessError as error:
        found = {"endless": str(error)}
    finally:
        logging.disable(logging.NOTSET)
    return world, found


def length(scenario: Scenario) -> int:
    """Steps of the scenario when nothing disturbs it."""
    world, found = run(Schedule(scenario, {}))
    if found:
        raise AssertionError(f"{scenario.name}: {found}")
    return world.steps


def singles(scenario: Scenario, steps: int, every: int = 1, first: int = 0) -> Iterator[Schedule]:
    """Each disturbance at each step; a stop with a job that obeys SIGTERM and one that does not."""
    for step in range(1 + first % every, steps + 1, every):
        for action in SINGLE:
            yield Schedule(scenario, {step: [action]})
            if action == ("stop",):
                yield Schedule(scenario, {step: [action]}, obeys=False)


def mixed(scenario: Scenario, steps: int, seed: int) -> Schedule:
    """Several disturbances and pre-emptions at once, and events that are lost or come twice."""
    generator = random.Random(f"{scenario.name} {seed}")
    plan: Plan = {}
    kinds = generator.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=generator.randint(2, 4))
    crashes, step = 0, generator.randint(1, steps + 10)
    for kind in kinds:
        action: tuple[Any, ...] = (kind,)
        crashes += kind == "crash"
        if crashes > 2:
            continue
        if kind == "prefer":
            action = (kind, generator.randrange(4))
        elif kind in {"conflict", "throttle"}:
            action = (kind, generator.randint(1, 3))
        plan.setdefault(step, []).append(action)
        # What goes wrong together is most often close together.
        close = step + generator.randint(-4, 8)
        step = max(1, close) if generator.random() < 0.6 else generator.randint(1, steps + 10)
    events: dict[int, int] = {}
    for _ in range(generator.randint(0, 2)):
        events[generator.randint(1, 12)] = generator.choice([0, 2, 2])
    return Schedule(scenario, plan, seed, events, obeys=generator.random() < 0.5)


def campaign(schedules: int, seed: int = 0, scenarios: tuple[Scenario, ...] = SCENARIOS) -> Iterator[Schedule]:
    """Half of the schedules disturb once, at steps spread evenly; the rest several times."""
    lengths = [length(scenario) for scenario in scenarios]
    total = sum(steps * (len(SINGLE) + 1) for steps in lengths)
    every = max(1, -(-total // max(1, schedules // 2)))
    done = 0
    for scenario, steps in zip(scenarios, lengths, strict=True):
        for schedule in singles(scenario, steps, every, seed):
            done += 1
            yield schedule
    for number in range(max(0, schedules - done)):
        chosen = number % len(scenarios)
        yield mixed(scenarios[chosen], lengths[chosen], seed * 1_000_003 + number)

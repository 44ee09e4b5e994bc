"""What is tried: a scenario, and a schedule that disturbs it; and the names that all of it goes by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FLEET, BUCKET, FIRST = "mill", "fedgrass-mill", "1.0.0"
GROUP_ARN = f"arn:aws:iot:us-east-1:123456789012:thinggroup/{FLEET}"
CANARIES_ARN = "arn:aws:iot:us-east-1:123456789012:thinggroup/canaries"
THINGS = ("a", "b")


Plan = dict[int, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Scenario:
    """What is going on before anything is disturbed.

    ``held`` is run first and left held, so that there is a model to release by hand. ``operator`` acts while the round runs.
    ``refused`` is a version that all devices refuse. ``slow`` devices are done with a round when the next one is announced.
    ``of_an_execution``: so many rounds of a run are one execution. ``resumes``: somebody goes on with the run at the end.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)
    held_before: bool = False
    released_before: bool = False
    operator: tuple[str, ...] = ()
    second: dict[str, Any] | None = None
    refused: str = ""
    slow: tuple[str, ...] = ()
    of_an_execution: int = 500
    resumes: bool = False


@dataclass(frozen=True)
class Schedule:
    """A run that can be repeated: a scenario, what happens at which step, and which events come how often."""

    scenario: Scenario
    plan: Plan
    seed: int = 0
    events: dict[int, int] = field(default_factory=dict)
    obeys: bool = True  # whether a stopped job ends at SIGTERM


class StoppedError(SystemExit):
    """What a job's handler of SIGTERM raises."""

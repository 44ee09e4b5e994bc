"""Groups of virtual devices, each with a model of its own: who is of which, and what a group's rounds share with the others'."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.errors import DataError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import Cohort
from fedgrass.simulation.population import Assignments, Plan, Population
from fedgrass.simulation.settings import Attack

if TYPE_CHECKING:
    from fedgrass.simulation.machine import Machine

CHOICES = "choices.jsonl"


class Choice(BaseModel):
    """A round's devices, and by place the group of each; ``losses`` are of the chosen model on the device's training examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    round: int
    devices: tuple[int, ...]
    groups: tuple[int, ...]
    losses: tuple[float, ...] = ()

    def of(self, group: int) -> list[int]:
        """Return the devices that chose a group."""
        return [device for device, chosen in zip(self.devices, self.groups, strict=True) if chosen == group]


class Members:
    """What a `fedgrass.simulation.population.Population` is to one group: in each round the devices that chose it."""

    def __init__(self, population: Population, group: int) -> None:
        self._population = population
        self._group = group
        self._chosen: dict[int, frozenset[int]] = {}

    def tell(self, choice: Choice) -> None:
        """Take in who chose what in a round; until then nobody is asked in it."""
        self._chosen[choice.round] = frozenset(choice.of(self._group))

    @property
    def attack(self) -> Attack | None:
        """As of the population."""
        return self._population.attack

    @property
    def attackers(self) -> frozenset[int]:
        """As of the population."""
        return self._population.attackers

    def opened(self, number: int) -> tuple[Cohort, Plan]:
        """Return who is asked in a round; see `fedgrass.simulation.population.Population.opened`."""
        cohort, plan = self._population.opened(number)
        here = self._chosen.get(number, frozenset())
        asked = tuple(device for device in plan.asked if device in here)
        answers = tuple(device for device in plan.answers if device in here)
        late = {device: after for device, after in plan.late.items() if device in here}
        return cohort, Plan(asked, answers, late, len(asked) - len(answers) - len(late), plan.seconds)

    def duties(self, number: int, staleness: int) -> Assignments:
        """Return what devices do in a round; an update that comes late goes to the group that it was trained for."""
        duties, here = self._population.duties(number, staleness), self._chosen.get(number, frozenset())
        arrived = [(e, d) for e, d in duties.arrived if d in self._chosen.get(e, frozenset())]
        answers, late = ([d for d in some if d in here] for some in (duties.answers, duties.late))
        return Assignments(answers, late, arrived, duties.parts)


@dataclass(frozen=True)
class Group:
    """A group's part in a simulation. ``size`` is how many devices it has, as far as that is known: else all there are."""

    name: str
    members: Members
    size: int
    machine: Machine


class Choices:
    """Who chose what, in a file: each round's before it trains, so that a round that is done again has the same groups."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CHOICES
        self.rounds: dict[int, Choice] = {}

    def begin(self) -> None:
        """Make the file anew."""
        write_atomically(self._path, b"")

    def resume(self) -> None:
        """Read what is there; raises `DataError` if it is damaged. A last line that was cut off is left out."""
        try:
            lines = self._path.read_bytes().split(b"\n")[:-1]
            self.rounds = {one.round: one for one in map(Choice.model_validate_json, lines)}
        except (OSError, ValidationError) as error:
            raise DataError(f"{self._path}: cannot be read ({error}); simulate again") from error
        # Without what was cut off, to which the next line would be joined.
        write_atomically(self._path, b"".join(line + b"\n" for line in lines))

    def add(self, choice: Choice) -> None:
        """Append a round's."""
        self.rounds[choice.round] = choice
        with self._path.open("ab") as file:
            file.write(json.dumps(choice.model_dump(), separators=(",", ":")).encode() + b"\n")


def moved(choices: Mapping[int, Choice]) -> list[tuple[int, int]]:
    """Return of each round how many devices chose another group than when they were asked last, and how many had been.

    Examples
    --------
    >>> moved({1: Choice(round=1, devices=(3, 4), groups=(0, 1)), 2: Choice(round=2, devices=(4, 5), groups=(0, 0))})
    [(0, 0), (1, 1)]
    """
    last: dict[int, int] = {}
    found = []
    for number in sorted(choices):
        one = choices[number]
        known = [(last[d], g) for d, g in zip(one.devices, one.groups, strict=True) if d in last]
        found.append((sum(before != now for before, now in known), len(known)))
        last |= dict(zip(one.devices, one.groups, strict=True))
    return found


def names_of(tag: str, values: Sequence[str], clusters: int) -> list[str]:
    """Return the groups' names.

    Examples
    --------
    >>> names_of("site", ("north", "south"), 0), names_of("", (), 2)
    (['site=north', 'site=south'], ['cluster-1', 'cluster-2'])
    """
    return [f"cluster-{k + 1}" for k in range(clusters)] if clusters else [f"{Path(tag).stem}={v}" for v in values]

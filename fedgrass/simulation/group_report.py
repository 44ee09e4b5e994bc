"""The report of a simulation in which groups of devices have models of their own."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.bundle import Manifest
from fedgrass.cli import page
from fedgrass.engines.base import Metrics
from fedgrass.files import write_atomically
from fedgrass.protocol.gain import ByDevice
from fedgrass.simulation.examples import Examples
from fedgrass.simulation.groups import Choices, moved
from fedgrass.simulation.records import SimulatedRound, SimulationReport, Timing
from fedgrass.simulation.settings import Simulation

DEVICES = "devices.csv"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class GroupReport(_Part):
    """One group. Its rounds, report and model are in ``folder``."""

    folder: str
    devices: int = Field(description="Of those that were asked at the end, how many have its model")
    by_device: ByDevice | None = Field(description="None if none of them keeps examples back")
    report: SimulationReport


class GroupsReport(_Part):
    """``report.json``. What is by device is of the final models, on the examples that each keeps back: of its group's model."""

    simulation: Simulation
    model: str
    rounds: int
    figure: str = Field(description="What devices are compared by: accuracy, or loss where there is none")
    groups: dict[str, GroupReport]
    by_device: ByDevice | None
    tags: dict[str, dict[str, int]] = Field(description="By value of the data's tag, how many devices have which model")
    moved: tuple[tuple[int, int], ...] = Field(
        description="In each round, devices that chose another group than the last time, of so many that were asked before"
    )
    timing: Timing


@dataclass(frozen=True)
class Standing:
    """What has become of one group; ``figures`` are by device, of those that keep examples back."""

    name: str
    folder: Path
    report: SimulationReport
    rounds: Sequence[SimulatedRound]
    devices: Sequence[int]
    figures: Mapping[int, Metrics]


def write(
    simulation: Simulation,
    manifest: Manifest,
    groups: Sequence[Standing],
    choices: Choices,
    examples: Examples,
    folder: Path,
) -> GroupsReport:
    """Write ``report.json``, ``devices.csv``, ``chart.png`` and ``index.html``.

    Parameters
    ----------
    simulation
        What was simulated.
    manifest
        Of the model that it started from.
    groups
        What became of each.
    choices
        Who chose what in each round.
    examples
        Know each device's tag.
    folder
        Where the files go.
    """
    told = [one for group in groups for one in group.figures.values()]
    figure = "accuracy" if told and all("accuracy" in one for one in told) else "loss"
    found = GroupsReport(
        simulation=simulation,
        model=manifest.name,
        rounds=len(groups[0].rounds),
        figure=figure,
        groups={
            group.name: GroupReport(
                folder=group.folder.as_posix(),
                devices=len(group.devices),
                by_device=_by_device([one[figure] for one in group.figures.values()], figure),
                report=group.report,
            )
            for group in groups
        },
        by_device=_by_device([one[figure] for one in told], figure),
        tags=_tags(groups, examples),
        moved=tuple(moved(choices.rounds)),
        timing=groups[0].report.timing,
    )
    write_atomically(folder / DEVICES, _csv(groups, examples).encode())
    template = Path(__file__).with_name("groups.html.j2")
    rounds = [[group.rounds[number] for group in groups] for number in range(found.rounds)]
    page.write_report(found, folder, template, draw(found, groups), entries=rounds)
    return found


def draw(report: GroupsReport, groups: Sequence[Standing]) -> bytes:
    """Draw each group's model by round, and how many devices are in each; return a PNG."""
    figure, (left, right) = page.new_figure(widths=(3, 2))
    numbers, bottom = range(1, report.rounds + 1), [0] * report.rounds
    for group in groups:
        evaluations = [one.evaluation for one in group.rounds]
        values = [one.loss if report.figure == "loss" else 100 * (one.accuracy or 0.0) for one in evaluations]
        # Rounds in which nobody chose it say nothing of it.
        at = [number for number, one in zip(numbers, group.rounds, strict=True) if one.asked]
        left.plot(at, [values[number - 1] for number in at], label=group.name, linewidth=1.8)
        counts = [one.asked for one in group.rounds]
        right.bar(numbers, counts, bottom=bottom, label=group.name, width=1.0 if report.rounds > 60 else 0.8)
        bottom = [below + above for below, above in zip(bottom, counts, strict=True)]
    what = report.figure + ("" if report.figure == "loss" else ", %")
    left.set(title=f"{what} on what the group's devices keep back", xlabel="round", ylabel=what)
    left.grid(alpha=0.3)
    left.legend(loc="best")
    right.set(title="Devices asked, by group", xlabel="round", ylabel="devices")
    return page.png(figure)


def _by_device(values: Sequence[float], figure: str) -> ByDevice | None:
    return ByDevice.of(values, falling=figure == "loss") if values else None


def _tags(groups: Sequence[Standing], examples: Examples) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {value: {} for value in examples.tags}
    for group in groups:
        for value, count in Counter(map(examples.tag, group.devices)).items():
            if value:
                found[value][group.name] = count
    return found


def _csv(groups: Sequence[Standing], examples: Examples) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["device", "tag", "group", "accuracy", "loss"])
    rows = [(device, group) for group in groups for device in group.devices]
    for device, group in sorted(rows, key=lambda row: row[0]):
        told = group.figures.get(device, {})
        table.writerow([device, examples.tag(device), group.name, told.get("accuracy", ""), told.get("loss", "")])
    return file.getvalue()

"""``python -m tests.soak``: many rounds under random faults, and what each process holds meanwhile; a table and a JSON line.

Memory, files, sockets and threads of every long-lived process are taken after each round. A process that was killed begins
anew, so slopes are those of its longest life, and its first tenth, in which caches fill, is left out.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from local.demo.run import Demo, DemoOptions
from tests.faults.audit import Audit, ModelWatch, drained
from tests.faults.fleet import MODULES, FaultyFleet
from tests.faults.injectors import FAULTS, KILLS, Place
from tests.faults.rounds import UNDER_FAULTS, Rounds

_WHEELS = Path(__file__).resolve().parents[1] / ".fedgrass" / "wheels"
_QUICK = UNDER_FAULTS | {"fit": {"epochs": 5, "learning_rate": 0.2}}
"""What is looked for grows with the number of rounds, not with their length."""
_RARELY = KILLS | {"bad model", "artifact corrupted"}
"""What begins a process anew, or holds the fleet up for long: one fault in ten."""


@dataclass(frozen=True)
class Sample:
    """What a process holds after a round."""

    pid: int
    rss_mb: float
    files: int
    sockets: int
    threads: int


Samples = dict[str, list[tuple[int, Sample]]]
"""By process, with the number of the round."""


def sample(fleet: FaultyFleet) -> dict[str, Sample]:
    """Take every process at the same time, as far as that goes."""
    processes: dict[str, psutil.Process | None] = {}
    with suppress(psutil.NoSuchProcess):
        processes["local AWS"] = psutil.Process(fleet.aws.process.pid)
    for thing, device in fleet.devices.items():
        with suppress(psutil.NoSuchProcess):
            processes[f"{thing} core device"] = psutil.Process(device.process.pid)
        for name in MODULES:
            processes[f"{thing} {name.rpartition('.')[2]}"] = fleet.process(thing, name)
    found = {}
    for name, process in processes.items():
        if process is None:
            continue
        with suppress(psutil.Error):
            sockets = len(process.net_connections(kind="all"))
            found[name] = Sample(
                process.pid,
                process.memory_info().rss / 2**20,
                process.num_fds() - sockets,
                sockets,
                process.num_threads(),
            )
    return found


@dataclass(frozen=True)
class Life:
    """The longest life of a process: what it held when its caches were full, and at its end."""

    lives: int
    rounds: int
    rss_mb: float
    mb_per_100_rounds: float | None
    files: tuple[int, int]
    sockets: tuple[int, int]
    threads: tuple[int, int]


def life_of(samples: list[tuple[int, Sample]]) -> Life:
    """Look at the process that lived through most rounds, without its first tenth.

    Its growth is by least squares; None over fewer than ten rounds.
    """
    lives: dict[int, list[tuple[int, Sample]]] = defaultdict(list)
    for number, one in samples:
        lives[one.pid].append((number, one))
    longest = max(lives.values(), key=len)
    longest = longest[len(longest) // 10 :]
    numbers, sizes = zip(*((number, one.rss_mb) for number, one in longest), strict=True)
    first, last = longest[0][1], longest[-1][1]
    return Life(
        len(lives),
        len(longest),
        round(last.rss_mb, 1),
        round(float(np.polyfit(numbers, sizes, 1)[0] * 100), 2) if len(longest) >= 10 else None,
        (first.files, last.files),
        (first.sockets, last.sockets),
        (first.threads, last.threads),
    )


def main(
    rounds: Annotated[int, typer.Option(help="Rounds to run.")] = 200,
    devices: Annotated[int, typer.Option(help="Core devices; every second one runs nucleus lite.", min=2)] = 5,
    minutes: Annotated[float, typer.Option(help="Begin no round after so long.")] = float("inf"),
    every: Annotated[float, typer.Option(help="Mean seconds between two faults.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Fixes which faults come in which order.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Keep the fleet's folder here, logs included.")] = None,
) -> None:
    """Run rounds under random faults; exit code 1 if a promise was broken."""
    samples: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        options = DemoOptions(devices=devices, rounds=1, seed=1)
        console = Console(stderr=True)
        with Demo(options, place / "fleet", cache=_WHEELS, console=console, make_fleet=FaultyFleet) as demo:
            demo.start()
            (place / "models").mkdir(exist_ok=True)
            fleet, driver = demo.fleet, Rounds(demo)
            assert isinstance(fleet, FaultyFleet)
            harm = Place(fleet, driver, place / "models", seed)
            stopping = threading.Event()
            injected = threading.Thread(target=_disturb, args=(harm, stopping, every, seed), name="harm")
            with ModelWatch(demo) as watch:
                injected.start()
                last = time.monotonic() + 60 * minutes
                while driver.ended < rounds and time.monotonic() < last:
                    driver.run(**_QUICK)
                    for name, one in sample(fleet).items():
                        samples[name].append((driver.ended, one))
                    print(f"  {driver.ended} of {rounds} rounds", file=sys.stderr)
                stopping.set()
                injected.join()
                rest = drained(demo)
            harm.close()
            audit = Audit(demo, driver)
    figures = {
        "rounds": driver.ended,
        "updates_accepted": len(audit.accepted),
        "updates_lost": len(audit.lost),
        "counted_twice": audit.counted_twice,
        "looks_for_the_active_model": watch.looks,
        "looks_in_vain": watch.missing.total(),
        "rounds_hung": len(driver.hung),
        "all_uploads_gone": rest,
    }
    lives = {name: life_of(taken) for name, taken in sorted(samples.items())}
    show(lives, Console(width=140))
    print(json.dumps({**figures, "processes": {name: vars(life) for name, life in lives.items()}}))
    sys.exit(bool(audit.lost or audit.counted_twice or watch.missing or driver.hung or not rest))


def _disturb(place: Place, stopping: threading.Event, every: float, seed: int) -> None:
    order = random.Random(seed)
    often, rarely = [name for name in FAULTS if name not in _RARELY], sorted(_RARELY)
    while not stopping.wait(order.expovariate(1 / every)):
        name = order.choice(rarely if order.random() < 0.1 else often)
        thing = order.choice(sorted(place.fleet.devices))
        try:
            FAULTS[name](place, thing)
        except AssertionError as error:
            print(f"  {name} on {thing}: {error}", file=sys.stderr)


def show(lives: dict[str, Life], console: Console) -> None:
    """Print the table."""
    table = Table(
        "process", "lives", "rounds of the longest", "MB at its end", "MB per 100 rounds", "files", "sockets", "threads"
    )
    for name, life in lives.items():
        growth = "-" if life.mb_per_100_rounds is None else f"{life.mb_per_100_rounds:+.2f}"
        held = (f"{first} → {last}" for first, last in (life.files, life.sockets, life.threads))
        table.add_row(name, str(life.lives), str(life.rounds), f"{life.rss_mb:.1f}", growth, *held)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

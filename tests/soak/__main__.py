"""``python -m tests.soak``: many rounds under random faults, and what each process holds meanwhile; a table and a JSON line.

Two devices, one of each nucleus, are spared what kills a process, so that theirs live as long as the soak does.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.table import Table

from fedgrass.errors import FedgrassError
from fedgrass.local.demo.run import Demo, DemoOptions
from tests.faults.audit import Audit, ModelWatch, drained
from tests.faults.fleet import FaultyFleet
from tests.faults.injectors import FAULTS, KILLS, Place
from tests.faults.rounds import UNDER_FAULTS, Rounds
from tests.soak.lives import ACCOUNT, ACCOUNT_MB_PER_100_ROUNDS, MB_PER_100_ROUNDS, Life, Samples, life_of, sample

_WHEELS = Path(__file__).resolve().parents[2] / ".fedgrass" / "wheels"
_QUICK = UNDER_FAULTS | {"fit": {"epochs": 5, "learning_rate": 0.2}}
"""What is looked for grows with the number of rounds, not with their length."""
_DEADLY = KILLS | {"clock jumps", "checkpoint corrupted"}
_RARELY = _DEADLY | {"bad model", "artifact corrupted"}
"""What begins a process again, or holds the fleet up for long: one fault in ten."""
_SPARED = 2


def main(
    rounds: Annotated[int, typer.Option(help="Rounds to run.")] = 200,
    devices: Annotated[int, typer.Option(help="Core devices; every second one runs nucleus lite.", min=3)] = 5,
    minutes: Annotated[float, typer.Option(help="Begin no round after so long.")] = float("inf"),
    every: Annotated[float, typer.Option(help="Mean seconds between two faults.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Fixes which faults come in which order.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Keep the fleet's folder here, logs included.")] = None,
) -> None:
    """Run rounds under random faults; exit code 1 if a promise was broken or a process grew."""
    samples: dict[str, Samples] = defaultdict(list)
    began = time.monotonic()
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
            injected: Counter[str] = Counter()
            disturbing = threading.Thread(target=_disturb, args=(harm, stopping, every, seed, injected), name="harm")
            with ModelWatch(demo) as watch:
                disturbing.start()
                last, ended = time.monotonic() + 60 * minutes, Counter[str]()
                while driver.ended < rounds and time.monotonic() < last:
                    status = driver.run(**_QUICK)
                    ended[status] += 1
                    for name, one in sample(fleet).items():
                        samples[name].append((driver.ended, one))
                    so_far = f"{driver.ended} of {rounds} rounds, {status}, {injected.total()} faults"
                    print(f"  {so_far}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                stopping.set()
                disturbing.join()
                rest = drained(demo)
            harm.close()
            audit = Audit(demo, driver)
    lives = {
        name: life_of(taken, ACCOUNT_MB_PER_100_ROUNDS if name == ACCOUNT else MB_PER_100_ROUNDS)
        for name, taken in sorted(samples.items())
    }
    verdicts = Counter(life.verdict for life in lives.values())
    figures = {
        "rounds": driver.ended,
        "rounds_by_status": dict(ended),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "faults": injected.total(),
        "kinds_of_fault": len(injected),
        "updates_accepted": len(audit.accepted),
        "updates_lost": len(audit.lost),
        "counted_twice": audit.counted_twice,
        "looks_for_the_active_model": watch.looks,
        "looks_in_vain": watch.missing.total(),
        "rounds_hung": len(driver.hung),
        "all_uploads_gone": rest,
        "processes": len(lives),
        **{f"processes_{verdict.replace(' ', '_')}": verdicts[verdict] for verdict in ("flat", "grows", "too short")},
    }
    show(lives, Console(width=160))
    held = {name: {**vars(life), "verdict": life.verdict} for name, life in lives.items()}
    print(json.dumps({**figures, "held": held}))
    broken = audit.lost or audit.counted_twice or watch.missing or driver.hung or not rest
    sys.exit(bool(broken or verdicts["grows"]))


def _disturb(place: Place, stopping: threading.Event, every: float, seed: int, injected: Counter[str]) -> None:
    order = random.Random(seed)
    often, rarely = [name for name in FAULTS if name not in _RARELY], sorted(_RARELY)
    things = sorted(place.fleet.devices)
    while not stopping.wait(order.expovariate(1 / every)):
        name = order.choice(rarely if order.random() < 0.1 else often)
        thing = order.choice(things[_SPARED:] if name in _DEADLY else things)
        injected[name] += 1
        try:
            FAULTS[name](place, thing)
        except (AssertionError, BotoCoreError, ClientError, FedgrassError) as error:
            print(f"  {name} on {thing}: {error}", file=sys.stderr)


def show(lives: dict[str, Life], console: Console) -> None:
    """Print the table."""
    table = Table(
        "process",
        "lives",
        "rounds judged",
        "MB",
        "MB per 100 rounds",
        "± MB",
        "files",
        "sockets",
        "threads",
        "limit",
        "verdict",
    )
    for name, life in lives.items():
        held = (f"{first:g} → {last:g}" for first, last in (life.files, life.sockets, life.threads))
        memory = (f"{life.rss_mb[0]} → {life.rss_mb[1]}", f"{life.mb_per_100_rounds:+.2f}", f"{life.spread_mb:.2f}")
        table.add_row(name, str(life.lives), str(life.rounds), *memory, *held, f"{life.limit:g} MB", life.verdict)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

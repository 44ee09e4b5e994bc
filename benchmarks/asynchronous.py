"""Rounds that never wait against rounds that do: simulated hours to a target accuracy, by the share of stragglers.

``python -m benchmarks.asynchronous`` trains scikit-learn's digits on virtual devices whose labels differ, in the simulation's own
rounds, and prints one JSON line: for each share of stragglers the simulated hours of each way until the model has reached the
accuracy, the median over the seeds, how many times sooner the stream is there, and how many times sooner partial work is than the
same deadline without it. A straggler's own slowness is drawn once: log-normal, from 1 to ``--slowest`` times the others' time.

Ways: ``synchronous`` waits for every device; ``over_asked`` takes the first of 1.3 times as many, as is usual against stragglers;
``deadline`` ends each round after ``--deadline`` seconds without those who are late, and ``partial`` after as many with what they
have (``fit.partial_margin_seconds``, a tenth of the deadline); ``asynchronous`` is FedBuff's stream (Nguyen et al., AISTATS 2022,
https://arxiv.org/abs/2106.06639, whose figure is 3.3 times sooner than synchronous rounds). All have the same devices, all of
which are asked, the same data, training and seed. Only training takes simulated time: a round's own minutes of aggregation would
make small rounds dearer than here. What each way costs is beside it: updates that devices sent until then. Gate and bounds that
protect a fleet from liars are off.

Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.records import SimulatedRound
from fedgrass.simulation.run import simulate

_PLAIN = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "deadline_seconds": 86_400,
    "min_updates": 1,
}
_OVER_ASKED = 1.3


class _ReachedError(Exception):
    """The target is reached."""


def main() -> None:
    """Run what the arguments ask for, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--buffer", type=int, default=10, help="updates that start an aggregation of the stream")
    parser.add_argument("--target", type=float, default=0.9, help="accuracy on the examples that no device has")
    parser.add_argument("--partition", default="dirichlet:0.3")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--deadline", type=int, default=90, help="seconds, of the ways that do not wait for all")
    parser.add_argument("--slowest", type=float, default=10.0)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.2, 0.5])
    parser.add_argument("--rounds", type=int, default=400, help="rounds after which a way is given up")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    began, found = time.process_time(), {}
    for share in given.shares:
        each = {way: [hours(way, share, seed, given) for seed in range(given.seeds)] for way in ways(given)}
        at = {way: {"hours": _median(runs, 0), "updates": _median(runs, 1)} for way, runs in each.items()}
        stream = at["asynchronous"]["hours"]
        times = {f"times_{way}": _ratio(at[way]["hours"], stream) for way in ("synchronous", "over_asked")}
        gain = {"times_partial": _ratio(at["deadline"]["hours"], at["partial"]["hours"])}
        found[f"{share:.0%} stragglers"] = {**at, **times, **gain}
    seconds = round(time.process_time() - began, 1)
    print(json.dumps({"benchmark": "asynchronous", **vars(given), "found": found, "processor_seconds": seconds}))


def ways(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings by which the ways differ."""
    return {
        "synchronous": {},
        "over_asked": {"cohort": {"size": round(given.devices / _OVER_ASKED), "over_ask": _OVER_ASKED}},
        "deadline": {"deadline_seconds": given.deadline},
        "partial": {"deadline_seconds": given.deadline, "fit": {"partial_margin_seconds": given.deadline // 10}},
        "asynchronous": {
            "mode": "asynchronous",
            "buffer_size": given.buffer,
            "strategy": {"name": "fedbuff", "options": {"staleness": 100}},
        },
    }


def hours(way: str, share: float, seed: int, given: argparse.Namespace) -> tuple[float, int] | None:
    """Return the simulated hours until the target is reached, and the updates that were used; None if it never was."""
    own = ways(given)[way]
    fit = {"epochs": given.epochs, "learning_rate": given.rate, **own.get("fit", {})}
    settings = {**_PLAIN, **own, "fit": fit}
    seconds, updates = 0.0, 0

    def done(simulated: SimulatedRound) -> None:
        nonlocal seconds, updates
        seconds += simulated.seconds
        updates += len(simulated.report.updates)
        if (simulated.evaluation.accuracy or 0.0) >= given.target:
            raise _ReachedError

    with tempfile.TemporaryDirectory() as folder:
        try:
            simulate(
                Path(folder) / way,
                done=done,
                devices=given.devices,
                cohort=given.devices,
                rounds=given.rounds,
                partition=given.partition,
                stragglers=f"{share}:{given.slowest}x:lognormal",
                seed=seed,
                fleet=FleetSettings().overridden(settings),
            )
        except _ReachedError:
            return seconds / 3600, updates
    return None


def _median(runs: list[tuple[float, int] | None], place: int) -> float | None:
    known = [run[place] for run in runs if run is not None]
    # One that never arrived makes the median no figure.
    return round(median(known), 3) if len(known) == len(runs) else None


def _ratio(other: float | None, stream: float | None) -> float | None:
    return None if other is None or not stream else round(other / stream, 2)


if __name__ == "__main__":
    main()

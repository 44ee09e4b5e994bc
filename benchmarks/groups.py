"""What a model for each group of devices brings: one for all, one for each turn by a tag, and as many chosen by devices (IFCA).

``python -m benchmarks.groups`` trains scikit-learn's digits, each device's turned by none to three right angles, on virtual
devices in the simulation's own rounds, and prints one JSON line: of each way the accuracy by device, the median and the mean of
the worst tenth over all seeds. A device's accuracy is that of its group's model on the fifth of its examples that it keeps back.
For the clusters there is besides how many devices share a model with no other turn's (``recovered``), and how many models were
chosen.

The data, their division, rounds, training and seed are the same for all ways. The bounds that protect a fleet from liars are off,
and so is the gate. Takes some minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.data.digits import digits
from fedgrass.protocol.gain import ByDevice
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.group_report import DEVICES
from fedgrass.simulation.grouped_run import simulate_groups

_TURNS = 4
_WAYS = {"one_for_all": "clusters:1", "by_tag": "tag:turn", "ifca": f"clusters:{_TURNS}"}
_PLAIN = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "min_updates": 1,
}


def main() -> None:
    """Run what the arguments ask for, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=40)
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--partitions", nargs="+", default=["iid", "dirichlet:0.5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        turned(Path(folder) / "turned.npz")
        found = {partition: compared(Path(folder), partition, given) for partition in given.partitions}
    options = {name: getattr(given, name) for name in ("devices", "cohort", "rounds", "epochs", "examples", "seeds")}
    seconds = round(time.monotonic() - began)
    print(json.dumps({"benchmark": "groups", **options, "accuracy": found, "seconds": seconds}))


def turned(path: Path) -> None:
    """Write the digits at each turn."""
    whole = digits((8, 8, 1))
    x = np.concatenate([np.rot90(whole.x, turn, axes=(1, 2)) for turn in range(_TURNS)])
    np.savez(path, x=x, y=np.tile(whole.y, _TURNS), turn=np.repeat(np.arange(_TURNS), len(whole.x)))


def compared(folder: Path, partition: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what each way comes to, over all seeds."""
    found = {}
    for way, groups in _WAYS.items():
        rows = [row for seed in given.seeds for row in devices_of(folder, groups, partition, seed, given)]
        values = [float(row["accuracy"]) for row in rows]
        found[way] = {k: round(v, 4) for k, v in ByDevice.of(values, falling=False).model_dump().items()}
        if way == "ifca":
            found[way] |= recovered(rows)
    return found


def devices_of(folder: Path, groups: str, partition: str, seed: int, given: argparse.Namespace) -> list[dict[str, str]]:
    """Return a run's table of devices."""
    output = folder / f"{groups}-{partition}-{seed}".replace(":", "-")
    fleet = FleetSettings().overridden({**_PLAIN, "fit": {"epochs": given.epochs, "learning_rate": 0.1}})
    names = ("devices", "cohort", "rounds", "examples")
    options = {name: getattr(given, name) for name in names}
    data = str(folder / "turned.npz")
    simulate_groups(
        output, groups=groups, tag="turn", data=data, partition=partition, seed=seed, fleet=fleet, **options
    )
    with (output / DEVICES).open() as file:
        return [{**row, "group": f"{seed}/{row['group']}"} for row in csv.DictReader(file)]


def recovered(rows: list[dict[str, str]]) -> dict[str, float]:
    """Return the share of devices whose cluster is of their turn alone, and the clusters with devices, by seed."""
    pairs = Counter((row["group"], row["tag"]) for row in rows)
    turns = Counter(group for group, _ in pairs)
    alone = sum(count for (group, _), count in pairs.items() if turns[group] == 1)
    seeds = {group.split("/")[0] for group in turns}
    return {"recovered": round(alone / len(rows), 4), "clusters": round(len(turns) / len(seeds), 2)}


if __name__ == "__main__":
    main()

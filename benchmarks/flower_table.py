"""The table of Flower's example apps in docs/how-to/flower-clients.md, from what `benchmarks.flower_apps` wrote.

``python -m benchmarks.flower_table SIMULATION.jsonl FLEET.jsonl`` prints it: the files that ``--results`` named, without and with
``--fleet``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.flower_apps import outcomes, verdict


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("simulation", type=Path)
    parser.add_argument("fleet", type=Path)
    arguments = parser.parse_args()
    simulated, on_fleet = outcomes(arguments.simulation), outcomes(arguments.fleet)
    print("| example | in simulation | on a local fleet |\n| --- | --- | --- |")
    for app in sorted(simulated.keys() | on_fleet.keys()):
        shown = (verdict(found[app]) if app in found else "not run" for found in (simulated, on_fleet))
        print(f"| {app} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()

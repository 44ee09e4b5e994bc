"""``python -m tests.explorer``: the long form; a table of what was broken how often, and one line of JSON."""

from __future__ import annotations

import argparse
import json
import time

from tests.explorer.explore import SCENARIOS, Tally, campaign, run


def main() -> int:
    """Explore, and return 1 if an invariant was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.explorer", description=__doc__)
    parser.add_argument("--schedules", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances")
    parser.add_argument("--scenario", action="append", help="only this one; may be repeated")
    parser.add_argument("--examples", action="store_true", help="print one schedule for each invariant that was broken")
    given = parser.parse_args()
    chosen = tuple(one for one in SCENARIOS if not given.scenario or one.name in given.scenario)
    began = time.time()
    tally = Tally()
    for schedule in campaign(given.schedules, given.seed, chosen):
        tally.add(*run(schedule))
    for kind, count in tally.kinds.most_common():
        print(f"{count:6}  {kind}")
        if given.examples:
            schedule, how = tally.examples[kind]
            print(f"        {how}\n        {schedule}")
    for kind, (ran, broken) in sorted(tally.by_disturbance.items()):
        print(f"        {kind}: {broken} of {ran} schedules")
    print(
        json.dumps(
            {
                "schedules": tally.schedules,
                "with_crashes": tally.crashes,
                "steps": tally.steps,
                "broken": tally.broken,
                "kinds": dict(tally.kinds.most_common()),
                "seconds": round(time.time() - began, 1),
            }
        )
    )
    return 1 if tally.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())

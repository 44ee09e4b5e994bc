"""``python -m tests.aggregate_campaign --cohorts 10000``: made-up cohorts through the aggregator, against plain NumPy.

Each cohort has up to 300 good updates and up to 150 bad ones of every kind, in all codecs. Of each is checked that the result is
within some 1e-6 of a float64 reference that shares no code with the aggregator (for the strategies that it knows), that every bad
update is refused for its own reason, and that the result is the same to the byte without the bad ones, in another order, with
other windows and threads, and with 2, 4 or 16 instances of which some die and are started again. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.aggregate_cohorts import arranged, essence, now, reference_of, run
from tests.aggregate_mixes import Maker, Mix
from tests.fedgrass.cloud.aggregator.updates import flat

TOLERANCE = 1e-6
SLACK = {"qfedavg": 10, "fedadagrad": 5, "fedadam": 5, "fedyogi": 5}
"""How much more is allowed where float32 arithmetic follows the sum; and three times where norms, of float32 squares, come in."""


def check(mix: Mix, chance: random.Random) -> tuple[float, int]:
    """Try one cohort in all ways; returns the deviation from the reference, and the ways tried."""
    large = chance.random() < 0.4
    with arranged(large=large):
        first = run(mix, chance)
    if isinstance(first, str):
        deviation = 0.0
    else:
        refused = {entry.key: entry.reason for entry in first.quarantined}
        wanted = {reference.key: reason for reference, _, reason in mix.bad}
        if refused != wanted:
            odd = {
                key: (wanted.get(key), refused.get(key))
                for key in wanted.keys() | refused
                if wanted.get(key) != refused.get(key)
            }
            raise AssertionError(f"refusals: {odd}")
        deviation = _deviation(mix, first)
    alone = essence(first, refused=False)
    ways: list[dict[str, Any]] = [
        {"with_bad": False, "threads": chance.choice([1, 2, 4])},
        {"threads": chance.choice([2, 4]), "together": chance.choice([1, 2, 3, 7, 63, 65, 500])},
        {"instances": chance.choice([2, 4, 16]), "deaths": chance.choice([0, 1, 3])},
    ]
    for way in ways:
        arrangement = {name: way.pop(name) for name in ("threads", "together") if name in way}
        with arranged(large=large, **arrangement):
            again = essence(run(mix, chance, **way), refused=False)
        if again != alone:
            raise AssertionError(
                f"other bytes with {arrangement} {way}, large={large}: {mix.strategy}, {len(mix.good)} updates"
            )
    return deviation, len(ways)


def _deviation(mix: Mix, first: Any) -> float:
    reference = reference_of(mix)
    if reference is None:
        if not mix.good and first.parameters is not None:
            raise AssertionError("a model of nothing")
        return 0.0
    wanted, scale = reference
    found = flat(first.parameters).astype(np.float64) - flat(mix.base.parameters())
    deviation = float(np.abs(found - wanted).max(initial=0.0)) / (scale or 1.0)
    slack = SLACK.get(mix.strategy[0], 1) * (
        3 if mix.checks.clip_norm_over_median or mix.strategy[1].get("clip") else 1
    )
    if not deviation <= TOLERANCE * slack:
        raise AssertionError(
            f"{deviation:.2e} from the reference: {mix.strategy}, {len(mix.good)} updates, {mix.checks}"
        )
    return deviation


def campaign(cohorts: int, seed: int = 0, seconds: float = 0.0) -> dict[str, Any]:
    """Try so many cohorts, or as many as there is time for."""
    start, updates, done, ways = now(), 0, 0, 0
    largest = 0.0
    reasons: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    while done < cohorts and not 0 < seconds < now() - start:
        with tempfile.TemporaryDirectory() as folder:
            maker = Maker(Path(folder), seed + done)
            for _ in range(min(10, cohorts - done)):
                most = 300 if done % 10 == 0 else 40  # large cohorts take most of the time
                mix, chance = maker.mix(most), random.Random(seed + done)
                try:
                    deviation, tried = check(mix, chance)
                except AssertionError as error:
                    raise AssertionError(f"cohort {done} of seed {seed}: {error}") from error
                largest = max(largest, deviation)
                ways += tried
                updates += len(mix.good) + len(mix.bad)
                reasons.update(reason for _, _, reason in mix.bad)
                strategies[mix.strategy[0]] += 1
                done += 1
    return {
        "cohorts": done,
        "updates": updates,
        "compared_to_the_byte": ways,
        "byte_differences": 0,
        "largest_deviation": float(f"{largest:.2e}"),
        "seconds": round(now() - start, 1),
        "refusals": dict(reasons.most_common()),
        "strategies": dict(strategies.most_common()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so many; 0: when all are done")
    arguments = parser.parse_args()
    print(json.dumps(campaign(arguments.cohorts, arguments.seed, arguments.seconds)))

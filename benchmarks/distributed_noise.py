"""Noise by the helpers of secure aggregation, beside central noise of the same ε: accuracy on the digits, over seeds.

``python -m benchmarks.distributed_noise`` prints one JSON line. Both kinds run in the simulator, on the same devices and seeds;
"none" has neither noise nor masks, and is what the noise costs; "secure" has masks alone, and is what these cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.helpers import parse_secure
from fedgrass.simulation.run import simulate


def main() -> None:
    """Run it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, help="Simulations of each kind.")
    parser.add_argument("--devices", type=int, default=20, help="Devices, all of which take part.")
    parser.add_argument("--rounds", type=int, default=6, help="Rounds.")
    parser.add_argument("--epochs", type=int, default=3, help="fit.epochs")
    parser.add_argument("--learning-rate", type=float, default=0.5, help="fit.learning_rate")
    parser.add_argument("--clip-norm", type=float, default=1.0, help="privacy.clip_norm")
    parser.add_argument("--noise-multiplier", type=float, default=0.3, help="privacy.noise_multiplier")
    parser.add_argument("--secure", default="3:1", help="Helpers, as of fedgrass simulate.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that train.")
    given = parser.parse_args()
    found = {
        mode: [_accuracy(mode, seed, given) for seed in range(given.seeds)]
        for mode in ("none", "secure", "central", "distributed")
    }
    means = {mode: round(100 * statistics.mean(values), 2) for mode, values in found.items()}
    deviations = {mode: round(100 * statistics.stdev(values), 2) for mode, values in found.items()}
    # By seed: the same devices and data on both sides, so the difference is noise's alone.
    pairs, masks = (
        [100 * (a - b) for a, b in zip(found[one], found[other], strict=True)]
        for one, other in (("distributed", "central"), ("secure", "none"))
    )
    print(
        json.dumps(
            {
                "benchmark": "distributed_noise",
                **{name: value for name, value in vars(given).items() if name != "workers"},
                "accuracy_percent": means,
                "deviation_between_seeds": deviations,
                "distributed_minus_central": round(statistics.mean(pairs), 2),
                "standard_error": round(statistics.stdev(pairs) / len(pairs) ** 0.5, 2),
                "secure_minus_none": round(statistics.mean(masks), 2),
                "largest_of_secure_minus_none": round(max(map(abs, masks)), 2),
            }
        )
    )


def _accuracy(mode: str, seed: int, given: argparse.Namespace) -> float:
    kind = "none" if mode == "secure" else mode
    privacy: dict[str, Any] = {"mode": kind, "clip_norm": given.clip_norm, "noise_multiplier": given.noise_multiplier}
    # A tolerance of 1: the gate must not hold a noisy model, or rounds would not add up.
    changes: dict[str, Any] = {"privacy": privacy, "gate": {"tolerance": 1.0}}
    changes["fit"] = {"epochs": given.epochs, "learning_rate": given.learning_rate}
    if mode in ("secure", "distributed"):
        changes["secure"] = parse_secure(given.secure, seed)
    with tempfile.TemporaryDirectory() as folder:
        run = simulate(
            Path(folder) / "run",
            fleet=FleetSettings().overridden(changes),
            devices=given.devices,
            cohort=given.devices,
            rounds=given.rounds,
            seed=seed,
            workers=given.workers,
        )
    return float(run.final.accuracy or 0.0)


if __name__ == "__main__":
    main()

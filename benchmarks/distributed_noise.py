"""Noise by the helpers of secure aggregation, beside central noise of the same ε: noise, ε, and accuracy on the digits.

``python -m benchmarks.distributed_noise`` prints one JSON line. ``noise`` holds one round's mean of the same updates, by each
mode's own code and many times, against plain NumPy: the deviation of a parameter over the formula's, and how much of the update
itself is lost or gained. ``epsilon`` is what both accounts say, and the Gaussian mechanism's own curve at the noise that is left
when as many helpers as may collude take theirs off.

``accuracy`` runs the simulator over seeds, on the same devices and data in each mode. "none" has neither noise nor masks,
"secure" has masks alone. Helpers together add more noise than is accounted, as some of them may collude; "central_as_much" is
central noise of that deviation, so what is left between it and "distributed" is chance. Each figure is the mean of the last
third of a run's rounds: single ones jump. Training also amplifies the last bits of a float, round by round, so runs that differ
by rounding alone come apart too; a difference says something beside its standard error only.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgrass.cloud.aggregator.privacy import Gaussian, epsilon
from fedgrass.noise import discrete_gaussian, shrunk_to
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.secure import Helper as Named
from fedgrass.protocol.secure import SecureTask
from fedgrass.protocol.settings import FleetSettings, Privacy
from fedgrass.secure.helper import Helper
from fedgrass.secure.keys import helper_key
from fedgrass.secure.masked import masked
from fedgrass.secure.quantize import mean_of
from fedgrass.secure.request import Candidate, requests_for
from fedgrass.secure.sealing import Context
from fedgrass.secure.shares import noise_seed
from fedgrass.secure.unmask import unmask
from fedgrass.simulation.helpers import parse_secure
from fedgrass.simulation.run import simulate
from fedgrass.update.header import UpdateHeader

MODES = ("none", "secure", "central", "central_as_much", "distributed")
PAIRS = (("secure", "none"), ("distributed", "central"), ("distributed", "central_as_much"))
FLEET, BASE = "bench", "ab" * 32
Doubles = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    """Run it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="Simulations of each kind; 0: none.")
    parser.add_argument("--devices", type=int, default=30, help="Devices, all of which take part.")
    parser.add_argument("--rounds", type=int, default=12, help="Rounds.")
    parser.add_argument("--epochs", type=int, default=3, help="fit.epochs")
    parser.add_argument("--learning-rate", type=float, default=0.3, help="fit.learning_rate")
    parser.add_argument("--clip-norm", type=float, default=1.0, help="privacy.clip_norm")
    parser.add_argument("--noise-multiplier", type=float, default=0.2, help="privacy.noise_multiplier")
    parser.add_argument("--secure", default="3:1", help="Helpers, as of fedgrass simulate.")
    parser.add_argument("--repeats", type=int, default=20, help="Means of the same updates that the noise is read off.")
    parser.add_argument("--parameters", type=int, default=20_000, help="Parameters of these updates.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that train.")
    given = parser.parse_args()
    found: dict[str, Any] = {name: value for name, value in vars(given).items() if name != "workers"}
    found["noise"], left = noises(given)
    found["epsilon"] = epsilons(given, left)
    if given.seeds > 1:
        found["accuracy"] = accuracies(given)
    print(json.dumps({"benchmark": "distributed_noise", **found}))


def noises(given: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Hold each mode's mean against NumPy's; returns also the deviation that colluders cannot take off, over ``clip_norm``."""
    draws, count, clip = np.random.default_rng(0), given.devices, given.clip_norm
    # Half of them are longer than the norm, so that it matters how they are clipped.
    lengths = clip * np.linspace(0.5, 2, count)[:, None]
    updates = draws.standard_normal((count, given.parameters)) + draws.standard_normal(given.parameters)
    updates = (updates * lengths / np.linalg.norm(updates, axis=1, keepdims=True)).astype(np.float32)
    norms = np.linalg.norm(updates.astype(np.float64), axis=1, keepdims=True)
    expected: Doubles = (updates * np.minimum(1, clip / norms)).mean(axis=0)
    kept: dict[str, list[Doubles]] = {"central": [], "distributed": [], "distributed, colluders' taken off": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.repeats):
            kept["central"].append(central_mean(updates, given) - expected)
            both, less = distributed_means(
                updates,
                Path(folder) / str(number),
                clip_norm=clip,
                noise_multiplier=given.noise_multiplier,
                secure=given.secure,
            )
            kept["distributed"].append(both - expected)
            kept["distributed, colluders' taken off"].append(less - expected)
    formula = given.noise_multiplier * clip / count
    figures = {}
    for name, some in kept.items():
        noise = np.stack(some)
        # How much of the update itself the noise is on average: clipping to less would show here.
        along = noise @ expected / (expected @ expected)
        figures[name] = {
            "deviation_over_formula": round(float(noise.std()) / formula, 4),
            "standard_error": round(float(noise.std()) / formula / math.sqrt(2 * noise.size), 4),
            "share_of_the_update_gained": round(float(along.mean()), 5),
            "its_standard_error": round(float(along.std(ddof=1)) / math.sqrt(len(along)), 5),
        }
    return figures, float(np.stack(kept["distributed, colluders' taken off"]).std()) * count / clip


def central_mean(updates: Any, given: argparse.Namespace) -> Doubles:
    """Return the aggregator's mean: clipped, in whole steps, with noise."""
    seed = np.random.default_rng().bytes(32)
    noise = Gaussian(clip_norm=given.clip_norm, noise_multiplier=given.noise_multiplier, seed=seed)
    factors = [shrunk_to(given.clip_norm, float(np.linalg.norm(one.astype(np.float64)))) for one in updates]
    steps = np.sum([noise.grid.quantized(one, factor) for one, factor in zip(updates, factors, strict=True)], axis=0)
    return noise.noised_mean(steps, len(updates)).astype(np.float64)


def distributed_means(
    updates: Any, folder: Path, *, clip_norm: float, noise_multiplier: float, secure: str
) -> tuple[Doubles, Doubles]:
    """Return the mean with all helpers' noise, and without that of as many as may collude: real masks, boxes and locks."""
    wanted, size = parse_secure(secure, 0), updates.shape[1]
    keys = [helper_key(folder / f"helper-{index}") for index in range(len(wanted["helpers"]))]
    helpers = [Helper(folder / f"helper-{index}", FLEET, key=key) for index, key in enumerate(keys)]
    task = SecureTask(
        helpers=tuple(Named(name=f"h{index}", key=one.public_key) for index, one in enumerate(helpers)),
        collude=wanted["collude"],
        bits=wanted["bits"],
        most=len(updates),
        equal=True,
        noise=noise_multiplier * clip_norm,
        shared_noise=True,
    )
    context, named = Context.of_round(FLEET, 1, folder.name, BASE, task), []
    total = np.zeros(size + task.count_coordinates, f"<u{task.bits // 8}")
    for index, update in enumerate(updates):
        header = UpdateHeader(
            fleet=FLEET, round=1, thing=f"t{index:04}", base_sha256=BASE, graph_sha256=BASE, num_examples=1
        )
        base, local = {"w": np.zeros_like(update)}, {"w": update}
        signer = Ed25519PrivateKey.generate()
        one = masked(base, local, header, 1, task, context, signer, clip_norm=clip_norm)
        np.add(total, one.values, out=total)
        named.append(Candidate(header.thing, one.boxes, one.commitments))
    requests = requests_for(named, context, len(total), task, adding=range(len(helpers)))
    answers = {request.helper: folder / f"answer-{request.helper}" for request in requests}
    for request in requests:
        helpers[request.helper].answer(request, answers[request.helper])
    accepted = requests[0].accepted
    unmask({0: total}, accepted, answers)
    mean = mean_of(total, len(updates), task).astype(np.float64)
    taken = np.zeros(size)
    for key in keys[: task.collude]:
        seed, deviation = noise_seed(key, accepted.digest, 0), task.share_steps(len(helpers))
        taken += np.concatenate(list(discrete_gaussian(seed, size, deviation)))
    # Sums of masks are taken off, and the noise in them with them: its sign is the other.
    return mean, mean + taken * (task.value_range / task.levels) / len(updates)


def epsilons(given: argparse.Namespace, left: float) -> dict[str, float]:
    """Return ε of all rounds by each mode's account, and by the Gaussian's own curve at the deviation that is left."""
    found = {}
    for mode in ("central", "distributed"):
        privacy = Privacy(mode=mode, clip_norm=given.clip_norm, noise_multiplier=given.noise_multiplier)
        ledger = PrivacyLedger()
        for _ in range(given.rounds):
            ledger = ledger.charged(privacy, 1.0)
        found[mode] = round(epsilon(ledger.spends, ledger.delta), 3)
    found["of the deviation that was measured"] = round(curve(math.sqrt(given.rounds) / left, 1e-5), 3)
    return found


def curve(shift: float, delta: float) -> float:
    """Return ε at δ of two normal distributions whose means lie so many deviations apart (Balle and Wang, ICML 2018)."""

    def lost(at: float) -> float:
        low, high = (math.erfc(-(side * shift / 2 - at / shift) / math.sqrt(2)) / 2 for side in (1, -1))
        # The second factor may be beyond a double, where the tail is far below δ.
        return low - (math.exp(min(at, 700.0)) * high if high > 0 else 0.0)

    small, large = 0.0, shift**2 / 2 + 10 * shift
    for _ in range(80):
        middle = (small + large) / 2
        small, large = (middle, large) if lost(middle) > delta else (small, middle)
    return large


def accuracies(given: argparse.Namespace) -> dict[str, Any]:
    """Return accuracies in percent over seeds, and their differences by seed."""
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for seed, mode in itertools.product(range(given.seeds), MODES):
        found[mode].append(100 * accuracy(mode, seed, given))
        print(f"seed {seed}, {mode}: {found[mode][-1]:.2f} %", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {
        "percent": {mode: round(statistics.mean(values), 2) for mode, values in found.items()},
        "deviation_between_seeds": {mode: round(statistics.stdev(values), 2) for mode, values in found.items()},
    }
    # By seed: the same devices and data on both sides, so the difference is noise's alone.
    for one, other in PAIRS:
        pairs = [a - b for a, b in zip(found[one], found[other], strict=True)]
        figures[f"{one}_minus_{other}"] = {
            "mean": round(statistics.mean(pairs), 2),
            "standard_error": round(statistics.stdev(pairs) / math.sqrt(len(pairs)), 2),
            "largest": round(max(map(abs, pairs)), 2),
        }
    return figures


def accuracy(mode: str, seed: int, given: argparse.Namespace) -> float:
    """Return the mean accuracy of the last third of a run's rounds."""
    secure = parse_secure(given.secure, seed)
    count, noise = len(secure["helpers"]), given.noise_multiplier
    if mode == "central_as_much":
        noise *= math.sqrt(count / (count - secure["collude"]))
    kind = {"secure": "none", "central_as_much": "central"}.get(mode, mode)
    privacy: dict[str, Any] = {"mode": kind, "clip_norm": given.clip_norm, "noise_multiplier": noise}
    # The gate must not hold a noisy model, or rounds would not add up.
    gate = {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1.0}
    changes: dict[str, Any] = {"privacy": privacy, "gate": gate}
    changes["fit"] = {"epochs": given.epochs, "learning_rate": given.learning_rate}
    if mode in ("secure", "distributed"):
        changes["secure"] = secure
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
        assert run.outcomes == {"released": given.rounds}, run.outcomes
        with (Path(folder) / "run" / "rounds.csv").open() as stream:
            rows = [float(row["accuracy"]) for row in csv.DictReader(stream)]
    return statistics.mean(rows[-max(1, given.rounds // 3) :])


if __name__ == "__main__":
    main()

"""ε of the seven cases in which an account said too little, or nothing: as it was said before, and what is said and done now.

``python -m benchmarks.accounts`` prints one JSON line. Every number is there three times: as our account says it, by
``dp-accounting``, and by the Gaussian mechanism's own curve written down here; for discrete noise the third is the sum over all
integers. "before" is computed as it was then: Rényi accounting, rounds without noise left out, an update against zero. Where
there was no number, or where it is no number that changed, it is said in words; δ is 1e-5, z and C are 1.
"""

from __future__ import annotations

import json
import math
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from benchmarks.distributed_noise import curve
from fedgrass.cloud.aggregator.privacy import judged
from fedgrass.edge.privacy_account import PrivacyAccount
from fedgrass.errors import PrivacyLimitError
from fedgrass.floors import Floors
from fedgrass.noise import discrete_gaussian
from fedgrass.protocol.messages import Announcement, Base, Cohort, UpdateTask, Upload
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.settings import FleetSettings, Privacy
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import encode_update

DELTA, DIGEST = 1e-5, "ab" * 32
LIMIT = 50.0
"""`maxEpsilon` of com.fedgrass.Trainer, by default."""


def library(rounds: int, sensitivity: float, accountant: type = PLDAccountant) -> float:
    """Return ε of so many rounds by ``dp-accounting``: Gaussian noise of deviation 1 on sums that change by so much."""
    made = accountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    made.compose(dp_accounting.GaussianDpEvent(1 / sensitivity), rounds)
    return round(float(made.get_epsilon(DELTA)), 3)


def figures(rounds: int, sensitivity: float, said: str) -> dict[str, Any]:
    """Return one case's numbers: what is said now, and what others say."""
    own = round(curve(sensitivity * math.sqrt(rounds), DELTA), 3)
    # Beyond 40 the library's distribution of the loss takes minutes.
    by = library(rounds, sensitivity) if own < 40 else None
    return {"now": said, "dp_accounting": by, "rényi": library(rounds, sensitivity, RdpAccountant), "curve": own}


def ledger_of(*modes: str) -> PrivacyLedger:
    """Return the fleet's ledger after rounds of these modes."""
    ledger = PrivacyLedger()
    for number, mode in enumerate(modes, start=1):
        privacy = Privacy.model_validate({"mode": mode})
        ledger = ledger.with_bare(number) if mode == "none" else ledger.charged(privacy, 1.0)
    return judged(ledger)


def rounds_a_device_answers(folder: Path) -> int:
    """Return after how many rounds of local noise a device's own account declines."""
    account, now = PrivacyAccount(folder / "privacy.json"), datetime(2026, 1, 1, tzinfo=timezone.utc)
    asked = Announcement(
        fleet="f",
        round=1,
        opened_at=now,
        deadline=now,
        base=Base(version="1.0.0", parameters_key="models/f/1.0.0/p", parameters_sha256=DIGEST, graph_sha256=DIGEST),
        cohort=Cohort(salt="s"),
        update=UpdateTask(clip_norm=1.0, noise_multiplier=1.0),
        upload=Upload(bucket="bucket", prefix="updates/f/1/"),
    )
    for answered in range(300):
        try:
            account.require(asked, limit=LIMIT, delta=DELTA)
        except PrivacyLimitError:
            return answered
        account.charge(asked, str(answered))
    return 300


def cosine(rounds: int) -> float:
    """Return how near the mean of so many noised updates of 64 parameters comes to the update: over 200 draws."""
    draws = np.random.default_rng(0)
    update = draws.standard_normal(64)
    update /= np.linalg.norm(update)
    means = update + draws.standard_normal((200, 64)) / math.sqrt(rounds)
    return round(float(np.mean(means @ update / np.linalg.norm(means, axis=1))), 2)


def norm_with_statistics() -> float:
    """Return the norm of what leaves of an update with a batch normalization's statistics a thousand times too far."""
    base = {"w": np.zeros(100, np.float32), "moving_variance": np.ones(100, np.float32)}
    local = {"w": np.full(100, 0.1, np.float32), "moving_variance": np.full(100, 1e3, np.float32)}
    header = UpdateHeader(fleet="f", round=1, thing="t", base_sha256=DIGEST, graph_sha256=DIGEST, num_examples=1)
    sent = encode_update(base, local, header, UpdateTask(clip_norm=1.0)).tensors
    return round(math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in sent.values())), 6)


def discrete(deviation: int) -> dict[str, float]:
    """Return ε of discrete noise on an integer that changes by its deviation: by all probabilities, and by those of draws."""
    x = np.arange(-12 * deviation, 13 * deviation)
    weights = np.exp(-(x.astype(np.float64) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    moved = np.roll(weights, deviation)
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        lost = float(np.maximum(weights - math.exp(middle) * moved, 0).sum())
        low, high = (middle, high) if lost > DELTA else (low, middle)
    drawn = np.concatenate(list(discrete_gaussian(bytes(32), 1_000_000, deviation)))
    counted = np.bincount(np.clip(drawn - x[0], 0, len(x) - 1), minlength=len(x)) / len(drawn)
    # How far the frequencies of a million draws are from the formula, in standard errors, at most over all integers.
    often = weights * len(drawn) > 30
    errors = np.sqrt(weights * (1 - weights) / len(drawn))
    return {
        "by_enumeration": round(high, 3),
        "draws_off_by_errors": round(float((abs(counted - weights) / errors)[often].max()), 1),
    }


def cases() -> dict[str, Any]:
    """Return the seven."""
    with tempfile.TemporaryDirectory() as folder:
        answered = rounds_a_device_answers(Path(folder))
    central, local, mixed = ledger_of("central"), ledger_of("local"), ledger_of("central", "none", "none", "central")
    told = FleetSettings().overridden({"privacy": {"mode": "central"}}).announced_update.figures
    floor = Floors()
    return {
        "1 central, none, none, central": {"before": library(2, 1, RdpAccountant), "now": mixed.said},
        "2 local, one round": {"before": library(1, 1, RdpAccountant), **figures(1, 2, local.said)},
        "3 local, as many rounds as the operator opens": {
            "before": f"no limit; 300 rounds: cosine {cosine(300)}",
            "before_epsilon": figures(300, 2, "")["curve"],
            **figures(answered, 2, f"the device declines after {answered} rounds: cosine {cosine(answered)}"),
        },
        "4 one example (fit.max_examples 1)": {
            "before": "trained and sent: no finite ε, the image recovered (benchmarks.inversion)",
            "now": f"declined below {floor.examples} examples and {floor.steps} step",
        },
        "5 batch normalization's statistics, central": {
            "before": library(1, 1, RdpAccountant),
            "before_too": "server optimizers stepped them, and noise could take a variance below zero",
            "norm_of_what_is_sent_with_them": norm_with_statistics(),
            **figures(1, 1, central.said),
        },
        "6 counts, losses, times beside the update, central": {
            "before": "exact: no finite ε for them",
            "figures": told,
            **figures(1, 1, central.said),
        },
        "7 noise of one round, central": {
            "before": library(1, 1, RdpAccountant),
            **figures(1, 1, central.said),
            **discrete(1024),
        },
    }


if __name__ == "__main__":
    print(json.dumps({"benchmark": "accounts", "delta": DELTA, "cases": cases()}, ensure_ascii=False))

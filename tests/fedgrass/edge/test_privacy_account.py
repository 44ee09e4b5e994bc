"""A device's account of its own: durable, counted once, and never passed."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from fedgrass.edge.privacy_account import PrivacyAccount
from fedgrass.errors import PrivacyLimitError
from fedgrass.noise import Grid, shrunk_to
from fedgrass.protocol.messages import Announcement, Base, Cohort, UpdateTask, Upload
from fedgrass.protocol.privacy import gaussian_epsilon

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
BASE = Base(version="1.0.0", parameters_key="models/f/1.0.0/p", parameters_sha256="0" * 64, graph_sha256="0" * 64)


def a_round(noise: float, *, task: str = "fit", number: int = 1) -> Announcement:
    return Announcement.model_validate(
        {
            "fleet": "f",
            "round": number,
            "task": task,
            "opened_at": NOW,
            "deadline": NOW,
            "base": BASE,
            "cohort": Cohort(salt="s"),
            "update": UpdateTask(clip_norm=1.0, noise_multiplier=noise),
            "upload": Upload(bucket="bucket", prefix="updates/f/1/"),
        }
    )


def cosine_after(rounds: int) -> float:
    """Average what a device sends in so many rounds with noise 1, as an operator would, and compare it with what was hidden."""
    rng, size = np.random.default_rng(0), 64
    update = rng.normal(size=size).astype(np.float32)
    grid, factor = Grid.of(1.0), shrunk_to(1.0, float(np.linalg.norm(update)))
    total = np.zeros(size)
    for number in range(rounds):
        steps = grid.quantized(update, factor)
        grid.add_noise(steps, number.to_bytes(32, "big"))
        total += steps
    return float(total @ update / np.linalg.norm(total) / np.linalg.norm(update))


def test_an_operator_who_averages_rounds_gets_no_further_than_the_device_s_limit(tmp_path: Path) -> None:
    account = PrivacyAccount(tmp_path / "privacy.json")
    rounds = 0
    while gaussian_epsilon(2 * (rounds + 1), 1e-5) <= 50:  # 1/(2z²) with z = 1/2 a round
        account.require(a_round(1.0), limit=50, delta=1e-5)
        account.charge(a_round(1.0), f"round-{rounds}")
        rounds += 1
    with pytest.raises(PrivacyLimitError, match=rf"maxEpsilon is 50 \({rounds} rounds are spent\)"):
        account.require(a_round(1.0), limit=50, delta=1e-5)
    assert 5 < rounds < 20
    assert cosine_after(300) > 0.85  # what 300 rounds gave away: 1/√(1 + 64/300)
    assert cosine_after(rounds) < 0.6
    assert math.isclose(1 / math.sqrt(1 + 64 / 300), 0.908, abs_tol=1e-3)


def test_the_account_outlives_its_process_and_counts_an_answer_once(tmp_path: Path) -> None:
    path = tmp_path / "work" / "privacy.json"
    PrivacyAccount(path).charge(a_round(2.0), "a")
    PrivacyAccount(path).charge(a_round(2.0), "a")  # a crash came between, and the answer is handed on again
    assert PrivacyAccount(path).rounds == 1
    PrivacyAccount(path).charge(a_round(2.0), "b")
    assert PrivacyAccount(path).rounds == 2


def test_after_noise_a_round_without_it_is_declined(tmp_path: Path) -> None:
    account = PrivacyAccount(tmp_path / "privacy.json")
    account.require(a_round(0.0), limit=50, delta=1e-5)
    account.charge(a_round(0.0), "plain")
    account.require(a_round(0.0), limit=50, delta=1e-5)  # a fleet without privacy goes on as ever
    account.charge(a_round(4.0), "noisy")
    for plain in (a_round(0.0), a_round(4.0, task="evaluate")):
        with pytest.raises(PrivacyLimitError, match="1 rounds with noise"):
            account.require(plain, limit=50, delta=1e-5)
        account.require(plain, limit=0, delta=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"rho": "much"}', b'{"rho": -1}', b'{"rounds": 1, "rho": NaN}', b"\xff"]
)
def test_an_account_that_cannot_be_read_lets_nothing_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "privacy.json"
    path.write_bytes(content)
    with pytest.raises(PrivacyLimitError, match="cannot be read"):
        PrivacyAccount(path).require(a_round(1.0), limit=50, delta=1e-5)
    with pytest.raises(PrivacyLimitError):
        PrivacyAccount(path).charge(a_round(1.0), "a")
    assert path.read_bytes() == content

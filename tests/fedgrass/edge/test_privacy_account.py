"""A device's account of its own: durable, counted once, and never passed."""

from __future__ import annotations

import itertools
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
from fedgrass.protocol.secure import SecureTask, encoded_key
from fedgrass.protocol.settings import FleetSettings

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
BASE = Base(version="1.0.0", parameters_key="models/f/1.0.0/p", parameters_sha256="0" * 64, graph_sha256="0" * 64)


def a_round(
    noise: float, *, task: str = "fit", number: int = 1, promised: float | None = None, secure: object = None
) -> Announcement:
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
            "promised_noise": promised,
            "secure": secure,
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


def by_helpers(noise: float, *, helpers: int = 3, collude: int = 1) -> tuple[Announcement, list[str]]:
    """A round whose helpers add noise, and their keys."""
    keys = [encoded_key(bytes([index]) * 32) for index in range(helpers)]
    named = [{"name": f"h{index}", "key": key} for index, key in enumerate(keys)]
    task = SecureTask(helpers=named, collude=collude, most=10, equal=True, noise=noise, shared_noise=True)  # type: ignore[arg-type]
    return a_round(0.0, promised=noise, secure=task), keys


def most_sets(helpers: int, collude: int) -> int:
    """By enumeration: sets that open at once where ``collude`` helpers answer all of them, and each other one answers one."""
    honest = range(helpers - collude)
    shown = itertools.product(range(helpers), repeat=len(honest))
    return max(sum(sets.count(one) + collude > collude for one in set(sets)) for sets in shown)


@pytest.mark.parametrize(("helpers", "collude"), [(2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (5, 3), (5, 4)])
def test_noise_of_named_helpers_is_counted_for_all_sums_that_bad_ones_can_have_opened(
    helpers: int, collude: int, tmp_path: Path
) -> None:
    account, noise, delta = PrivacyAccount(tmp_path / "privacy.json"), 4.0, 1e-5
    told, keys = by_helpers(noise, helpers=helpers, collude=collude)
    sums = most_sets(helpers, collude)
    for number in range(3):
        spent = gaussian_epsilon((number + 1) * sums * 2 / noise**2, delta)
        account.require(told, limit=spent * 1.001, delta=delta, helpers=keys)
        with pytest.raises(PrivacyLimitError, match="maxEpsilon"):
            account.require(told, limit=spent * 0.999, delta=delta, helpers=keys)
        account.charge(told, f"{number}", helpers=keys)
        account.charge(told, f"{number}", helpers=keys)
    assert account.rounds == 3
    # Kept noise is undone by a round without it, and by one whose helpers are not all the owner's.
    for other in (a_round(0.0), a_round(0.0, promised=1.0), told):
        with pytest.raises(PrivacyLimitError, match="3 rounds with noise"):
            account.require(other, limit=50, delta=delta, helpers=keys[1:])


def test_promised_noise_counts_towards_its_own_limit_only_and_with_the_device_s_own(tmp_path: Path) -> None:
    account, delta = PrivacyAccount(tmp_path / "privacy.json"), 1e-5
    unnamed, _ = by_helpers(2.0)
    account.charge(unnamed, "a")
    account.charge(a_round(0.0, promised=2.0), "b")
    assert account.rounds == 0
    account.require(a_round(0.0), limit=1e-6, delta=delta)  # what is only promised is no noise to undo
    after = gaussian_epsilon(2 * 2 / 2.0**2 + 2 / 3.0**2, delta)
    for following in (a_round(0.0, promised=3.0), a_round(3.0)):
        account.require(following, limit=0, delta=delta, promised=after * 1.001)
        with pytest.raises(
            PrivacyLimitError, match=r"if the cloud adds the noise that it says; maxPromisedEpsilon is .* \(2 rounds"
        ):
            account.require(following, limit=0, delta=delta, promised=after * 0.999)
    account.charge(a_round(3.0), "c")
    assert account.rounds == 1
    with pytest.raises(PrivacyLimitError, match=r"\(3 rounds are spent\)"):
        PrivacyAccount(tmp_path / "privacy.json").require(a_round(3.0), limit=0, delta=delta, promised=after)


@pytest.mark.parametrize(
    "exact", [a_round(0.0), a_round(3.0, task="evaluate"), a_round(0.0, task="evaluate", promised=3.0)]
)
def test_an_owner_who_limits_promised_noise_takes_no_part_without_any(exact: Announcement, tmp_path: Path) -> None:
    account = PrivacyAccount(tmp_path / "privacy.json")
    with pytest.raises(PrivacyLimitError, match="no ε is finite; maxPromisedEpsilon is 8"):
        account.require(exact, limit=50, delta=1e-5, promised=8)
    account.require(exact, limit=50, delta=1e-5)


def test_an_account_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "privacy.json"
    path.write_text('{"rounds": 2, "rho": 4.0, "last": ["a", "b"]}')
    account = PrivacyAccount(path)
    account.charge(a_round(0.0, promised=1.0), "c")
    assert account.rounds == 2
    with pytest.raises(PrivacyLimitError, match="maxEpsilon is 10"):
        account.require(a_round(1.0), limit=10, delta=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"privacy": {"mode": "local"}}, None),
        ({"privacy": {"mode": "central", "noise_multiplier": 2.0}}, 2.0),
        ({"privacy": {"mode": "central", "noise_multiplier": 2.0, "adaptive_clip": {}}}, 2.0),
        ({"privacy": {"mode": "central"}, "task": "evaluate"}, None),
        ({"privacy": {"mode": "central", "noise_multiplier": 2.0}, "task": "statistics"}, 2.0),
        # A tree of 8 rounds: a device's update is in four nodes, one of each level.
        (
            {
                "privacy": {"mode": "central", "noise_multiplier": 2.0},
                "strategy": {"name": "dp_ftrl", "options": {"rounds": 8}},
            },
            1.0,
        ),
    ],
)
def test_devices_are_told_of_the_noise_that_they_do_not_add(changes: dict[str, object], told: float | None) -> None:
    assert FleetSettings().overridden(changes).promised_noise == told


def test_statistics_are_charged_as_updates_are(tmp_path: Path) -> None:
    delta = 1e-5
    accounts = [PrivacyAccount(tmp_path / task) for task in ("fit", "statistics")]
    for account, task in zip(accounts, ("fit", "statistics"), strict=True):
        account.charge(a_round(2.0, task=task), "a")
        account.charge(a_round(0.0, task=task, promised=3.0), "b")
    trained, measured = ((tmp_path / task).read_bytes() for task in ("fit", "statistics"))
    assert trained == measured
    with pytest.raises(PrivacyLimitError, match="maxPromisedEpsilon"):
        accounts[1].require(a_round(0.0, task="statistics", promised=3.0), limit=0, delta=delta, promised=0.1)

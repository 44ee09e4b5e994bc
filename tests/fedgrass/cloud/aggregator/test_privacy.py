from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.privacy import Gaussian, epsilon, judged, noise_of
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.errors import ConfigurationError
from fedgrass.noise import gaussian
from fedgrass.protocol.names import parameters_key, report_key
from fedgrass.protocol.privacy import PrivacyLedger, Spend
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings, Privacy
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet, make_record

SEED = "5a" * 32


def test_noise_on_the_mean_has_the_deviation_of_clip_norm_over_the_count() -> None:
    noise = noise_of(Privacy(mode="central", clip_norm=0.5, noise_multiplier=3.0), SEED)
    assert noise is not None
    vector = np.full(200_001, 7, np.float32)
    noise.add_noise(vector, 10)
    added = vector.astype(np.float64) - 7
    assert added.std() == pytest.approx(0.5 * 3.0 / 10, rel=0.01)
    assert abs(added.mean()) < 5 * 0.15 / np.sqrt(len(vector))
    assert np.mean((added / added.std()) ** 4) == pytest.approx(3, rel=0.05)
    assert abs(np.corrcoef(added[:-1], added[1:])[0, 1]) < 0.02


def test_a_job_that_is_started_again_adds_the_same_noise_and_another_round_another() -> None:
    def drawn(seed: str) -> bytes:
        vector = np.zeros(70_000, np.float32)
        Gaussian(clip_norm=1.0, noise_multiplier=1.0, seed=bytes.fromhex(seed)).add_noise(vector, 2)
        return vector.tobytes()

    assert drawn(SEED) == drawn(SEED) != drawn("5b" * 32)


def test_noise_never_repeats_within_a_model() -> None:
    numbers = np.concatenate(list(gaussian(b"s" * 32, 300_000)))
    assert len(np.unique(numbers)) == len(numbers)
    assert np.isfinite(numbers).all()


def test_nothing_is_added_where_the_devices_add_it_or_nobody_does() -> None:
    assert noise_of(Privacy(mode="local"), SEED) is None
    assert noise_of(Privacy(), SEED) is None


def test_epsilon_is_the_published_one() -> None:
    # One release with noise 1 at 1e-5: 4.377 exactly (Balle and Wang, ICML 2018); Rényi accounting is an upper bound.
    assert 4.377 < epsilon((Spend(noise_multiplier=1.0),), 1e-5) < 5.0
    hundred = epsilon((Spend(noise_multiplier=1.0, rounds=100),), 1e-5)
    assert hundred == pytest.approx(epsilon((Spend(noise_multiplier=0.1),), 1e-5), rel=1e-9)
    # Abadi et al., CCS 2016, section 5: 1.26 for q = 0.01, noise 4 and 10,000 steps; the conversion from Rényi is tighter since.
    assert 0.9 < epsilon((Spend(noise_multiplier=4.0, fraction=0.01, rounds=10_000),), 1e-5) < 1.26


def test_the_projection_is_what_the_next_round_will_find() -> None:
    privacy = Privacy(mode="central", noise_multiplier=3.0)
    first = judged(PrivacyLedger().charged(privacy, 1.0))
    assert first.epsilon is not None
    assert first.next_epsilon is not None
    second = judged(first.charged(privacy, 1.0))
    assert first.epsilon < first.next_epsilon == second.epsilon
    assert (first.judged, second.judged) == (1, 2)


def run(fleet: Fleet, folder: Path, **privacy: object) -> RoundReport:
    """The job of a round with privacy."""
    settings = FleetSettings.model_validate({"privacy": {"mode": "central", **privacy}})
    record = make_record(FLEET, fleet.current, settings).model_copy(
        update={"phase": "aggregating", "privacy": PrivacyLedger().charged(settings.privacy, 1.0)}
    )
    fleet.clients.rounds.put_item(Item=record.to_item())
    folder.mkdir()
    return RoundJob(
        record, fleet.clients, RoundUpdates(fleet.s3, fleet.clients.bucket.name, FLEET, ROUND), folder
    ).run()


def updates(fleet: Fleet) -> None:
    for seed, thing in enumerate(["press-a", "press-b", "press-c"]):
        fleet.put_update(thing, seed, num_examples=10 ** (seed + 1))


def test_a_round_s_model_is_the_equal_mean_of_clipped_updates_with_noise_and_the_report_says_what_it_cost(
    fleet: Fleet, tmp_path: Path
) -> None:
    updates(fleet)
    report = run(fleet, tmp_path / "job", clip_norm=0.01, noise_multiplier=5.0)
    assert report.outcome == "released"
    assert [entry.weight for entry in report.updates] == pytest.approx([1 / 3] * 3)
    assert report.privacy is not None
    assert report.privacy.epsilon == epsilon(report.privacy.spends, 1e-5)
    content = fleet.object(parameters_key(FLEET, make_record(FLEET, fleet.current).version))
    assert content is not None
    (tmp_path / "new").write_bytes(content)
    found, base = tensors.load(tmp_path / "new")[0], fleet.base.parameters()
    change = np.concatenate([(found[name] - base[name]).ravel() for name in base]).astype(np.float64)
    assert change.std() == pytest.approx(0.01 * 5.0 / 3, rel=0.05)  # each update's own part is far below


def test_a_job_killed_before_its_report_gives_the_same_model_again(fleet: Fleet, tmp_path: Path) -> None:
    updates(fleet)
    first = run(fleet, tmp_path / "first")
    fleet.s3.delete_object(Bucket=fleet.clients.bucket.name, Key=report_key(FLEET, ROUND))
    again = run(fleet, tmp_path / "again")
    assert first.model is not None
    assert again.model == first.model
    assert again.outcome == "released"


def test_a_round_beyond_the_budget_touches_no_update(fleet: Fleet, tmp_path: Path) -> None:
    updates(fleet)
    before = fleet.keys("models/")
    report = run(fleet, tmp_path / "job", noise_multiplier=1.0, epsilon_budget=2.0)
    assert report.outcome == "held"
    assert "the budget is 2" in report.reason
    assert report.model is None
    assert report.updates == ()
    assert fleet.keys("models/") == before


def test_one_device_s_norm_does_not_decide_over_another_s_update() -> None:
    with pytest.raises(ConfigurationError, match="max_norm_over_median"):
        FleetSettings().overridden({"privacy": {"mode": "central"}, "checks": {"max_norm_over_median": 3.0}})

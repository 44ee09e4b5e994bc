from __future__ import annotations

import numpy as np
import pytest

from cloud.aggregator.privacy import Gaussian, epsilon, judged, noise_of
from fedgrass.noise import gaussian
from fedgrass.protocol.privacy import PrivacyLedger, Spend
from fedgrass.protocol.settings import Privacy

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

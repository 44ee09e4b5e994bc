"""The demo's data: every digit once, the same share of each kept from all devices, and alike for a seed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.local.demo.data import digits

THINGS = ["device-1", "device-2", "device-3"]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_digit_is_kept_or_on_one_device_and_a_fifth_of_each_label_is_kept(seed: int) -> None:
    found = digits(THINGS, shape=(8, 8, 1), seed=seed)
    parts = [*found.devices.values(), found.kept]
    rows = [(x.tobytes(), int(y)) for part in parts for x, y in zip(part.x, part.y, strict=True)]
    every = load_digits()
    scaled = (every.images[..., np.newaxis] / 16).astype(np.float32)
    assert Counter(rows) == Counter(zip((x.tobytes() for x in scaled), every.target.tolist(), strict=True))
    kept, all_of = np.bincount(found.kept.y), np.bincount(every.target)
    assert np.abs(kept - 0.2 * all_of).max() <= 0.5
    # The devices differ in what they see, or there would be nothing to show.
    mixes = [np.bincount(part.y, minlength=10) / len(part) for part in found.devices.values()]
    assert max(np.abs(a - b).sum() for a in mixes for b in mixes) > 0.5


def test_a_seed_divides_alike_and_another_otherwise() -> None:
    first, again, other = (digits(THINGS, shape=(64,), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.kept.x, again.kept.x)
    assert all(np.array_equal(first.devices[thing].y, again.devices[thing].y) for thing in THINGS)
    assert not np.array_equal(first.kept.x, other.kept.x)


def test_the_demo_divides_its_data_without_scikit_learn() -> None:
    code = (
        "import sys, fedgrass.local.demo.data as data; data.digits(['a', 'b'], shape=(64,), seed=0); "
        "assert not {'sklearn', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""A device in a round of statistics: it measures what it trains on, uploads one file, and trains nothing."""

from __future__ import annotations

import hashlib
import io
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle, Manifest
from fedgrass.data import load
from fedgrass.data_settings import DataSettings
from fedgrass.edge.privacy_account import PrivacyAccount
from fedgrass.errors import DataError
from fedgrass.profile.combine import Combined, profile_of
from fedgrass.profile.files import Layout, read
from fedgrass.profile.sums import FeatureSums
from fedgrass.protocol.messages import Announcement, UpdateTask
from fedgrass.protocol.names import update_key
from fedgrass.protocol.profile import Profile, ProfileReference, StatisticsTask, profile_key
from tests.components.trainer.place import FLEET, THING, Place
from tests.fedgrass.edge import digits

KEY = update_key(FLEET, 1, THING)


def asked(place: Place, number: int = 1, **task: Any) -> Announcement:
    return place.announcement(number, task="statistics", statistics=StatisticsTask(**task))


def uploaded(place: Place, layout: Layout) -> FeatureSums:
    content = place.streams.s3[KEY]
    header, sums = read(io.BytesIO(content), len(content), layout)
    assert (header.thing, header.round, header.num_examples) == (THING, 1, 40)
    return sums


def earlier(manifest: Manifest) -> bytes:
    sums = FeatureSums(64, 10)
    sums.add(np.stack([np.zeros(64), np.full(64, 16.0)]))
    return profile_of(
        Combined(sums, 2), manifest, fleet=FLEET, number=1, made_at=datetime(2026, 1, 1, tzinfo=timezone.utc)
    ).to_json()


def named(place: Place, content: bytes, **changes: Any) -> ProfileReference:
    fields = {
        "round": 1,
        "key": profile_key(FLEET, 1),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "graph_sha256": place.bundle.manifest.graph_sha256,
    }
    return ProfileReference(**{**fields, **changes})


def test_what_would_train_is_measured_and_uploaded(place: Place) -> None:
    place.start()
    place.have_model()
    place.open(asked(place, low=0.0, high=1.0, bins=4))
    place.settle()
    [notice] = place.notices
    assert (notice.status, notice.key, notice.num_examples, notice.metrics) == ("uploaded", KEY, 40, {})
    layout = Layout.of(place.bundle.manifest, StatisticsTask(low=0.0, high=1.0, bins=4), None)
    sums = uploaded(place, layout)
    assert sums.count.tolist() == [40.0] * 64
    assert sums.labels.sum() == 40
    with np.load(place.folder / "data.npz") as arrays:
        x = arrays["x"].reshape(50, 64).astype(np.float64)
    assert (x.min(axis=0) <= sums.mean).all()
    assert (sums.mean <= x.max(axis=0)).all()
    assert not (place.folder / "work" / "checkpoint.safetensors").exists()


def test_bounds_come_from_the_profile_that_the_round_names(place: Place) -> None:
    content = earlier(place.bundle.manifest)
    place.start()
    place.have_model()
    place.s3.objects[profile_key(FLEET, 1)] = content
    place.open(asked(place, bins=8, profile=named(place, content)))
    place.settle()
    [notice] = place.notices
    assert (notice.status, notice.reason) == ("uploaded", "")
    profile = Profile.read(content, name="profile")
    sums = uploaded(place, Layout.of(place.bundle.manifest, StatisticsTask(bins=8), profile))
    assert sums.histogram.shape == (64, 10)
    assert sums.histogram.sum(axis=1).tolist() == [40.0] * 64


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [({"sha256": "0" * 64}, "failed", "digest"), ({"bytes": 200 << 20}, "failed", "maxBundleMb")],
)
def test_a_profile_that_is_not_what_was_announced_is_refused(
    tmp_path: Path, changes: dict[str, Any], status: str, said: str
) -> None:
    place = Place(tmp_path, maxBundleMb="100")
    content = earlier(place.bundle.manifest)
    place.start()
    place.have_model()
    place.s3.objects[profile_key(FLEET, 1)] = content
    place.open(asked(place, profile=named(place, content, **changes)))
    place.settle()
    [notice] = place.notices
    assert notice.status == status
    assert said in notice.reason
    place.stop()


def test_an_owner_who_asks_for_noise_declines(tmp_path: Path) -> None:
    place = Place(tmp_path, minNoiseMultiplier="1")
    place.start()
    place.have_model()
    place.open(asked(place))
    place.settle()
    assert [(notice.status, "exact figures" in notice.reason) for notice in place.notices] == [("declined", True)]
    place.stop()


def test_missing_cells_are_counted_whatever_training_does_with_them(tmp_path: Path) -> None:
    manifest = Bundle.open(digits.BUNDLE).manifest
    rows = [",".join(["" if (row, at) == (3, 5) else "0.5" for at in range(64)] + ["1"]) for row in range(20)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows) + "\n")
    settings = DataSettings(loader="csv", path=str(path), header=False, validation_fraction=0.0)
    with pytest.raises(DataError, match="missing"):
        load(settings, manifest)
    found = load(settings.keeping_missing(), manifest).train
    [batch] = found.batches(100)
    assert int(np.isnan(batch.x).sum()) == 1


def test_with_noise_one_bounded_vector_is_uploaded_and_the_owners_account_charged(tmp_path: Path) -> None:
    place = Place(tmp_path, minNoiseMultiplier="0.5")
    place.start()
    place.have_model()
    noisy = asked(place, low=0.0, high=1.0, bins=4, max_rows=30)
    place.open(noisy.model_copy(update={"update": UpdateTask(clip_norm=1.0, noise_multiplier=0.5)}))
    place.settle()
    [notice] = place.notices
    assert (notice.status, notice.reason, notice.num_examples) == ("uploaded", "", 1)
    size = 64 * (4 + 2 + 3) + 10
    assert len(place.streams.s3[KEY]) - 4 * size < 2000
    assert PrivacyAccount(place.folder / "work" / "privacy.json").rounds == 1
    assert place.statuses[-1].examples == 0
    place.stop()

"""A device between rounds: it compares its live data with the fleet's profile, and only where that was asked and is allowed."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.trainer.drift_watch import LOOK_SECONDS
from fedgrass.profile.combine import Combined, profile_of
from fedgrass.profile.sums import Bounds, FeatureSums
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.messages import Announcement, UpdateTask
from fedgrass.protocol.profile import ProfileReference, profile_key
from tests.components.trainer.place import FLEET, Place
from tests.fedgrass.edge import digits


def profile(place: Place) -> bytes:
    """What all digits are like, as a round of statistics finds it."""
    x, y = digits.examples()
    sums = FeatureSums(64, 10, Bounds(np.zeros(64), np.ones(64), 16))
    sums.add(x.reshape(-1, 64))
    sums.labels += np.bincount(y, minlength=10)
    made = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return profile_of(Combined(sums, 5), place.bundle.manifest, fleet=FLEET, number=4, made_at=made).to_json()


def watching(place: Place, number: int = 1, **changes: Any) -> Announcement:
    content = profile(place)
    place.s3.objects[profile_key(FLEET, 4)] = content
    fields: dict[str, Any] = {
        "round": 4,
        "key": profile_key(FLEET, 4),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "graph_sha256": place.bundle.manifest.graph_sha256,
    }
    watch = ProfileReference(**{**fields, **changes.pop("watch", {})})
    return place.announcement(number, task="evaluate", watch=watch, **changes)


def look(place: Place) -> None:
    place.now += LOOK_SECONDS
    place.trainer._drift.look()
    place.until(lambda: not place.trainer._drift._works, "compared")


def figures(place: Place) -> Drift | None:
    place.trainer._status.publish()
    return place.statuses[-1].drift


@pytest.fixture
def asked(place: Place) -> Place:
    """A device that knows the profile, and has answered the round that named it."""
    place.start()
    digits.write_data(place.folder / "data.npz", 1700)
    place.open(watching(place))
    place.settle()
    place.close()
    return place


def test_live_data_are_compared_and_drift_is_seen(asked: Place) -> None:
    assert figures(asked) is None
    look(asked)
    normal = figures(asked)
    assert normal is not None
    assert (normal.profile, normal.rows) == (4, 1000)
    assert normal.inputs < 0.25
    assert (normal.inputs_change, normal.scores_change) == (0, 0)
    x, y = digits.examples()
    np.savez(asked.folder / "data.npz", x=1 - x, y=y)  # black is white from now on
    look(asked)
    assert figures(asked) == normal  # not before driftSeconds
    asked.now += 3600
    look(asked)
    drifted = figures(asked)
    assert drifted is not None
    assert drifted.inputs > 1
    assert drifted.inputs_change is not None
    assert drifted.inputs_change > 1
    assert drifted.distance > 0.5
    # Outlives the process: the profile is known from the last announcement, and fetched once.
    asked.stop()
    asked.start()
    look(asked)
    assert figures(asked) == drifted
    assert asked.s3.reads.count(profile_key(FLEET, 4)) == 1


def test_what_an_application_logs_needs_no_labels(tmp_path: Path) -> None:
    place = Place(tmp_path, driftPath=str(tmp_path / "live.npz"), driftRows="300")
    place.have_model()
    place.start()
    place.open(watching(place))
    place.settle()
    look(place)
    assert figures(place) is None  # there is no such file yet, and that is no reason not to train
    assert place.statuses[-1].able
    np.savez(tmp_path / "live.npz", x=digits.examples()[0])
    place.now += 3600
    look(place)
    found = figures(place)
    assert found is not None
    assert found.rows == 300
    place.stop()


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"watch": {"graph_sha256": "0" * 64}}, {}),
        ({"watch": {"sha256": "0" * 64}}, {}),
        ({"watch": {"key": "models/f/1.0.0/parameters.safetensors"}}, {}),
        ({"update": UpdateTask(clip_norm=1.0, noise_multiplier=1.0)}, {}),
        ({"update": UpdateTask(figures="left_out")}, {}),
        ({}, {"minNoiseMultiplier": "1"}),
        ({}, {"secureHelpers": ["k"]}),
        ({}, {"driftSeconds": "0"}),
        ({}, {"window": "00:00-00:00"}),
    ],
)
def test_nothing_is_told_where_it_was_not_asked_or_is_not_allowed(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    place = Place(tmp_path, **{"waitSeconds": "0", **settings})
    place.have_model()
    place.start()
    place.open(watching(place, **changes))
    place.settle()
    look(place)
    assert figures(place) is None
    place.stop()


def test_a_figure_that_is_old_or_no_longer_asked_for_is_told_no_more(asked: Place) -> None:
    look(asked)
    assert figures(asked) is not None
    (asked.folder / "data.npz").unlink()
    for _ in range(3):
        asked.now += 3600
        look(asked)
    assert figures(asked) is None
    digits.write_data(asked.folder / "data.npz", 500)
    asked.now += 3600
    look(asked)
    assert figures(asked) is not None
    asked.open(asked.announcement(2, task="evaluate"))
    asked.settle()
    look(asked)
    assert figures(asked) is None

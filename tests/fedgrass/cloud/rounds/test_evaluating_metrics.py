"""Figures that are no means over examples, of several devices together: what a fleet says is what one place would."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from fedgrass.answer import Answer, notice_of
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.figures import Claim, pooled
from fedgrass.protocol.message import MAX_MESSAGE_BYTES
from fedgrass.protocol.messages import Announcement, Base, Cohort, Upload
from fedgrass.protocol.sums import Sums
from tests.fedgrass.cloud.rounds.harness import Fleet
from tests.fedgrass.engines.test_figures_of_models import classes, manifest, tallied

START = TokenRequest(round=1, token="job")
SPARSE = "sparse_categorical_crossentropy"


def claim(model: Any, output: Any, y: Any, examples: int | None = None) -> Claim:
    own, sums = tallied(model, output, y)
    return Claim(len(y) if examples is None else examples, {"loss": 1.0, **own}, {"": sums.encode()})


def test_a_round_s_figures_are_those_of_all_examples_and_not_means_of_devices_own(fleet: Fleet) -> None:
    output, y = classes(3, 300, seed=5)
    order = np.argsort(y, kind="stable")  # each device has other classes: no mean of their F1 is the fleet's
    output, y = output[order], y[order]
    parts = {"a": slice(0, 60), "b": slice(60, 160), "c": slice(160, 300)}
    fleet.open(task="evaluate")
    for thing, part in parts.items():
        own, sums = tallied(manifest(SPARSE, (3,)), output[part], y[part])
        notice = fleet.update(
            thing,
            status="evaluated",
            key=None,
            sha256=None,
            bytes=0,
            num_examples=len(y[part]),
            metrics={"loss": 1.0, "accuracy": 0.5, **own},
            sums=sums.encode(),
        )
        assert record_update(fleet.services, notice) == "counted"
    start_aggregation(fleet.services, START)
    found, given = fleet.round().metrics, output.argmax(axis=1)
    assert found["f1"] == pytest.approx(reference.f1_score(y, given, average="macro"))
    assert found["precision"] == pytest.approx(reference.precision_score(y, given, average="macro"))
    assert found["recall"] == pytest.approx(reference.recall_score(y, given, average="macro"))
    area = reference.roc_auc_score(y, output, multi_class="ovr")
    assert abs(found["auc"] - area) <= found["auc_error"] < 0.02
    alone = [tallied(manifest(SPARSE, (3,)), output[part], y[part])[0]["f1"] for part in parts.values()]
    assert abs(float(np.mean(alone)) - found["f1"]) > 0.1


@pytest.mark.parametrize(
    ("metrics", "sums"),
    [
        ({"loss": 1.0, "f1": 1.5}, None),
        ({"loss": 1.0, "auc": -0.1}, None),
        ({"loss": 1.0, "rmse": -1.0}, None),
        ({"loss": 1.0, "r2": 1.1}, None),
        ({"loss": 1.0}, "no base64"),
        ({"loss": 1.0}, "AAAA"),
    ],
)
def test_figures_and_sums_that_cannot_be_are_not_counted(
    fleet: Fleet, metrics: dict[str, float], sums: str | None
) -> None:
    fleet.open(task="evaluate")
    told: Any = {"status": "evaluated", "key": None, "sha256": None, "bytes": 0, "num_examples": 5}
    assert record_update(fleet.services, fleet.update("a", metrics=metrics, sums=sums, **told)) == "ignored"
    assert fleet.round().uploaded == 0


def test_figures_without_sums_are_means_by_examples_and_are_named_so() -> None:
    claims = [Claim(100, {"loss": 1.0, "f1": 0.5, "auc": 0.8}), Claim(300, {"loss": 1.0, "f1": 0.9})]
    found = pooled(claims, Checks(max_examples_over_median=0))
    assert found.figures["f1"] == pytest.approx(0.8)
    assert found.figures["auc"] == pytest.approx(0.8)
    assert found.averaged == ("f1", "auc")


def test_some_old_devices_do_not_keep_the_others_figures_from_being_added() -> None:
    output, y = classes(3, 300, seed=1)
    model = manifest(SPARSE, (3,))
    own = Claim(50, {"loss": 1.0, "f1": 0.1, "auc": 0.1})
    without = claim(model, output[:100], y[:100])
    text = Sums.decode(without.sums[""] or "").without_scores().encode()
    without = Claim(100, without.metrics, {"": text})
    found = pooled([own, without, claim(model, output[100:], y[100:])], Checks())
    assert found.figures["f1"] == pytest.approx(reference.f1_score(y, output.argmax(axis=1), average="macro"))
    assert "f1" not in found.averaged


@pytest.mark.parametrize("labels", [1, 16, 64, 128])
def test_what_a_device_says_of_two_models_fits_a_message(labels: int) -> None:
    draw = np.random.default_rng(labels)
    y = (draw.random((20_000, labels)) < 0.4).astype(np.float32)
    output = draw.random(y.shape).astype(np.float32)
    own, sums = tallied(manifest("binary_crossentropy", (labels,)), output, y, batch=20_000)
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    announcement = Announcement(
        fleet="f" * 40,
        round=1,
        opened_at=now,
        deadline=now,
        base=Base(version="1.0.0", parameters_key="k", parameters_sha256="0" * 64, graph_sha256="0" * 64),
        cohort=Cohort(salt="s"),
        upload=Upload(bucket="bucket", prefix="p"),
    )
    metrics = dict(list({**own, **{f"base_{name}": value for name, value in own.items()}}.items())[:16])
    answer = Answer(
        "evaluated", num_examples=20_000, metrics=metrics, sums=sums.encode(), base_sums=sums.encode(), reason="é" * 500
    )
    notice = notice_of(announcement, "t" * 128, answer)
    assert len(notice.encode()) <= MAX_MESSAGE_BYTES
    assert notice.sums is not None
    assert Sums.decode(notice.sums).figures()["f1"] == pytest.approx(own["f1"])
    if labels == 1:
        assert Sums.decode(notice.sums).scores


def test_one_liar_of_twenty_moves_no_figure_far() -> None:
    """With counts, errors and spreads of its choice, it weighs what the checks let it."""
    output, y = classes(2, 1900, seed=3)
    model = manifest(SPARSE, (2,))
    honest = [claim(model, output[i : i + 100], y[i : i + 100]) for i in range(0, 1900, 100)]
    truth = pooled(honest, Checks()).figures
    liars = []
    for right in (0.0, 1.0):
        counts = (right * 5e8, right * 5e8)
        lie = Sums.model_validate({"k": "classes", "n": 1e9, "r": counts, "g": (5e8, 5e8), "t": (5e8, 5e8)})
        liars.append(Claim(10**9, {"loss": 1.0, "f1": right}, {"": lie.encode()}))
    for liar in liars:
        moved = pooled([*honest, liar], Checks()).figures
        assert abs(moved["f1"] - truth["f1"]) < 0.15
        assert "auc" in moved


def test_one_liar_of_twenty_cannot_make_errors_or_r2_what_it_likes() -> None:
    draw = np.random.default_rng(0)
    y = draw.normal(size=(1900, 1))
    output = y + 0.5 * draw.normal(size=y.shape)
    model = manifest("mean_squared_error", (1,))
    honest = [claim(model, output[i : i + 100], y[i : i + 100]) for i in range(0, 1900, 100)]
    truth = pooled(honest, Checks()).figures
    assert truth["r2"] == pytest.approx(reference.r2_score(y, output))
    for spread, squared, mean in ((1e29, 0.0, 0.0), (0.0, 1e29, 0.0), (1.0, 1.0, 1e20)):
        lie = Sums.model_validate(
            {"k": "values", "n": 100, "q": squared, "a": squared, "o": [{"m": mean, "v": spread, "e": squared}]}
        )
        moved = pooled([*honest, Claim(100, {"loss": 1.0, "rmse": squared}, {"": lie.encode()})], Checks()).figures
        assert moved["rmse"] < 2 * truth["rmse"]
        assert -10 < moved["r2"] <= 1

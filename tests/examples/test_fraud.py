"""The fraud example: banks' Flower clients with SMOTE, three rounds, the server's own figures; without the accounts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score
from typer.testing import CliRunner

from examples.fraud.client import oversampled
from examples.fraud.data import BANKS, write
from fedgrass import data as loaders
from fedgrass.bundle import Bundle
from fedgrass.cli import cli
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.cloud.aggregator.own_engine import OwnEngine
from fedgrass.data import DataSettings
from fedgrass.engines.registry import open_engine
from fedgrass.errors import ConfigurationError
from fedgrass.local.silos import silos_in
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.training import TrainingFiles, train

CLIENT, ESTIMATOR = "examples.fraud.client:Client", "examples.fraud.model:logistic"


def announcement(bundle: Bundle, number: int) -> Announcement:
    now = datetime.now(timezone.utc)
    return Announcement(
        fleet="banks",
        round=number,
        opened_at=now,
        deadline=now + timedelta(hours=1),
        base=Base.of(bundle.manifest, "banks"),
        cohort=Cohort(salt="s"),
        fit=FitTask(epochs=1, config={"smote": 0.3, "max_iter": 30}),
        upload=Upload(bucket="bucket", prefix=update_prefix("banks", number)),
    )


def test_banks_find_frauds_together_that_the_server_measures_and_scikit_learn_users_load(tmp_path: Path) -> None:
    write(tmp_path)
    bundle = Bundle.open(tmp_path / "bundle")
    first = bundle
    for number in (1, 2, 3):
        updates = tmp_path / f"updates-{number}"
        for bank in BANKS:
            path = updates / bank / "update.safetensors"
            path.parent.mkdir(parents=True)
            split = loaders.load(DataSettings(loader="csv", path=str(tmp_path / bank / "data.csv")), bundle.manifest)
            engine = open_engine("flower", bundle, builder=CLIENT)
            told = train(
                lambda engine=engine: engine,  # type: ignore[misc]
                bundle,
                split,
                announcement(bundle, number),
                bank,
                TrainingFiles(path, tmp_path / "checkpoint"),
            )
            # What the operator set, and the round's number, reached the client.
            assert told.metrics["round"] == number
            assert told.metrics["made_up"] > 100
        result = aggregate_folder(bundle.folder, updates, tmp_path / f"model-{number}")
        assert not result.quarantined
        bundle = Bundle.open(tmp_path / f"model-{number}")
    base, new = OwnEngine("sklearn", ESTIMATOR).evaluate(first, bundle, tmp_path / "evaluation.npz")
    assert base is not None
    assert new.loss < base.loss
    assert new.metrics["f1"] > 0.45
    file = tmp_path / "fraud.joblib"
    command = ["model", "convert", str(bundle.folder), str(file), "--builder", ESTIMATOR]
    CliRunner().invoke(cli, command, catch_exceptions=False)
    kept = np.load(tmp_path / "evaluation.npz")
    guessed = joblib.load(file).predict(kept["x"])  # our own
    for name, figure in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert new.metrics[name] == pytest.approx(figure(kept["y"], guessed), abs=0.02), name


def test_made_up_frauds_lie_between_two_of_the_real_ones() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 2)).astype(np.float32), np.r_[np.ones(10), np.zeros(90)].astype(np.int32)
    made_x, made_y = oversampled(x, y, 0.25, seed=1)
    assert len(made_y) - 100 == 20
    assert made_y[100:].all()
    assert np.array_equal(made_x[:100], x)
    real = x[y == 1].astype(np.float64)
    for point in made_x[100:].astype(np.float64):
        sides = np.linalg.norm(real - point, axis=1)
        gaps = sides[:, np.newaxis] + sides - np.linalg.norm(real[:, np.newaxis] - real, axis=2)
        gaps[np.diag_indices(10)] = 1
        assert gaps.min() == pytest.approx(0, abs=1e-5)
    assert oversampled(x, y, 0.05, seed=1)[0] is x  # there are more than that
    assert len(oversampled(x[9:], y[9:], 0.5, seed=1)[0]) == 91  # one alone has no neighbour


def test_a_federation_needs_two_silos(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "data.csv").write_text("")
    with pytest.raises(ConfigurationError, match="1 silos; expected two or more"):
        silos_in(tmp_path, "sklearn", ESTIMATOR, 1)

"""The round's job evaluates models that LiteRT does not run with the code that the operator's image names."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from fedgrass.cloud.aggregator.own_engine import BUILDER, ENGINE
from fedgrass.cloud.aggregator.release import upload
from fedgrass.inference import write_bundle
from fedgrass.protocol.settings import FleetSettings
from fedgrass.tensors import Array
from fedgrass.update.writer import write_update
from tests.fedgrass.cloud.aggregator.conftest import FLEET, Fleet, header, trained
from tests.fedgrass.engines.models import digits_bundle

HERE = "tests.fedgrass.cloud.aggregator.test_own_engine"
LOADED = load_digits()
X = (LOADED.images[..., None] / 16).astype(np.float32)
Y = LOADED.target.astype(np.int32)
FITTED = LogisticRegression(max_iter=500).fit(X[:1000].reshape(1000, -1), Y[:1000])


def build() -> Any:
    print("what a builder prints is no figure")
    if any(name.startswith("AWS_") for name in os.environ):
        raise PermissionError("credentials in the environment")
    return LogisticRegression()


def raising() -> Any:
    raise KeyError("layers")


def leaving() -> Any:
    os._exit(3)


def crashing() -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.fixture
def digits(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A fleet whose base is a good logistic regression, with two updates near it, and an evaluation set."""
    parameters = {"coef": FITTED.coef_.astype(np.float32), "intercept": FITTED.intercept_.astype(np.float32)}
    first = digits_bundle(tmp_path / "digits", "sklearn", parameters)
    fleet.base = write_bundle(first, parameters, tmp_path / "base", version="2.0.0")
    fleet.current = upload(fleet.base, fleet.clients.bucket, FLEET)
    for seed, thing in enumerate(["press-a", "press-b"]):
        fleet.put_update(thing, seed)
    fleet.put_evaluation_set(X[1000:], Y[1000:])
    monkeypatch.setenv(ENGINE, "sklearn")
    monkeypatch.setenv(BUILDER, f"{HERE}:build")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return fleet


def by_hand(coef: Array, intercept: Array) -> Array:
    scores = X[1000:].reshape(len(X) - 1000, -1) @ coef.T + intercept
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def test_base_and_model_are_evaluated_and_the_gate_looks(digits: Fleet) -> None:
    report = digits.run()
    assert report.outcome == "released"
    assert report.evaluation is not None
    assert report.evaluation_base is not None
    expected = by_hand(FITTED.coef_, FITTED.intercept_)
    assert report.evaluation_base.accuracy == pytest.approx(
        float((expected.argmax(axis=1) == Y[1000:]).mean()), abs=1e-9
    )
    assert report.evaluation_base.loss == pytest.approx(log_loss(Y[1000:], expected), rel=1e-4)
    macro = f1_score(Y[1000:], expected.argmax(axis=1), average="macro")
    assert report.evaluation_base.metrics["f1_macro"] == pytest.approx(macro, abs=1e-6)
    assert report.evaluation.examples == len(X) - 1000
    assert "accuracy" in report.reason


def test_a_model_that_became_worse_is_held(digits: Fleet) -> None:
    digits.settings = FleetSettings.model_validate(
        {"gate": {"loss_tolerance": 0.0, "metric": "loss", "tolerance": 0.0}}
    )
    for seed, thing in enumerate(["press-a", "press-b"]):
        path = digits.folder / f"worse-{seed}"
        write_update(
            path, digits.base.parameters(), trained(digits.base.parameters(), 5, scale=1.0), header(digits.base, thing)
        )
        digits.put(thing, path.read_bytes())
    report = digits.run()
    assert report.outcome == "held"
    assert report.evaluation is not None


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("raising", r"KeyError: 'layers' \(test_own_engine.py, line [0-9]+, in raising\): the base stays"),
        ("leaving", "died with exit code 3: the base stays"),
        ("crashing", r"died by signal 11 \(SIGSEGV\): the base stays"),
        ("nothing", "cannot be imported"),
    ],
)
def test_code_that_breaks_holds_the_model_and_says_why(
    digits: Fleet, monkeypatch: pytest.MonkeyPatch, builder: str, said: str
) -> None:
    monkeypatch.setenv(BUILDER, f"{HERE}:{builder}")
    report = digits.run()
    assert report.outcome == "held"
    assert report.evaluation is None
    assert re.search(said, report.reason), report.reason


def test_without_an_engine_in_the_image_nobody_looks(digits: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE)
    report = digits.run()
    assert (report.outcome, report.evaluation) == ("released", None)

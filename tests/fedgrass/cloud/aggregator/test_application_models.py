"""What a round makes for the application, and rounds of models that LiteRT does not train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fedgrass.bundle import ARCHITECTURE, INFERENCE, INFERENCE_INT8, MANIFEST, PARAMETERS
from fedgrass.cloud.aggregator.release import upload
from fedgrass.inference import write_bundle
from fedgrass.protocol.names import model_prefix
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet
from tests.fedgrass.engines.models import digits_bundle

OPEN_GATE: dict[str, object] = {"gate": {"tolerance": 1.0}}


def published(fleet: Fleet, version: str) -> set[str]:
    prefix = model_prefix(FLEET, version)
    return {key.removeprefix(prefix) for key in fleet.keys(prefix)}


def run(fleet: Fleet, settings: dict[str, object]) -> dict[str, float]:
    digits = load_digits()
    fleet.put_evaluation_set((digits.images[:200, ..., None] / 16).astype(np.float32), digits.target[:200])
    for seed, thing in enumerate(["press-a", "press-b"]):
        fleet.put_update(thing, seed)
    fleet.settings = FleetSettings.model_validate(settings)
    report = fleet.run()
    assert report.outcome == "released"
    return report.inference_accuracy


def test_the_accuracy_of_both_of_the_applications_models_is_in_the_report(fleet: Fleet) -> None:
    accuracy = run(fleet, OPEN_GATE)
    assert set(accuracy) == {INFERENCE, INFERENCE_INT8}
    assert abs(accuracy[INFERENCE] - accuracy[INFERENCE_INT8]) <= 0.05
    assert INFERENCE_INT8 in published(fleet, f"1.{ROUND}.0")


def test_the_quantized_model_can_be_switched_off(fleet: Fleet) -> None:
    assert set(run(fleet, {**OPEN_GATE, "inference": {"int8": False, "sparsity": 0.5}})) == {INFERENCE}
    assert INFERENCE_INT8 not in published(fleet, f"1.{ROUND}.0")


def test_a_model_without_a_litert_graph_is_averaged_and_released(fleet: Fleet, tmp_path: Path) -> None:
    base = {"coef": np.zeros((10, 64), np.float32), "intercept": np.zeros(10, np.float32)}
    fleet.base = write_bundle(digits_bundle(tmp_path / "1", "sklearn", base), base, tmp_path / "2", version="2.0.0")
    fleet.current = upload(fleet.base, fleet.clients.bucket, FLEET)
    for seed, thing in enumerate(["press-a", "press-b"]):
        fleet.put_update(thing, seed)
    fleet.put_evaluation_set(np.zeros((3, 8, 8, 1), np.float32), np.zeros(3, np.int32))
    report = fleet.run()
    assert (report.outcome, report.evaluation, report.inference_accuracy) == ("released", None, {})
    assert "no evaluation set for this model" in report.reason
    assert published(fleet, f"2.{ROUND}.0") == {ARCHITECTURE, PARAMETERS, MANIFEST}

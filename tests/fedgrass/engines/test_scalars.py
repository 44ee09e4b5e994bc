"""No scalar is ever resized: the public runner of LiteRT does so, and on 64-bit Arm the process dies of it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, SignatureRunner

from fedgrass.bundle import INFERENCE, Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings, FitState, Hooks
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.engines.signatures import Signature
from fedgrass.inference import inference_accuracy
from tests.fixtures.places import ROOT

BUNDLE = ROOT / "examples" / "digits" / "bundle"
OURS = ("benchmarks", "components", "fedgrass", "scripts")
GENERATOR = np.random.default_rng(0)
DATA = ArrayDataset(GENERATOR.random((40, 8, 8, 1), np.float32), GENERATOR.integers(0, 10, 40).astype(np.int32))


def runners(path: Path) -> list[ast.Call]:
    """Where a file asks for a runner and does not hand it to `Signature`."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_text())))
    except (SyntaxError, UnicodeDecodeError):
        return []
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    wrapped = {id(argument) for call in calls if getattr(call.func, "id", "") == "Signature" for argument in call.args}
    return [c for c in calls if getattr(c.func, "attr", "") == "get_signature_runner" and id(c) not in wrapped]


def test_nothing_of_ours_calls_the_public_runner() -> None:
    files = [f for side in OURS for f in (ROOT / side).rglob("*") if f.is_file() and f.suffix in ("", ".py")]
    assert sum("get_signature_runner" in f.read_text(errors="replace") for f in files) >= 3
    assert [str(file.relative_to(ROOT)) for file in files if runners(file)] == []


def test_the_guard_sees_a_scalar_that_is_resized() -> None:
    train: Any = Interpreter(model_path=str(BUNDLE / "model.tflite")).get_signature_runner("train_plain")
    inputs = {"x": DATA.x[:16], "y": DATA.y[:16], "sample_weight": np.ones(16, np.float32)}
    with pytest.raises(AssertionError, match="64-bit Arm"):
        train(**inputs, learning_rate=np.float32(0.1))


@pytest.mark.parametrize("settings", [FitSettings(), FitSettings(proximal_mu=0.1, clip_norm=0.5)], ids=["plain", "all"])
def test_every_signature_runs_without_a_resize(monkeypatch: pytest.MonkeyPatch, settings: FitSettings) -> None:
    monkeypatch.setattr(SignatureRunner, "__call__", lambda *_, **__: pytest.fail("the public runner was called"))
    bundle = Bundle.open(BUNDLE)
    states: list[FitState] = []
    engine = LiteRTEngine(bundle)
    engine.fit(DATA, settings, hooks=Hooks(after_epoch=states.append))
    LiteRTEngine(bundle).fit(DATA, settings, resume=states[-1])
    engine.set_parameters(engine.get_parameters())
    engine.evaluate(DATA)
    engine.infer(DATA.x)
    inference_accuracy(bundle, DATA)


def test_an_input_of_another_shape_or_name_or_never_set_is_refused() -> None:
    def infer() -> Signature:
        return Signature(Interpreter(model_path=str(BUNDLE / INFERENCE)).get_signature_runner("infer"))

    with pytest.raises(ValueError, match="'x' was never set"):
        infer()()
    with pytest.raises(ValueError, match="no input 'z'; expected x"):
        infer()(x=DATA.x[:1], z=DATA.x[:1])
    with pytest.raises(ValueError, match="Dimension mismatch"):
        infer()(x=DATA.x[:1, :4])

"""What code of the user's own raises is told as itself, with where it came from and its traceback."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.engines.base import StopTraining
from fedgrass.engines.registry import open_engine
from fedgrass.errors import DataError, EngineError
from fedgrass.own_code import own_code
from fedgrass.simulation.run import simulate
from fedgrass.simulation.store import Store
from tests.fedgrass.simulation.conftest import SMALL, fleet

HERE = "tests.fedgrass.test_own_code"
RAISED = {"KeyError": KeyError("speed"), "SystemExit": SystemExit(3), "RuntimeError": RuntimeError()}


class Client:
    """A Flower client whose training, evaluation or making fails."""

    fails = "fit"

    def __init__(self, data: Any) -> None:
        self.examples = len(data)

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        if self.fails == "fit":
            raise KeyError("speed")
        if self.fails == "exit":
            raise SystemExit(3)
        return [value + 1 for value in parameters], self.examples, {}

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        if self.fails == "evaluate":
            raise KeyError("speed")
        return 1.0, self.examples, {}


class Exiting(Client):
    fails = "exit"


class Unevaluable(Client):
    fails = "evaluate"


def unbuildable() -> Any:
    layers: dict[str, Any] = {}
    return layers["layers"]


def digits(folder: Path) -> Bundle:
    return new_bundle(
        folder,
        NewModel(
            engine="flower",
            name="digits",
            parameters={"0000": np.zeros((64, 10), np.float32)},
            batch_size=16,
            x=TensorDescription(name="x", shape=(8, 8, 1), dtype="float32"),
            y=TensorDescription(name="y", shape=(), dtype="int32"),
            output=TensorDescription(name="y", shape=(10,), dtype="float32"),
            loss="sparse_categorical_crossentropy",
        ),
    )


@pytest.mark.parametrize("name", RAISED)
def test_the_error_names_what_was_raised_and_its_line_and_the_log_has_the_traceback(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.raises(EngineError, match=f"training {name}: {name}") as caught, own_code(f"training {name}"):
        raise RAISED[name]
    assert "(test_own_code.py, line" in str(caught.value)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is RAISED[name]


@pytest.mark.parametrize("error", [DataError("no rows"), MemoryError(), StopTraining(), KeyboardInterrupt()])
def test_what_is_no_failure_of_the_users_code_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, own_code("training"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("builder", ["unbuildable", "nothing"])
def test_a_builder_that_raises_is_named(tmp_path: Path, builder: str) -> None:
    pytest.importorskip("sklearn")
    expected = "KeyError: 'layers' .test_own_code.py, line [0-9]+, in unbuildable"
    with pytest.raises(EngineError, match=expected if builder == "unbuildable" else "cannot be imported"):
        open_engine("sklearn", digits(tmp_path), builder=f"{HERE}:{builder}")


@pytest.mark.parametrize(("client", "raised"), [("Client", "KeyError: 'speed'"), ("Exiting", "SystemExit: 3")])
def test_in_a_simulation_each_device_fails_by_name_and_the_traceback_is_shown_once(
    tmp_path: Path, client: str, raised: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {**SMALL, "rounds": 2, "fleet": fleet({}), "workers": 1}
    simulate(
        tmp_path / "out",
        bundle=digits(tmp_path / "bundle").folder,
        engine="flower",
        builder=f"{HERE}:{client}",
        **options,
    )
    for simulated in Store(tmp_path / "out").rounds():
        assert len(simulated.failed) == SMALL["cohort"]
        assert all(
            reason.startswith(f"engine: training: {raised} (test_own_code.py") for reason in simulated.failed.values()
        )
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1
    assert "in fit" in said


def test_a_simulation_whose_evaluation_raises_ends_with_the_error_itself(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "fleet": fleet({}), "workers": 1}
    with pytest.raises(
        EngineError, match=r"evaluating: KeyError: 'speed' \(test_own_code.py, line [0-9]+, in evaluate"
    ):
        simulate(
            tmp_path / "out",
            bundle=digits(tmp_path / "bundle").folder,
            engine="flower",
            builder=f"{HERE}:Unevaluable",
            **options,
        )

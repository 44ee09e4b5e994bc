"""Parameters that are no float32 in the model's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.flower import FlowerEngine
from fedgrass.errors import BundleError
from fedgrass.tensors import Array

STATE: dict[str, Array] = {
    "weight": np.array([0.5, -1.5], np.float32),
    "wide": np.array([0.1, 1e-3]),
    "half": np.array([0.25], np.float16),
    "seen": np.array(7),
    "counts": np.array([3, 250], np.uint8),
    "mask": np.array([True, False, True]),
}
X = np.zeros((10, 2), np.float32)


def bundle(folder: Path, parameters: Any) -> Bundle:
    y = TensorDescription(name="y", shape=(1,), dtype="float32")
    x = TensorDescription(name="x", shape=(2,), dtype="float32")
    model = NewModel(
        engine="flower", name="m", parameters=parameters, batch_size=4, x=x, y=y, output=y, loss="mean_squared_error"
    )
    return new_bundle(folder, model)


class Client:
    """Gets the dtypes that it gave, counts up, and tells figures as NumPy and Python have them."""

    def __init__(self) -> None:
        self.given: list[Array] = []

    def fit(self, parameters: list[Array], config: dict[str, Any]) -> tuple[list[Array], int, dict[str, Any]]:
        self.given = parameters
        told = {
            "loss": np.float32(0.5),
            "right": np.int64(3),
            "one": np.array([0.25]),
            "zero": np.array(2.0),
            "yes": np.bool_(True),
            "text": "no number",
            "many": np.zeros(3),
            "nothing": None,
            "nan": np.float64("nan"),
        }
        return [value + 1 if value.dtype.kind in "iu" else value for value in parameters], np.int64(10), told

    def evaluate(self, parameters: list[Array], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return np.float32(2.0), np.int64(10), {"accuracy": np.float64(0.5)}


def test_a_model_s_own_dtypes_go_out_as_float32_and_come_back_as_they_were(tmp_path: Path) -> None:
    made, client = bundle(tmp_path, STATE), Client()
    assert {p.dtype for p in made.manifest.parameters} == {"float32"}
    assert made.manifest.statistics == {"seen": "mean", "counts": "mean", "mask": "mean"}
    result = FlowerEngine(made, builder=client).fit(ArrayDataset(X, X[:, :1]), FitSettings())
    for given, (name, value) in zip(client.given, STATE.items(), strict=True):
        assert given.dtype == value.dtype, name
        np.testing.assert_allclose(given, value, rtol=1e-7)
    assert result.parameters["seen"] == 8
    assert result.metrics == {"loss": 0.5, "right": 3.0, "one": 0.25, "zero": 2.0, "yes": 1.0}
    assert result.num_examples == 10
    figures = FlowerEngine(made, builder=client).evaluate(ArrayDataset(X, X[:, :1]))
    assert figures == {"loss": 2.0, "examples": 10.0, "accuracy": 0.5}


def test_a_mean_of_whole_numbers_is_rounded_where_the_model_gets_it(tmp_path: Path) -> None:
    made, client = bundle(tmp_path, STATE), Client()
    engine = FlowerEngine(made, builder=client)
    engine.set_parameters(
        {**made.parameters(), "seen": np.array(7.6, np.float32), "mask": np.array([0.6, 0.4, 0], np.float32)}
    )
    engine.fit(ArrayDataset(X, X[:, :1]), FitSettings())
    seen, mask = client.given[3], client.given[5]
    assert seen == 8
    assert mask.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(2, complex), "'odd' is complex128"),
        (np.array(["a"]), "'odd' is str"),
        (np.array([None]), "'odd' is object"),
        (np.array([1 << 30]), "beyond 2.24"),
    ],
)
def test_what_float32_cannot_stand_for_is_refused_in_one_line_at_the_start(
    tmp_path: Path, value: Array, said: str
) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        bundle(tmp_path, {"odd": value})
    assert "\n" not in str(caught.value)


def test_a_torch_module_of_other_floats_is_cast_and_what_is_no_float_is_named_as_local(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from fedgrass.engines.torch import TorchEngine, initial_parameters

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)
            self.layer = torch.nn.Linear(2, 1)
            self.register_buffer("mask", torch.tensor([True, False]))

        def forward(self, x: Any) -> Any:
            return self.layer(self.norm(x) * self.mask)

    for dtype in (torch.bfloat16, torch.float64, torch.float16):

        def build(dtype: Any = dtype) -> Any:
            return Net().to(dtype)

        parameters = initial_parameters(build)
        made = bundle(tmp_path / str(dtype), parameters)
        assert set(made.manifest.local or ()) == {"norm.num_batches_tracked", "mask"}
        engine = TorchEngine(made, builder=build)
        x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
        before = engine.evaluate(ArrayDataset(x, x[:, :1]))["loss"]
        engine.fit(ArrayDataset(x, x[:, :1]), FitSettings(epochs=5, learning_rate=0.05))
        assert engine.evaluate(ArrayDataset(x, x[:, :1]))["loss"] < before

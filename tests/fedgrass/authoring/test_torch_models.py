"""A PyTorch module trains on the device as in PyTorch, without PyTorch there; what cannot is refused by its path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fedgrass import bundle
from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.tensors import Array
from tests.fixtures.places import ROOT

pytestmark = pytest.mark.authoring

torch = pytest.importorskip("torch", reason="torch is not installed; scripts/torch_tests tries it")
pytest.importorskip("tensorflow")

from torch import nn  # noqa: E402 - only where they are
from torch.nn import functional as F  # noqa: E402, N812

from fedgrass.authoring.commands import export as export_command  # noqa: E402
from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402
from fedgrass.authoring.export import export  # noqa: E402
from fedgrass.engines.torch import TorchEngine  # noqa: E402
from tests.fedgrass.authoring import torch_nets as nets  # noqa: E402

slow = pytest.mark.slow  # scripts/torch_tests tries these too; the others are the quick ones

BATCH, STEPS, RATE = 4, 10, 0.05
TOLERANCE = 2e-5

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "cross_entropy": lambda output, y: F.cross_entropy(output, y.long()),
    "tokens": lambda output, y: F.cross_entropy(output.flatten(0, 1), y.long().flatten()),
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
}


def examples(made: Bundle, count: int) -> ArrayDataset:
    generator, manifest = np.random.default_rng(1), made.manifest
    x: Array = generator.normal(size=(count, *manifest.x.shape)).astype(np.float32)
    if manifest.x.dtype != "float32":
        x = generator.integers(0, 11, x.shape).astype(manifest.x.dtype)
        x[:, 0] = 1  # something to attend to
    y: Array = generator.normal(size=(count, *manifest.y.shape)).astype(np.float32)
    if manifest.loss == "sparse_categorical_crossentropy":
        y = generator.integers(0, manifest.output.shape[-1], y.shape).astype(np.int32)
    elif manifest.loss == "binary_crossentropy":
        y = (y > 0).astype(np.float32)
    return ArrayDataset(x, y)


def assert_parity(folder: Path, module: Any, shape: Any, loss: str, *, momentum: float = 0.0) -> None:
    """Hold ten steps on the device against ten of torch's own optimizer, and the outputs before them."""
    rule = bundle.Optimizer(name="momentum" if momentum else "sgd", momentum=momentum)
    named = "cross_entropy" if loss == "tokens" else loss
    made = export(module, folder, loss=named, batch_size=BATCH, input=shape, optimizer=rule, prove=False)
    data, engine, settings = examples(made, BATCH * STEPS), LiteRTEngine(made), FitSettings(learning_rate=RATE)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(data.x[:BATCH])).numpy()
    if expected.ndim == 4:
        expected = np.moveaxis(expected, 1, -1)
    np.testing.assert_allclose(engine.infer(data.x[:BATCH]), expected, atol=TOLERANCE)
    result = engine.fit(data, settings)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=momentum)
    losses = []
    for batch in data.batches(BATCH, seed=settings.epoch_seed(0)):
        optimizer.zero_grad()
        value = LOSSES[loss](module(torch.from_numpy(batch.x)), torch.from_numpy(batch.y))
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert result.metrics["loss"] == pytest.approx(np.mean(losses), abs=TOLERANCE)
    state = module.state_dict()
    for name, value in result.parameters.items():
        np.testing.assert_allclose(value, state[name].numpy(), atol=TOLERANCE, err_msg=name)
    changed = {name for name, value in state.items() if value.is_floating_point()}
    assert result.parameters.keys() | set(made.manifest.frozen) >= changed - {"head.weight"}


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(nets.activations, (6,), marks=slow),
        pytest.param(nets.functions, (6,), marks=slow),
        pytest.param(nets.images, (3, 9, 8), marks=slow),
        pytest.param(nets.pooling, (3, 9, 8), marks=slow),
        pytest.param(nets.normalizations, (3, 6, 5), marks=slow),
        pytest.param(nets.sequences, (6, 5), marks=slow),
        pytest.param(nets.Long, (23, 3), marks=slow),
        (nets.Residual, (3, 12, 12)),
        pytest.param(nets.Segmentation, (3, 8, 8), marks=slow),
        (nets.perceptron, (7,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ten_steps_on_the_device_are_those_of_torch(tmp_path: Path, build: Callable[[], Any], shape: Any) -> None:
    torch.manual_seed(0)
    assert_parity(tmp_path, build(), shape, "cross_entropy")


@pytest.mark.parametrize("causal", [pytest.param(False, marks=slow), True], ids=["masked", "causal"])
def test_transformers_over_tokens_train_alike(tmp_path: Path, causal: bool) -> None:
    torch.manual_seed(0)
    assert_parity(tmp_path, nets.TokenTransformer(causal=causal), {"shape": (6,), "dtype": "int64"}, "tokens")


def test_bags_of_tokens_train_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_parity(tmp_path, nets.Bags(), {"shape": (6,), "dtype": "int64"}, "cross_entropy")


@slow
@pytest.mark.parametrize("loss", [name for name in LOSSES if "cross_entropy" != name != "tokens"])
def test_losses_by_pytorchs_names(tmp_path: Path, loss: str) -> None:
    torch.manual_seed(0)
    assert_parity(tmp_path, nets.regressor(), (5,), loss, momentum=0.8)


def test_devices_with_torch_and_devices_with_litert_share_a_bundle(tmp_path: Path) -> None:
    """Also with Adam, whose ε PyTorch adds elsewhere than Keras: the engine follows the bundle."""
    torch.manual_seed(0)
    module = nets.Residual()
    rule = bundle.Optimizer(name="adam", learning_rate=0.01)
    made = export(module, tmp_path, loss=nn.CrossEntropyLoss(), batch_size=BATCH, input=(3, 12, 12), optimizer=rule)
    assert made.manifest.self_test is not None
    assert made.manifest.self_test.parameters is not None
    data, settings = examples(made, 3 * BATCH), FitSettings(learning_rate=0.01)
    litert = LiteRTEngine(made).fit(data, settings)
    other = TorchEngine(made, builder=lambda: copy.deepcopy(module)).fit(data, settings)
    assert litert.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-4)
    assert made.manifest.statistics is not None
    for name, value in litert.parameters.items():
        assert value.shape == other.parameters[name].shape
        np.testing.assert_allclose(value, other.parameters[name], atol=2e-3, err_msg=name)
    missing, unexpected = module.load_state_dict(
        {name: torch.from_numpy(value) for name, value in litert.parameters.items()}, strict=False
    )
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    kinds = {name: made.manifest.statistics[name] for name in ("norm.running_mean", "norm.running_var")}
    assert kinds == {"norm.running_mean": "mean", "norm.running_var": "variance"}


def test_dropout_is_drawn_anew_by_round_and_step_and_off_in_evaluation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    made = export(module, tmp_path, loss="cross_entropy", batch_size=BATCH, input=(6,))
    data, engine = examples(made, BATCH), LiteRTEngine(made)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(data.x)).numpy()
    np.testing.assert_allclose(engine.infer(data.x), expected, atol=TOLERANCE)
    found = []
    for seed in (1, 1, 2):
        engine.set_parameters(made.parameters())
        found.append(engine.fit(data, FitSettings(learning_rate=RATE, seed=seed)).parameters["2.weight"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


class Two(nn.Module):  # type: ignore[misc]
    """Takes an image and numbers, gives classes and a place."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers = nn.Conv2d(1, 3, 2), nn.Linear(3, 4)
        self.kind, self.place = nn.Linear(31, 3), nn.Linear(31, 2)

    def forward(self, image: Any, numbers: Any) -> dict[str, Any]:
        hidden = torch.cat([F.relu(self.image(image)).flatten(1), self.numbers(numbers)], 1)
        return {"kind": self.kind(hidden), "place": self.place(hidden)}


def test_several_inputs_and_outputs_train_as_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, weights = Two(), {"kind": 1.0, "place": 0.4}
    made = export(
        module,
        tmp_path,
        loss={"kind": "cross_entropy", "place": "mse_loss"},
        loss_weights=weights,
        batch_size=BATCH,
        input={"image": (1, 4, 4), "numbers": (3,)},
    )
    assert made.manifest.self_test is not None
    assert made.manifest.self_test.parameters is not None
    generator = np.random.default_rng(0)
    image = generator.normal(size=(BATCH * STEPS, 1, 4, 4)).astype(np.float32)
    numbers = generator.normal(size=(BATCH * STEPS, 3)).astype(np.float32)
    kind = generator.integers(0, 3, (BATCH * STEPS, 1))
    place = generator.normal(size=(BATCH * STEPS, 2)).astype(np.float32)
    rows = np.concatenate([image.reshape(len(image), -1), numbers], axis=1)
    data = ArrayDataset(rows, np.concatenate([kind, place], axis=1).astype(np.float32))
    engines = [LiteRTEngine(made), TorchEngine(made, builder=lambda: copy.deepcopy(module))]
    settings = FitSettings(learning_rate=RATE)
    results = [engine.fit(data, settings) for engine in engines]
    optimizer = torch.optim.SGD(module.parameters(), RATE)
    for batch in data.batches(BATCH, seed=settings.epoch_seed(0)):
        optimizer.zero_grad()
        x, y = torch.from_numpy(batch.x), torch.from_numpy(batch.y)
        found = module(x[:, :16].reshape(-1, 1, 4, 4), x[:, 16:])
        loss = F.cross_entropy(found["kind"], y[:, 0].long()) + 0.4 * F.mse_loss(found["place"], y[:, 1:])
        loss.backward()
        optimizer.step()
    for result in results:
        for name, value in result.parameters.items():
            np.testing.assert_allclose(value, module.state_dict()[name].numpy(), atol=TOLERANCE, err_msg=name)
    ours, theirs = (engine.evaluate(data) for engine in engines)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert {"kind_loss", "kind_accuracy", "place_mae"} <= ours.keys()


class Branching(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Any) -> Any:
        return self.inner(x) if x.sum() > 0 else x


class Outer(nn.Module):  # type: ignore[misc]
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(5, 5), body

    def forward(self, x: Any) -> Any:
        return self.body(self.first(x))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (Branching(), r"module 'body' \(Branching\): control flow or a shape that depends on the data"),
        (nets.Lambda(torch.fft.rfft), r"module 'body' \(Lambda\): operator"),
        (nets.Lambda(lambda x: x.half().float()), r"module 'body' \(Lambda\): a tensor of torch.float16"),
        (nets.Lambda(lambda x: x[x > 0]), r"module 'body' \(Lambda\): .*a shape that depends on the data"),
        (
            nets.Lambda(lambda x: torch.view_as_real(torch.complex(x, x)).flatten(1)),
            r"module 'body' \(Lambda\): a tensor of torch.complex64",
        ),
        (nn.BatchNorm1d(5, momentum=None), r"module 'body' \(BatchNorm1d\): momentum=None"),
        (nets.Lambda(lambda x: x.sum()), "an output of shape"),
        (nets.Lambda(lambda x: (x, 2)), "a module that gives something else than tensors"),
        (
            nets.Lambda(lambda x: x @ torch.ones(7, 2)),
            r"module 'body' \(Lambda\): a call that torch.export cannot record",
        ),
        (nn.RReLU(), r"module 'body' \(RReLU\): RReLU, which draws its slopes,"),
    ],
    ids=["branch", "fft", "half", "boolean index", "complex", "cumulative", "scalar", "pair", "shape", "rrelu"],
)
def test_what_cannot_be_trained_is_refused_by_the_path_of_its_module(tmp_path: Path, body: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        export(Outer(body), tmp_path, loss="mse_loss", batch_size=BATCH, input=(5,))
    assert not list(tmp_path.iterdir())


def test_an_option_of_a_loss_that_devices_do_not_know_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"loss '?CrossEntropyLoss'?: label_smoothing=0\.1"):
        export(nets.regressor(), Path(), loss=nn.CrossEntropyLoss(label_smoothing=0.1), batch_size=4, input=(5,))


def test_frozen_modules_neither_move_nor_travel(tmp_path: Path) -> None:
    module = nets.perceptron()
    made = export(module, tmp_path, loss="cross_entropy", batch_size=BATCH, input=(7,), freeze=("0", "1"))
    assert list(made.parameters()) == ["3.weight", "3.bias"]
    assert set(made.manifest.frozen) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    with pytest.raises(UnsupportedModelError, match="freezing 'nothing', which it does not have"):
        export(module, tmp_path, loss="cross_entropy", batch_size=BATCH, input=(7,), freeze=("nothing",))


def test_the_example_and_the_model_of_the_documentation_are_exported_by_the_command(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/torch-model.md").read_text()
    (tmp_path / "page.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    app = typer.Typer()
    app.command()(export_command)
    for number, file in enumerate((ROOT / "examples/torch/model.py", tmp_path / "page.py")):
        output = tmp_path / f"bundle{number}"
        found = CliRunner().invoke(app, [str(file), "--output", str(output)])
        assert found.exit_code == 0, found.output
        assert "largest differences from the framework's" in found.output
        assert Bundle.open(output).manifest.output.shape == (10,)

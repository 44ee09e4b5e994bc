"""Self-test of a bundle at its export: it trains, evaluates, infers, stops and resumes as on a device.

The first steps are held against the framework's own, on data that are made up to suit the model. A net may be chaotic:
where the difference is larger than it should be, it is compared with what the framework's own difference becomes when its
first parameters are moved by a ten-millionth.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

import numpy as np

from fedgrass import bundle
from fedgrass.authoring.errors import UnsupportedModelError, first_line
from fedgrass.authoring.model import Model
from fedgrass.authoring.reference import Reference, Steps
from fedgrass.bundle import Bundle, Head, Parameters, SelfTest, TensorDescription
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.several import joined
from fedgrass.errors import FedgrassError
from fedgrass.inference import Application
from fedgrass.tensors import Array

STEPS = 2
LOSS_TOLERANCE = 2e-5
CHANGE_TOLERANCE = 1e-3
OUTPUT_TOLERANCE = 1e-4

_MOVED_BY = 1e-7
# Normal examples and random labels fit no model: a large rate would show its divergence and nothing else.
_HIGHEST_RATE = 0.01
# Some three units in the last place of a float32: parameters that hardly move differ by that much.
_ROUNDING = 4e-7
_LEAST_GRADIENT, _LEAST_OF_ALL = 1e-3, 1e-4
"""Shares of a parameter's largest gradient, and of all parameters', below which rounding may tell the sign of a step."""
# An optimizer that divides by the gradient's size steps by about the rate, whatever the gradient.
_MOST_STEP = 1.05
_TIMES = 20.0
"""How much more than Keras moved by rounding a device may differ: its sums are in another order all the way."""


def run(made: Bundle, model: Model, reference: Reference | None) -> SelfTest:
    """Try a bundle and return the differences.

    Parameters
    ----------
    made
        The bundle.
    model
        What it was made of.
    reference
        The framework's own training; None compares nothing with it.

    Raises
    ------
    UnsupportedModelError
        If the graph fails in LiteRT, is no longer the same after a restart, or trains otherwise than the framework.
    """
    data = examples(made, model)
    # Made-up data should not make a training diverge that is sound.
    settings = FitSettings(learning_rate=min(made.manifest.optimizer.rate, _HIGHEST_RATE))
    try:
        device = _on_device(made, data, settings)
    except (FedgrassError, RuntimeError, ValueError) as error:
        raise _failed(made, error) from error
    if reference is None:
        return SelfTest(steps=STEPS)
    expected, start = reference.steps(data, settings), made.parameters()
    found = _differences(device, expected, start)
    if not found.within():
        # The reference itself, its parameters moved by rounding: a chaotic net differs from itself.
        moved = reference.steps(data, settings, moved_by=_MOVED_BY)
        chaos = _differences(moved, expected, start)
        if not found.within(chaos):
            raise _differs(device, expected, found)
    return SelfTest(steps=STEPS, loss=found.loss, parameters=found.parameters, output=found.output)


@dataclass(frozen=True)
class _Differences:
    """``changes``: of the parameters' changes, as shares of them and so much stricter than ``parameters``."""

    loss: float
    parameters: float
    changes: float
    output: float
    worst: str

    def within(self, chaos: _Differences | None = None) -> bool:
        more = (chaos.loss, chaos.changes, chaos.output) if chaos else (0.0, 0.0, 0.0)
        limits = (LOSS_TOLERANCE, CHANGE_TOLERANCE, OUTPUT_TOLERANCE)
        found = (self.loss, self.changes, self.output)
        return all(value <= max(limit, _TIMES * extra) for value, limit, extra in zip(found, limits, more, strict=True))


def examples(made: Bundle, model: Model) -> ArrayDataset:
    """Make up two batches that the model takes: labels in range, tokens within the vocabulary."""
    manifest, generator = made.manifest, np.random.default_rng(0)
    count, (vocabulary, masked) = STEPS * manifest.batch_size, model.takes()
    inputs = manifest.inputs or (manifest.x,)
    known = {part.name: vocabulary for part in inputs} | manifest.vocabularies
    arrays = {part.name: _inputs(part, known[part.name], masked, generator, count) for part in inputs}
    labels = {head.y.name: _labels(head, generator, count) for head in manifest.heads}
    x = joined(arrays, inputs) if manifest.inputs else arrays[manifest.x.name]
    y = joined(labels, [head.y for head in manifest.heads]) if manifest.outputs else labels[manifest.y.name]
    return ArrayDataset(x, y)


def _inputs(
    part: TensorDescription, vocabulary: int | None, masked: float | None, generator: np.random.Generator, count: int
) -> Array:
    shape: tuple[int, ...] = (count, *part.shape)
    x: Array
    if part.dtype in ("float32", "float16"):
        x = generator.normal(size=shape).astype(part.dtype)
    elif part.dtype == "bool":
        x = generator.integers(0, 2, shape).astype(bool)
    else:
        high = vocabulary or (256 if part.dtype == "uint8" else 2)
        # From 1: 0 is the token that masks, where one does.
        x = generator.integers(min(1, high - 1), high, shape).astype(part.dtype)
    if masked is not None and x.ndim >= 2:
        for row in range(len(x)):  # sequences of unlike length, none of them empty
            x[row, max(1, x.shape[1] - row % x.shape[1]) :] = masked
    return x


def _labels(head: Head, generator: np.random.Generator, count: int) -> Array:
    shape = (count, *head.y.shape)
    if head.loss == "sparse_categorical_crossentropy":
        return generator.integers(0, head.output.shape[-1], shape).astype(head.y.dtype)
    if head.loss in ("categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge"):
        chosen = generator.integers(0, shape[-1], shape[:-1])
        return np.eye(shape[-1], dtype=np.float32)[chosen]
    if head.loss in ("binary_crossentropy", "binary_focal_crossentropy", "hinge", "squared_hinge"):
        return generator.integers(0, 2, shape).astype(np.float32)
    if head.loss in ("poisson", "mean_squared_logarithmic_error"):
        return generator.integers(0, 5, shape).astype(np.float32)
    if head.loss == "kl_divergence":
        return generator.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    return generator.normal(size=shape).astype(np.float32)


def _on_device(made: Bundle, data: ArrayDataset, settings: FitSettings) -> Steps:
    """Train as a device does, also stopped after the first batch and resumed by another engine."""
    from fedgrass.engines.litert import LiteRTEngine

    engine = LiteRTEngine(made)
    outputs = engine.infer(data.x[: made.manifest.batch_size])
    evaluated = engine.evaluate(data)["loss"]
    unbroken = engine.fit(data, settings)
    states: list[FitState] = []

    def stop(_epoch: int, _step: int) -> None:
        raise StopTraining

    with contextlib.suppress(StopTraining):
        LiteRTEngine(made).fit(data, settings, hooks=Hooks(stop, stopped=states.append))
    resumed = LiteRTEngine(made).fit(data, settings, resume=states[0])
    for name, value in unbroken.parameters.items():
        if not np.array_equal(value, resumed.parameters[name]):
            raise UnsupportedModelError(
                name, "a training that does not go on as it was after a restart", "report this model"
            )
    first = states[0].loss_sum / made.manifest.batch_size
    return Steps(
        # An engine reports the mean of both steps; the second is what is left after the first.
        losses=[first, STEPS * unbroken.metrics["loss"] - first, evaluated],
        parameters=unbroken.parameters,
        outputs=[outputs, _of_application(made, data.x[:1])],
        moments=states[0].optimizer,
    )


def _of_application(made: Bundle, x: Array) -> Array:
    return Application(made.path(bundle.INFERENCE), made.manifest)(x)


def _differences(found: Steps, expected: Steps, start: Parameters) -> _Differences:
    largest = max((_largest(value - start[name]) for name, value in expected.parameters.items()), default=0.0)
    apart = {name: found.parameters[name] - value for name, value in expected.parameters.items()}
    for name, undecided in _undecided(expected).items():
        # There the step's sign, or its size, hangs on rounding: it is only held to the size that any step has.
        bounded = np.abs(found.parameters[name] - start[name]) <= _MOST_STEP * largest
        apart[name] = np.where(undecided & bounded, 0, apart[name])
    changes = {
        name: _largest(apart[name])
        # A parameter that hardly moved is measured by rounding of its value, or by a hundredth of the largest change.
        / max(_largest(value - start[name]) + _ROUNDING / CHANGE_TOLERANCE * _largest(value), 1e-2 * largest, 1e-12)
        for name, value in expected.parameters.items()
    }
    for name, share in _moments_apart(found, expected).items():
        changes[name] = max(changes[name], share)
    worst = max(changes, key=lambda name: changes[name])
    return _Differences(
        loss=max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(found.losses, expected.losses, strict=True)),
        parameters=max(_share(apart[name], value) for name, value in expected.parameters.items()),
        changes=changes[worst],
        output=max(_apart(a, b) for a, b in zip(found.outputs, expected.outputs, strict=True)),
        worst=worst,
    )


def _largest(values: Array) -> float:
    return float(np.nan_to_num(np.abs(values), nan=np.inf).max(initial=0.0))


def _undecided(expected: Steps) -> dict[str, Array]:
    """Return where gradients are so small that rounding tells the step of an optimizer which divides them by their size."""
    most = max(map(_largest, expected.smallest), default=0.0)
    names = list(expected.parameters)[: len(expected.smallest)]
    return {
        name: size < max(_LEAST_GRADIENT * _largest(size), _LEAST_OF_ALL * most)
        for name, size in zip(names, expected.smallest, strict=True)
    }


def _moments_apart(found: Steps, expected: Steps) -> dict[str, float]:
    """Return how far what the optimizer keeps of the first gradients is apart: a step that divides by their size hides that."""
    most = max(map(_largest, expected.moments), default=0.0)
    each = zip(list(expected.parameters)[: len(expected.moments)], found.moments, expected.moments, strict=False)
    return {name: _largest(a - b) / max(_largest(b), 1e-2 * most, 1e-30) for name, a, b in each}


def _apart(found: Array, expected: Array) -> float:
    """Return the largest difference as a share of the largest value, or of a thousandth where all are smaller."""
    return _share(found - expected, expected)


def _share(difference: Array, expected: Array) -> float:
    share = _largest(difference) / max(_largest(expected), 1e-3)
    # Infinity is not JSON, and the manifest holds this.
    return min(share, float(np.finfo(np.float32).max))


def _differs(device: Steps, expected: Steps, found: _Differences) -> UnsupportedModelError:
    figures = ", ".join(f"{a:.6g} for {b:.6g}" for a, b in zip(device.losses, expected.losses, strict=True))
    return UnsupportedModelError(
        found.worst,
        f"a training that would differ from the framework's (loss {figures}; parameters by {found.parameters:.1e}, output by "
        f"{found.output:.1e})",
        "freeze that layer, or use another in its place; --no-self-test exports it all the same",
    )


def _failed(made: Bundle, error: Exception) -> UnsupportedModelError:
    if isinstance(error, UnsupportedModelError):
        return error
    text = first_line(error)
    operator = re.search(r"\((\w+)\)|operator (\w+)|delegate (\w+) node", str(error))
    where = next((part for part in operator.groups() if part), "") if operator else ""
    return UnsupportedModelError(
        made.manifest.name,
        f"operator {where}, which fails in LiteRT ({text}),"
        if where
        else f"its graph, which fails in LiteRT ({text}),",
        "try the layers one by one, and freeze or replace the one that fails",
    )


def line(found: SelfTest) -> str:
    """Summarise in one line what was tried."""
    if found.loss is None or found.parameters is None or found.output is None:
        return f"self-test: {found.steps} steps trained, evaluated, stopped and resumed; nothing to compare with"
    return (
        f"self-test: {found.steps} steps trained, evaluated, stopped and resumed; largest differences from the "
        f"framework's: loss {found.loss:.1e}, parameters {found.parameters:.1e}, output {found.output:.1e}"
    )

"""Whether a new model may become the active one on this device.

In order: every file's digest; finite parameters; the application's model loads, takes the input it says it takes, and keeps
the limits on memory and time; the graph loads and has its signatures; on this device's validation examples the application's
model gives finite outputs, and the model is not worse than the active one by more than the tolerance. The first model, any
model on a device without data, and one that is older than the active one, are let in on soundness alone: rounds never bring
an older model, only a person or a nucleus that rolls back does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

from fedgrass.bundle import INFERENCE, Bundle, Manifest
from fedgrass.data import Split
from fedgrass.engines.base import Dataset, Engine, Measured, Metrics
from fedgrass.errors import AdmissionError, DataError, FedgrassError, NoFiguresError
from fedgrass.inference import Application
from fedgrass.protocol.metrics import Metric, is_share, slack, worse_by
from fedgrass.protocol.names import version_order
from fedgrass.protocol.sums import Sums
from fedgrass.tensors import Array

# Examples, or runs on zeros: enough for a median of latencies, and a fraction of a second for a model that a device
# can use.
_LOOKED_AT = 32


@dataclass(frozen=True)
class Verdict:
    """Why a model was let in, and what was measured."""

    reason: str
    metrics: Metrics


def judge(
    candidate: Bundle,
    active: Bundle | None,
    *,
    tolerance: float,
    load: Callable[[Manifest], Split],
    open_engine: Callable[[Bundle], Engine],
    max_latency_ms: float = 0.0,
    max_memory_mb: float = 0.0,
    metric: Metric | None = None,
) -> Verdict:
    """Examine a model.

    Parameters
    ----------
    candidate
        The new model.
    active
        The model to compare with; None for the first one, or if the active one is damaged.
    tolerance
        By how much the accuracy may be lower (0.05 = five points), beyond what chance explains (`chance`). Where a model
        has no accuracy, by what share its loss may be higher.
    metric
        The figure by which the models are compared, in place of the accuracy or the loss. Where either model has none, as
        where no example of a rare class is held back, they are compared as without it.
    max_latency_ms, max_memory_mb
        What one inference may take, and the application's model in memory; 0 is no limit.
    load
        Reads this device's examples; raises `DataError` if there are none.

    Raises
    ------
    FedgrassError
        If the model is refused: `BundleError` if it is damaged, `EngineError` if it does not run, `AdmissionError` if it is
        worse than the active one, or does not fit data that the active one fits.
    """
    # The cheapest checks come first: a corrupt download is named as such before any native code gets to parse it.
    candidate.verify()
    _require_finite(candidate)
    for_application = INFERENCE in candidate.manifest.files
    cost: Metrics = {}
    if for_application:
        cost = _require_affordable(candidate, max_latency_ms=max_latency_ms, max_memory_mb=max_memory_mb)
    # The training graph is opened on devices without data too: a model that cannot be trained must not become the
    # fleet's base.
    engine = open_engine(candidate)
    try:
        validation = load(candidate.manifest).validation
        if len(validation) == 0:
            raise DataError("no examples are held back for validation (validationFraction)")
        evaluated = engine.evaluate(validation)
    except (DataError, NoFiguresError) as error:
        return Verdict(_why_not_compared(error, active, load), cost)
    # From here on the device has validation examples, and every refusal carries figures for the cloud's report.
    metrics = {**evaluated, **cost}
    if for_application:
        require_inference_works(candidate, validation)
    if not np.isfinite(metrics["loss"]):
        raise AdmissionError(f"model {candidate.manifest.version}: its loss on this device's data is {metrics['loss']}")
    if active is None:
        return Verdict("sound; there is no active model to compare with", metrics)
    try:
        before: Metrics = open_engine(active).evaluate(load(active.manifest).validation)
    # A damaged active model must not keep a sound one out.
    except FedgrassError as error:
        return Verdict(f"sound; the active model {active.manifest.version} cannot be judged ({error})", metrics)
    # Both models' figures go to the cloud: without the active one's nobody can tell a bad model from odd data.
    metrics |= {f"active_{name}": before[name] for name in ("loss", "accuracy", metric) if name in before}
    # Compared with its successor, an older model would often be refused, and a roll-back by a person would be
    # impossible.
    if version_order(candidate.manifest.version) < version_order(active.manifest.version):
        return Verdict(
            f"sound; older than {active.manifest.version}, so brought back by decision, not compared", metrics
        )
    if metric in metrics and f"active_{metric}" in metrics:
        # An engine of the user's own may return a plain dict, without the counts that say how rare each class is.
        sums = evaluated.sums if isinstance(evaluated, Measured) else None
        _require_not_worse_by(metric, candidate.manifest.version, active.manifest.version, metrics, tolerance, sums)
    else:
        _require_not_worse(candidate.manifest.version, active.manifest.version, metrics, tolerance)
    return Verdict("", metrics)


def _require_finite(bundle: Bundle) -> None:
    for name, value in bundle.parameters().items():
        if not np.isfinite(value).all():
            raise AdmissionError(f"model {bundle.manifest.version}: parameter {name!r} is not finite")


def _require_not_worse(version: str, active: str, metrics: Metrics, tolerance: float) -> None:
    if "accuracy" in metrics and "active_accuracy" in metrics:
        examples = int(metrics["examples"])
        allowed = tolerance + chance(metrics["active_accuracy"], examples)
        if metrics["accuracy"] < metrics["active_accuracy"] - allowed:
            raise WorseError(
                f"model {version}: accuracy {metrics['accuracy']:.4f} on this device's {examples} examples, {active} has "
                f"{metrics['active_accuracy']:.4f}; it may be {allowed:.4f} lower (tolerance {tolerance}, the rest for chance)",
                metrics,
            )
    # Models without an accuracy, such as regressions: a loss has no scale of its own, so the tolerance is relative.
    elif metrics["loss"] > metrics["active_loss"] * (1 + tolerance):
        raise WorseError(
            f"model {version}: loss {metrics['loss']:.4g} on this device's data, {active} has {metrics['active_loss']:.4g} "
            f"and the tolerance is {tolerance:.0%}",
            metrics,
        )


def _require_not_worse_by(
    metric: str, version: str, active: str, metrics: Metrics, tolerance: float, sums: Sums | None
) -> None:
    found, before = metrics[metric], metrics[f"active_{metric}"]
    allowed = slack(metric, tolerance, before)
    if is_share(metric):
        allowed += chance(before, _told_by(metric, sums, int(metrics["examples"])))
    if worse_by(metric, found, before) > allowed:
        raise WorseError(
            f"model {version}: {metric} {found:.4g} on this device's {int(metrics['examples'])} examples, {active} has "
            f"{before:.4g}; it may be {allowed:.4g} worse (tolerance {tolerance}, the rest for chance)",
            metrics,
        )


def _told_by(metric: str, sums: Sums | None, examples: int) -> int:
    """Return how many examples a share rests on: of a rare class few, however many there are of the other.

    A mean over classes varies as one share of n examples does, where n is the classes' number times the harmonic mean of theirs.
    """
    # An accuracy counts each example once, so it varies as a share of all of them.
    if sums is None or metric == "accuracy" or not any(sums.true):
        return examples
    # An AUC compares pairs of a positive and a negative, so the rarer of the two decides how much it varies.
    each = [min(true, sums.rows - true) if metric == "auc" else true for true in sums.true]
    # Of two classes, precision, recall and F1 are the second's: the first one's count says nothing about them.
    if sums.kind == "classes" and len(each) == 2 and metric not in ("auc", "f1_macro"):
        each = each[1:]
    known = [count for count in each if count]
    return max(1, int(len(known) ** 2 / sum(1 / count for count in known))) if known else 1


def chance(accuracy: float, examples: int) -> float:
    """Return two standard errors of an accuracy: what a device with few examples cannot tell from a worse model.

    The accuracy is smoothed by one success and one failure (Agresti and Coull 1998), so that a perfect score on ten
    examples does not pass for certainty. 45 examples at 93 % give 8 points, 1,000 give 1.6.
    """
    smoothed = (accuracy * examples + 1) / (examples + 2)
    return 2 * math.sqrt(smoothed * (1 - smoothed) / (examples + 2))


class WorseError(AdmissionError):
    """The model is sound, but worse than the active one here."""

    def __init__(self, message: str, metrics: Metrics) -> None:
        super().__init__(message)
        self.metrics = metrics


def _why_not_compared(
    error: DataError | NoFiguresError, active: Bundle | None, load: Callable[[Manifest], Split]
) -> str:
    if isinstance(error, NoFiguresError):
        return f"sound; not compared ({error})"
    _require_unfit_for_active_too(error, active, load)
    return f"sound; not compared, as this device has no data to judge by ({error})"


def _require_unfit_for_active_too(error: DataError, active: Bundle | None, load: Callable[[Manifest], Split]) -> None:
    """Tell a device without data from a model that does not fit the data of a device that has some."""
    # Nothing shows that the data are usable at all: this may be a device whose data setting is wrong, and that is no
    # fault of the model.
    if active is None:
        return
    try:
        from fedgrass.engines.checks import check_dataset

        check_dataset(load(active.manifest).validation, active.manifest)
    except DataError:
        return
    raise AdmissionError(f"it does not fit this device's data, which the active model fits: {error}") from error


def _require_affordable(bundle: Bundle, *, max_latency_ms: float, max_memory_mb: float) -> Metrics:
    """Run the application's model on zeros; returns its median latency and what the process grew by."""
    import ai_edge_litert.interpreter  # noqa: F401 - the library's own memory is not the model's

    process = psutil.Process()
    # What the process grew by covers the file, the interpreter's arena and whatever a delegate allocates.
    before = process.memory_info().rss
    infer = _application_model(bundle)
    x = np.zeros((1, *bundle.manifest.x.shape), bundle.manifest.x.dtype)
    spent = []
    for _ in range(_LOOKED_AT):
        began = time.perf_counter()
        _infer(bundle, infer, x)
        # Of many the median: the first run allocates, and others may be disturbed.
        spent.append(time.perf_counter() - began)
    latency, memory = 1000 * statistics.median(spent), (process.memory_info().rss - before) / (1 << 20)
    for name, found, most, unit in (
        ("latency", latency, max_latency_ms, "ms, maxLatencyMs"),
        ("memory", memory, max_memory_mb, "MB, maxMemoryMb"),
    ):
        # A limit of 0 means none.
        if 0 < most < found:
            raise AdmissionError(f"model {bundle.manifest.version}: {name} is {found:.3g} {unit} is {most:g}")
    return {"latency_ms": round(latency, 4), "memory_mb": round(max(memory, 0.0), 2)}


def require_inference_works(bundle: Bundle, validation: Dataset) -> None:
    """Run the application's model on a few examples."""
    infer = _application_model(bundle)
    # Real examples, because zeros do not reach the overflows that real inputs cause.
    x = next(iter(validation.batches(_LOOKED_AT))).x.astype(bundle.manifest.x.dtype)
    for example in x:
        _infer(bundle, infer, example[np.newaxis])


def _application_model(bundle: Bundle) -> Application:
    name = str(bundle.path(INFERENCE))
    try:
        return Application(bundle.path(INFERENCE), bundle.manifest)
    except (ValueError, RuntimeError, KeyError) as error:
        raise AdmissionError(f"{name}: does not load ({error})") from error


def _infer(bundle: Bundle, infer: Application, x: Array) -> None:
    name, expected = bundle.path(INFERENCE), bundle.manifest.output.shape
    try:
        output = infer(x)
    except (ValueError, RuntimeError, KeyError) as error:
        raise AdmissionError(f"{name}: does not run ({error})") from error
    if output.shape[1:] != expected:
        raise AdmissionError(f"{name}: gives {list(output.shape[1:])}, the manifest says {list(expected)}")
    if not np.isfinite(output).all():
        raise AdmissionError(f"{name}: gives outputs that are not finite")

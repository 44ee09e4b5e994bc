"""Which model the application of a device is to load: the fleet's, or one that the device has for itself.

The fleet's was admitted by then. Each other is judged on the same kept-back examples and by the same figure, and
equals by their loss. One that does not run, or gives what is not finite, is passed over: it costs the application nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedgrass.bundle import INFERENCE, Bundle, Manifest
from fedgrass.data import Split
from fedgrass.edge.admission import require_inference_works
from fedgrass.edge.device_models import FLEET
from fedgrass.engines.base import Engine, Metrics
from fedgrass.errors import FedgrassError
from fedgrass.protocol.gain import best_of
from fedgrass.protocol.metrics import Metric


@dataclass(frozen=True)
class Choice:
    """Which model, in words, and the figure of each: ``tuned_accuracy`` and the like; of one's own its threshold, if any."""

    kind: str = FLEET
    reason: str = ""
    metrics: Mapping[str, float] | None = None
    error_threshold: float | None = None


def choose(
    fleet: Metrics,
    own: Mapping[str, Bundle],
    *,
    load: Callable[[Manifest], Split],
    open_engine: Callable[[Bundle], Engine],
    metric: Metric | None = None,
) -> Choice:
    """Choose.

    Parameters
    ----------
    fleet
        Figures of the fleet's model on this device's kept-back examples; without any it is taken.
    own
        The device's own, as the application would load them, by kind.
    load
        Reads this device's examples.
    open_engine
        Opens a model.
    metric
        The figure to go by, in place of the accuracy or the loss.
    """
    figure = next((name for name in (metric, "accuracy", "loss") if name and name in fleet), None)
    if figure is None or not own:
        return Choice()
    judged, thresholds = {FLEET: fleet}, {}
    for kind, bundle in own.items():
        found = _judged(bundle, load, open_engine)
        if figure in found and math.isfinite(found[figure]):
            judged[kind], thresholds[kind] = found, found.get("error_threshold")
    values = {kind: found[figure] for kind, found in judged.items()}
    best = best_of(values, figure, {kind: found["loss"] for kind, found in judged.items() if "loss" in found})
    # Beside the figure that decides: by the loss equals are told apart, and the fleet's summary goes by the accuracy.
    metrics = {
        f"{kind}_{name}": found[name]
        for kind, found in judged.items()
        for name in dict.fromkeys((figure, "accuracy", "loss"))
        if kind != FLEET and name in found
    }
    if best == FLEET:
        return Choice(metrics=metrics)
    reason = f"the application loads this device's own ({best}): {figure} {values[best]:.4g}, the fleet's has {values[FLEET]:.4g}"
    return Choice(best, reason, metrics, thresholds[best])


def _judged(bundle: Bundle, load: Callable[[Manifest], Split], open_engine: Callable[[Bundle], Engine]) -> Metrics:
    try:
        validation = load(bundle.manifest).validation
        if INFERENCE in bundle.manifest.files:
            require_inference_works(bundle, validation)
        return open_engine(bundle).evaluate(validation)
    except FedgrassError:
        return {}

"""What the fleet's result is measured against: each device alone, and all data in one place."""

from __future__ import annotations

from dataclasses import dataclass

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from local.demo.data import DemoData


@dataclass(frozen=True)
class Baselines:
    """Accuracies on the kept examples after as many epochs as the fleet trained."""

    alone: dict[str, float]
    centralised: float

    @property
    def best_alone(self) -> float:
        """The best single device."""
        return max(self.alone.values())


def measure(bundle: Bundle, data: DemoData, settings: FitSettings) -> Baselines:
    """Train the same model with the same engine on each device's data alone, and on all of them together."""

    def accuracy(examples: ArrayDataset) -> float:
        engine = LiteRTEngine(bundle)
        engine.set_parameters(bundle.parameters())
        fitted = engine.fit(examples, settings)
        engine.set_parameters(fitted.parameters)
        return engine.evaluate(data.kept)["accuracy"]

    alone = {thing: accuracy(examples) for thing, examples in data.devices.items()}
    return Baselines(alone, accuracy(data.pooled))

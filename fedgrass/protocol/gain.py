"""What models of their own bring the devices, by what each says of its kept-back examples.

Each figure is the device's word, so none decides anything. The better one is chosen on the examples that it is judged on: of
few examples the gain is a little too large.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.protocol.metrics import falls, impossible

_MODELS = {"fleet": "base", "tuned": "validation", "ditto": "personal"}
"""What the figures of each model begin with in an update's metrics."""
ADMITTED = {
    f"{told}{figure}": f"{_MODELS[model]}_{figure}"
    for model, told in {"fleet": "", "tuned": "tuned_", "ditto": "ditto_"}.items()
    for figure in ("accuracy", "loss")
}
"""How a device names the same figures where it tells which model its application loads, and how an update does."""
_TENTH = 10


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class ByDevice(_Part):
    """A figure over devices: the median, and the mean of the tenth of the devices with the worst."""

    median: float
    worst_tenth: float

    @classmethod
    def of(cls, values: Sequence[float], *, falling: bool) -> ByDevice:
        """Summarise one value of each device.

        Parameters
        ----------
        values
            At least one.
        falling
            Whether less is better.

        Examples
        --------
        >>> ByDevice.of([0.5, 0.9, 0.7], falling=False)
        ByDevice(median=0.7, worst_tenth=0.5)
        """
        worst = sorted(values, reverse=falling)[: math.ceil(len(values) / _TENTH)]
        return cls(median=statistics.median(values), worst_tenth=sum(worst) / len(worst))


class Gain(_Part):
    """Of a round in which devices had models of their own; ``figure`` is accuracy, or loss where there is none."""

    figure: str
    devices: int = Field(description="Devices that told the figures of the fleet's model and of one of their own")
    better: dict[str, int] = Field(
        description="On how many devices each model is the best; of equals that with the lower loss"
    )
    models: dict[str, ByDevice] = Field(description="fleet: the round's base; tuned, ditto: the devices' own")
    best: ByDevice = Field(description="Of whichever is best on each device")
    gain: ByDevice = Field(description="By how much that is better than the fleet's model there")

    @property
    def said(self) -> str:
        """In words, for a line."""
        own = sum(count for name, count in self.better.items() if name != "fleet")
        fleet, best, gain = self.models["fleet"], self.best, self.gain
        return (
            f"better on {own} of {self.devices} devices; {self.figure} by device: median {fleet.median:.4g} → {best.median:.4g}, "
            f"worst tenth {fleet.worst_tenth:.4g} → {best.worst_tenth:.4g}; gain: median {gain.median:.4g}, "
            f"least tenth {gain.worst_tenth:.4g}"
        )

    @classmethod
    def of(cls, told: Iterable[Mapping[str, float]]) -> Gain | None:
        """Make it of updates' metrics; None if no device told both.

        Examples
        --------
        >>> found = Gain.of([
        ...     {"base_accuracy": 0.5, "personal_accuracy": 1.0},
        ...     {"base_accuracy": 0.75, "personal_accuracy": 0.5},
        ... ])
        >>> found.better, found.gain.median
        ({'ditto': 1, 'fleet': 1}, 0.25)
        """
        metrics = list(told)
        figure = "accuracy" if any("base_accuracy" in one for one in metrics) else "loss"
        told_both = [(found, one) for one in metrics if (found := by_model(one, figure))]
        devices = [found for found, _ in told_both]
        if not devices:
            return None
        falling = falls(figure)
        best = [best_of(found, figure, by_model(one, "loss")) for found, one in told_both]
        used = [one[name] for one, name in zip(devices, best, strict=True)]
        gains = [abs(value - one["fleet"]) for value, one in zip(used, devices, strict=True)]
        names = [name for name in _MODELS if any(name in one for one in devices)]
        return cls(
            figure=figure,
            devices=len(devices),
            better={name: best.count(name) for name in sorted(set(best))},
            models={
                name: ByDevice.of([one[name] for one in devices if name in one], falling=falling) for name in names
            },
            best=ByDevice.of(used, falling=falling),
            gain=ByDevice.of(gains, falling=False),
        )

    @classmethod
    def of_admissions(cls, told: Iterable[Mapping[str, float]]) -> Gain | None:
        """Make it of what devices told of the model that they run, at its admission or since; None if no device told both.

        Parameters
        ----------
        told
            The metrics of each device's last notice of a model.

        Examples
        --------
        >>> found = Gain.of_admissions([{"accuracy": 0.5, "tuned_accuracy": 0.75, "tuned_loss": 0.5}, {"accuracy": 1.0}])
        >>> found.devices, found.better, found.gain.median
        (1, {'tuned': 1}, 0.25)
        """
        return cls.of({ADMITTED[name]: one[name] for name in ADMITTED if name in one} for one in told)


def by_model(metrics: Mapping[str, float], figure: str) -> dict[str, float]:
    """Return one device's figure of each model; nothing unless it told the fleet's and one of its own, all possible.

    Examples
    --------
    >>> by_model({"base_loss": 2.0, "validation_loss": 1.0}, "loss")
    {'fleet': 2.0, 'tuned': 1.0}
    >>> by_model({"base_accuracy": 2.0, "validation_accuracy": 1.0}, "accuracy")
    {}
    """
    names = {model: f"{prefix}_{figure}" for model, prefix in _MODELS.items()}
    found = {model: metrics[name] for model, name in names.items() if name in metrics}
    possible = not any(impossible({figure: value}) for value in found.values())
    return found if possible and "fleet" in found and len(found) > 1 else {}


def best_of(values: Mapping[str, float], figure: str, losses: Mapping[str, float]) -> str:
    """Return the name of the best of some values.

    Parameters
    ----------
    values
        The figure of each, in the order in which they are preferred where all else is equal.
    figure
        The figure's name.
    losses
        The loss of each, by which equals are told apart: few kept-back examples make the same accuracy of unlike models. Not
        looked at unless each has one.

    Examples
    --------
    >>> best_of({"fleet": 0.9, "tuned": 0.9, "ditto": 0.8}, "accuracy", {})
    'fleet'
    >>> best_of({"fleet": 0.9, "tuned": 0.9}, "accuracy", {"fleet": 0.4, "tuned": 0.3})
    'tuned'
    """
    told_apart = all(math.isfinite(losses.get(name, math.nan)) for name in values)

    def rank(name: str) -> tuple[float, float]:
        return values[name] if falls(figure) else -values[name], losses[name] if told_apart else 0.0

    return min(values, key=rank)

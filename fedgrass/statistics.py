"""Which of a model's parameters are statistics: measured in the forward pass, not trained by a gradient.

The moving mean and variance of a batch normalization travel with the parameters, because a model is of no use without them, but
they mean something else: they are averaged over devices, and no server optimizer may step along their difference. A variance
that such a step takes below zero makes every output NaN. The exporter writes them into the manifest; it alone knows the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedgrass.bundle import Manifest, Statistic, TensorDescription

_PAIRS = (("/", "moving_mean", "moving_variance"), (".", "running_mean", "running_var"))
"""How Keras and PyTorch call a batch normalization's two statistics, and what comes before."""


def statistics_of(manifest: Manifest) -> Mapping[str, Statistic]:
    """Return the statistics among a model's parameters, by name.

    A bundle of before the manifest said so is looked at: `inferred_statistics`.
    """
    return inferred_statistics(manifest.parameters) if manifest.statistics is None else manifest.statistics


def inferred_statistics(parameters: Sequence[TensorDescription]) -> dict[str, Statistic]:
    """Return what can only be a batch normalization's statistics: a mean and a variance of one layer, alike in shape.

    A name alone proves nothing; a lone ``moving_variance`` is left a parameter. What is taken for a statistic by mistake is
    averaged, which every parameter survives.
    """
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    found: dict[str, Statistic] = {}
    for separator, mean, variance in _PAIRS:
        for name, shape in shapes.items():
            layer, _, last = name.rpartition(separator)
            # A model that is one layer has no layer's name before the statistic's.
            other = f"{layer}{separator}{variance}" if layer else variance
            if last == mean and shapes.get(other) == shape:
                found |= {name: "mean", other: "variance"}
    return found

"""How little a participant will train on, whatever a round or a command asks: one example's update reveals that example.

Phong et al., IEEE Transactions on Information Forensics and Security 2018: where a dense layer with a bias comes first, one
example's gradient is the example, times a number that is in the gradient too. `python -m benchmarks.inversion` does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedgrass.bundle import Manifest
from fedgrass.engines.base import Dataset
from fedgrass.engines.weights import weighted
from fedgrass.errors import PrivacyLimitError
from fedgrass.protocol.messages import FitTask


@dataclass(frozen=True)
class Floors:
    """The least of each.

    Attributes
    ----------
    examples
        In each pass over the data, those that ``class_weight`` leaves next to nothing not counted.
    steps
        Of the optimizer: epochs times batches.
    """

    examples: int = 8
    steps: int = 1

    def require(self, data: Dataset, fit: FitTask, manifest: Manifest) -> None:
        """Judge a training before it begins.

        Parameters
        ----------
        data
            All that the participant would train on.
        fit
            What is asked.
        manifest
            Of the model: its batch, and its classes.

        Raises
        ------
        PrivacyLimitError
            If it would be less than a floor.
        """
        used = len(data) if fit.max_examples is None else min(fit.max_examples, len(data))
        # With a weight of nearly 0 for all classes but one, an operator could single out a few examples.
        counting = used if not isinstance(fit.class_weight, Mapping) else math.floor(used * _share(data, fit, manifest))
        asked = f"fit.max_examples {fit.max_examples}, " if fit.max_examples is not None else ""
        if counting < self.examples:
            raise PrivacyLimitError(
                f"training would be on {counting} examples ({asked}{len(data)} on this device), minExamples is "
                f"{self.examples}: one example's update gives the example away"
            )
        steps = fit.epochs * math.ceil(used / manifest.batch_size)
        if steps < self.steps:
            raise PrivacyLimitError(
                f"training would be {steps} steps (fit.epochs {fit.epochs}, {asked}batches of {manifest.batch_size}), minSteps "
                f"is {self.steps}"
            )


def _share(data: Dataset, fit: FitTask, manifest: Manifest) -> float:
    """Return the share of the examples that counts: (Σw)² / n·Σw² of their weights (Kish, Survey Sampling, 1965)."""
    total, squares, count = 0.0, 0.0, 0
    for batch in weighted(data, fit.class_weight, manifest).batches(manifest.batch_size):
        if batch.weights is not None:
            total += float(batch.weights.sum(dtype="f8"))
            squares += float((batch.weights.astype("f8") ** 2).sum())
        count += len(batch.x)
    return total * total / (count * squares) if squares > 0 else 0.0

"""A Flower ``NumPyClient`` as one finds them: logistic regression, with frauds made up beside the few that there are (SMOTE).

Flower itself need not be installed. ``config`` is the round's: its number, and what the fleet's ``fit.config`` holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from examples.fraud.model import logistic
from fedgrass.engines.base import Dataset
from fedgrass.tensors import Array

_NEIGHBOURS = 5


def oversampled(x: Array, y: Array, share: float, seed: int) -> tuple[Array, Array]:
    """Add examples of class 1 until they are ``share`` of all: each on the line from one of them to one of its nearest.

    Chawla et al., SMOTE, https://doi.org/10.1613/jair.953.
    """
    rare = x[y == 1]
    missing = int((share * (y == 0).sum()) / (1 - share)) - len(rare)
    if len(rare) < 2 or missing <= 0:
        return x, y
    rng = np.random.default_rng(seed)
    distances = ((rare[:, np.newaxis] - rare) ** 2).sum(axis=2)
    nearest = distances.argsort(axis=1)[:, 1 : _NEIGHBOURS + 1]  # the nearest of all is itself
    one = rng.integers(len(rare), size=missing)
    other = nearest[one, rng.integers(nearest.shape[1], size=missing)]
    made = rare[one] + rng.random((missing, 1)) * (rare[other] - rare[one])
    return np.concatenate([x, made.astype(x.dtype)]), np.concatenate([y, np.ones(missing, y.dtype)])


class Client:
    """Has a bank's payments; ``get_parameters``, ``fit`` and ``evaluate`` are those of ``flwr.client.NumPyClient``."""

    def __init__(self, data: Dataset) -> None:
        batches = list(data.batches(1024))
        self.x = np.concatenate([batch.x for batch in batches])
        self.y = np.concatenate([batch.y for batch in batches])
        self.model = logistic()
        self.model.classes_ = np.array([0, 1])
        self.set_parameters([np.zeros((1, self.x.shape[1]), np.float32), np.zeros(1, np.float32)])

    def get_parameters(self, config: dict[str, Any]) -> list[Array]:  # noqa: ARG002 - Flower's signature
        """Return coefficients [1, columns] and intercept [1]."""
        return [self.model.coef_, self.model.intercept_]

    def set_parameters(self, parameters: list[Array]) -> None:
        """Take the fleet's."""
        self.model.coef_, self.model.intercept_ = (np.array(value, np.float64) for value in parameters)

    def fit(self, parameters: list[Array], config: dict[str, Any]) -> tuple[list[Array], int, dict[str, Any]]:
        """Go on from the fleet's parameters, on this bank's payments and the made-up frauds."""
        self.set_parameters(parameters)
        number, share = int(config["server_round"]), float(config.get("smote", 0.3))
        x, y = oversampled(self.x, self.y, share, seed=number)
        self.model.set_params(warm_start=True, max_iter=int(config.get("max_iter", 50)))
        self.model.fit(x, y)
        loss = float(log_loss(self.y, self.model.predict_proba(self.x), labels=[0, 1]))
        told = {"loss": loss, "round": number, "made_up": len(y) - len(self.y)}
        # The weight is that of the bank's own payments.
        return self.get_parameters(config), len(self.y), told

    def evaluate(
        self,
        parameters: list[Array],
        config: dict[str, Any],  # noqa: ARG002 - Flower's signature
    ) -> tuple[float, int, dict[str, Any]]:
        """Return loss, count, and accuracy, precision, recall and F1 of frauds."""
        self.set_parameters(parameters)
        guessed = self.model.predict(self.x)
        loss = log_loss(self.y, self.model.predict_proba(self.x), labels=[0, 1])
        figures = {
            "accuracy": float((guessed == self.y).mean()),
            "precision": float(precision_score(self.y, guessed, zero_division=0)),
            "recall": float(recall_score(self.y, guessed, zero_division=0)),
            "f1": float(f1_score(self.y, guessed, zero_division=0)),
        }
        return float(loss), len(self.y), figures

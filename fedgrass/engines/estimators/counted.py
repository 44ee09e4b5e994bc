"""Estimators that are made of sums over examples: their sums are added up over the fleet, exactly.

A weighted mean by examples of what each device has for each of its examples is the sum over all examples, for each of them.
So what travels are shares and sums divided by the device's number of examples. Sums are of distances from an ``origin`` that
all devices take from the base: a variance as the difference of two large numbers would be lost in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedgrass.bundle import Statistic
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.estimators.base import Learner, Task, refusal, refuse_terms, rounded
from fedgrass.engines.loop import check_state
from fedgrass.errors import EngineError
from fedgrass.tensors import Array

_PRECISE = 1e-3
"""A variance that is less than so many squares of the mean that it is counted with is counted again, about that mean."""
_CONSTANT = 1e-6
"""A spread below so many means is float32's rounding of a column that is constant."""
# Stands for a variance of 0 where a logarithm or a quotient of it is taken.
_TINY = 1e-300


class Counted(Learner):
    """``found`` holds what travels, ``_sums`` what this round has counted so far, ``_count`` of so many examples."""

    def __init__(self, model: Any, task: Task, groups: tuple[int, ...], names: Sequence[str]) -> None:
        super().__init__(model, task)
        # `groups` is the number of classes or clusters, or nothing where there is one set of sums.
        wide = (*groups, task.features)
        shapes = {"shares": groups or (1,), "sums": wide, "squares": wide, "origin": wide}
        self.found = {name: np.zeros(shapes[name]) for name in names}
        self._sums: dict[str, Array] = {}
        self._count = 0.0

    @property
    def statistics(self) -> dict[str, Statistic]:
        """All of them."""
        return dict.fromkeys(self.found, "mean")

    def arrays(self) -> dict[str, Array]:
        """Return shares, sums and their origin."""
        return self.found

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take sums over, and make the estimator's attributes of them."""
        self.found = {name: np.array(arrays[name], np.float64) for name in self.found}
        self._apply()

    def begin(self, settings: FitSettings) -> None:
        """Count from zero, about what the base says the means are."""
        # Counting has no gradient that could be clipped or pulled.
        refuse_terms(settings, self.kind, "leave it out")
        # Rounded to float32, as the cloud and the other devices will have it: else the sums would be about another
        # point.
        self.found = self.found | {"origin": rounded(self.means())}
        self._sums = {name: np.zeros_like(value) for name, value in self.found.items() if name != "origin"}
        self._count = 0.0

    def means(self) -> Array:
        """Return the means that the sums say; where nothing was counted, the origin."""
        shares = self.found["shares"].reshape(-1, *[1] * (self.found["sums"].ndim - 1))
        # A class or cluster that nobody has an example of stays at the origin.
        apart = np.divide(self.found["sums"], shares, out=np.zeros_like(self.found["sums"]), where=shares > 0)
        return np.asarray(self.found["origin"] + apart)

    def state(self) -> list[Array]:
        """Return what this round has counted."""
        return [np.array(self._count), *(value.copy() for value in self._sums.values()), self.found["origin"].copy()]

    def restore(self, state: Sequence[Array]) -> None:
        """Go on counting."""
        check_state(state, [value.shape for value in self.state()])
        self._count = float(state[0])
        self._sums = dict(zip(self._sums, (np.array(value) for value in state[1:-1]), strict=True))
        self.found = self.found | {"origin": np.array(state[-1])}

    def _told(self) -> None:
        # Divided by this device's examples: the aggregation weights by them, which gives the sums over the fleet
        # again.
        self.found = self.found | {name: value / self._count for name, value in self._sums.items()}
        self._apply()

    def _apply(self) -> None:
        raise NotImplementedError


class Bayes(Counted):
    """GaussianNB: of each class its share, and sums and squares of each feature."""

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(model, task, (task.classes,), ("shares", "sums", "squares", "origin"))
        self._apply()

    def begin(self, settings: FitSettings) -> None:
        """Count from zero."""
        if settings.class_weight:
            raise refusal("GaussianNB counts its classes; set fit.class_weight to null, and priors in the builder")
        super().begin(settings)

    def step(self, batch: Batch) -> None:
        """Count some examples."""
        _refuse_weights(batch)
        for label in np.unique(batch.y):
            apart = batch.x[batch.y == label] - self.found["origin"][label]
            self._sums["shares"][label] += len(apart)
            self._sums["sums"][label] += apart.sum(axis=0)
            self._sums["squares"][label] += (apart**2).sum(axis=0)
        self._count += len(batch.x)
        self._told()

    def outputs(self, x: Array) -> Array:
        """Return probabilities."""
        with np.errstate(divide="ignore"):  # the logarithm of a class's share that is 0
            return np.asarray(self.model.predict_proba(x))

    def _apply(self) -> None:
        """Set the fitted attributes as ``fit`` does on all examples in one place."""
        # Noise or a strategy's step may leave a share below zero.
        model, shares = self.model, np.maximum(self.found["shares"], 0)
        model.classes_, model.n_features_in_ = np.arange(self.task.classes), self.task.features
        counted = shares[:, np.newaxis] > 0
        first, second = (
            np.divide(self.found[name], shares[:, np.newaxis], out=np.zeros_like(self.found[name]), where=counted)
            for name in ("sums", "squares")
        )
        model.theta_ = self.found["origin"] + first
        # Var(x) = E[(x - o)²] - E[x - o]², which does not depend on the origin o.
        within = np.maximum(second - first**2, 0)
        # The law of total variance: within the classes plus between their means, as scikit-learn takes it of all
        # data.
        between = (shares[:, np.newaxis] * (model.theta_ - shares @ model.theta_) ** 2).sum(axis=0)
        model.epsilon_ = model.var_smoothing * float((shares @ within + between).max())
        model.var_ = np.maximum(within + model.epsilon_, _TINY) if counted.any() else np.ones_like(within)
        model.class_count_ = shares
        # A fleet's first model has counted nothing and must still be able to predict.
        alike = np.full(len(shares), 1 / len(shares))
        model.class_prior_ = shares / shares.sum() if counted.any() else alike
        if model.priors is not None:
            model.class_prior_ = np.asarray(model.priors, np.float64)


class Clusters(Counted):
    """MiniBatchKMeans: of each cluster its share, and the sum of its members. Each centre's mean is weighted by its members.

    A step is that of Sculley, "Web-scale k-means clustering", WWW 2010, as ``partial_fit`` takes it, from the base's centres; no
    centre is reassigned, because clusters of the same number must be the same everywhere.
    """

    reconstructs = True

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(model, task, (model.n_clusters,), ("shares", "sums", "origin"))
        self._apply()

    def place(self, sample: Array | None) -> None:
        """Set the first centres: the builder's ``init``, or k-means++ on a sample.

        Raises
        ------
        EngineError
            If there is neither.
        """
        if sample is not None:
            from sklearn.base import clone

            first = clone(self.model).fit(sample).cluster_centers_
        elif isinstance(self.model.init, str) or callable(self.model.init):
            raise EngineError(
                f"MiniBatchKMeans has init={self.model.init!r}; give initial_parameters a sample of x, or build it "
                "with an array of centres, so that all devices begin at the same ones"
            )
        else:
            first = np.asarray(self.model.init, np.float64)
        if first.shape != self.found["origin"].shape:
            raise EngineError(
                f"MiniBatchKMeans: its first centres are {list(first.shape)}, expected {list(self.found['origin'].shape)}"
            )
        self.load(self.found | {"origin": first})

    def step(self, batch: Batch) -> None:
        """Move each centre to the mean of all that it was given so far."""
        _refuse_weights(batch)
        # Both change in place, so each batch sees the centres that the batches before it have moved.
        counts, sums = self._sums["shares"], self._sums["sums"]
        chosen = _nearest(batch.x, self.model.cluster_centers_)
        for label in np.unique(chosen):
            apart = batch.x[chosen == label] - self.found["origin"][label]
            counts[label] += len(apart)
            sums[label] += apart.sum(axis=0)
        self._count += len(batch.x)
        self._told()

    def outputs(self, x: Array) -> Array:
        """Return the nearest centre [n, features]."""
        centres = np.asarray(self.model.cluster_centers_)
        return np.asarray(centres[_nearest(x, centres)])

    def _apply(self) -> None:
        self.model.cluster_centers_ = np.ascontiguousarray(self.means())
        self.model.n_features_in_ = self.task.features
        self.model._n_threads = 1  # what predict() reads, and fit() alone would set


def _nearest(x: Array, centres: Array) -> Array:
    # ‖x − c‖² less ‖x‖², which is the same for all centres.
    return np.asarray(((centres**2).sum(axis=1) - 2 * x @ centres.T).argmin(axis=1))


class Scaling(Counted):
    """StandardScaler: mean and variance of each feature."""

    reconstructs = True

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(model, task, (), ("shares", "sums", "squares", "origin"))
        if hasattr(model, "n_features_in_"):  # the builder knows the figures already
            zeros = np.zeros(task.features)
            mean = zeros if model.mean_ is None else model.mean_
            variance = zeros + 1 if model.var_ is None else model.var_
            self.found = {"shares": np.ones(1), "sums": zeros, "squares": variance, "origin": mean}
        self._apply()

    @property
    def measured(self) -> bool:
        """Whether the figures are known, and to float32's precision: else another round has to count."""
        counted = bool(self.found["shares"][0] > 0)
        variance = self.found["squares"] - self.found["sums"] ** 2
        # Both figures travelled as float32: a small difference of two large ones has lost its digits.
        precise = bool((variance >= _PRECISE * self.found["sums"] ** 2).all())
        # With an origin other than 0 the second counting is over, and there is nothing more to gain.
        return counted and (precise or bool(self.found["origin"].any()))

    def step(self, batch: Batch) -> None:
        """Count some examples."""
        apart = batch.x - self.found["origin"]
        self._sums["shares"] += len(batch.x)
        self._sums["sums"] += apart.sum(axis=0)
        self._sums["squares"] += (apart**2).sum(axis=0)
        self._count += len(batch.x)
        self._told()

    def transform(self, x: Array) -> Array:
        """Scale."""
        return np.asarray(self.model.transform(x))

    def outputs(self, x: Array) -> Array:
        """Return the mean for each example [n, features]: the loss is the variance."""
        return np.asarray(np.broadcast_to(self.means(), x.shape))

    def _apply(self) -> None:
        mean = self.means()
        variance = np.maximum(self.found["squares"] - self.found["sums"] ** 2, 0)
        if not self.found["shares"][0] > 0:
            variance = np.ones_like(mean)
        scale = np.sqrt(variance)
        self.model.mean_ = mean if self.model.with_mean else None
        self.model.var_ = variance if self.model.with_std else None
        # scikit-learn divides a constant column by 1, not by its rounding.
        self.model.scale_ = np.where(scale <= _CONSTANT * np.abs(mean), 1.0, scale) if self.model.with_std else None
        # Any number will do: `transform` only wants to see that it was fitted.
        self.model.n_features_in_, self.model.n_samples_seen_ = self.task.features, 1


def _refuse_weights(batch: Batch) -> None:
    if batch.weights is not None:
        raise refusal("this estimator counts its examples, each once; take sample_weight out of the data")

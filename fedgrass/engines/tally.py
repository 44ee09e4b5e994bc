"""Counting what a model's figures are made of, from its outputs, whatever the engine.

Outputs of classifiers are probabilities here. Rows are examples; where each time step or pixel has a label of its own, those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedgrass.bundle import Head, Manifest
from fedgrass.engines.metrics import BINARY, CLASSIFIERS, correct, losses
from fedgrass.engines.several import given, labels
from fedgrass.protocol.sums import (
    ERROR_BINS,
    ERROR_STEP,
    MOST_CLASSES,
    MOST_OUTPUTS,
    SCORE_REACH,
    Histogram,
    Output,
    Sums,
    label_bins,
)
from fedgrass.tensors import Array

MOST_SCORES = 1 << 22
"""Scores that are kept for the exact area under the ROC curve; of more it is that of the histogram."""

_MOST_LABELS = 1024
"""Labels of which the area is computed: each one's scores are sorted."""

# Outputs that are gathered before they are counted: NumPy's cost for each call outweighs the work on one small batch.
_VALUES_AT_ONCE = 1 << 18


class Tally:
    """Figures of one evaluation, filled batch by batch.

    Memory is bounded: by `MOST_SCORES`, and by the number of classes.
    """

    def __init__(self, manifest: Manifest) -> None:
        several = manifest.outputs
        self._counts = _Heads(several) if several else _counts_of(manifest.heads[0], manifest.anomaly_quantile)
        self._waiting: list[tuple[Array, Array, Array | None]] = []
        self._values = 0

    def add(self, output: Array, y: Array, anomaly: Array | None = None) -> None:
        """Count a batch: ``output`` [n, …] and ``y`` [n, …] as the loss takes them; ``anomaly`` [n] says which are ones.

        Parameters
        ----------
        output
            What the model gives, [n, …].
        y
            The labels, [n, …].
        anomaly
            bool [n]; None where no example is marked.
        """
        self._waiting.append((output, y, anomaly))
        self._values += output.size
        if self._values >= _VALUES_AT_ONCE:
            self._fold()

    def figures(self) -> tuple[dict[str, float], Sums | None]:
        """Return the figures, and the sums that a fleet adds up; nothing of a model whose outputs say no more than its loss."""
        self._fold()
        return self._counts.figures(), self._counts.sums()

    def _fold(self) -> None:
        if not self._waiting:
            return
        outputs, ys, anomalies = zip(*self._waiting, strict=True)
        # Data without anomalies marked are all normal.
        known = [np.zeros(len(y), bool) if a is None else np.asarray(a) > 0 for y, a in zip(ys, anomalies, strict=True)]
        self._counts.add(np.concatenate(outputs), np.concatenate(ys), np.concatenate(known))
        self._waiting, self._values = [], 0


class _Classes:
    """Rows that have one class each."""

    def __init__(self, classes: int, sparse: bool) -> None:
        self._classes, self._sparse = classes, sparse
        self._rows = 0
        self._right, self._given, self._true = (np.zeros(classes, np.int64) for _ in range(3))
        # Of two classes the second's scores say all; the first's are their complement.
        self._scores = _Scores(1 if classes == 2 else classes)

    def add(self, output: Array, y: Array, _: Array) -> None:
        output = output.reshape(-1, self._classes)
        true = np.asarray(y).reshape(-1) if self._sparse else np.asarray(y).reshape(-1, self._classes).argmax(axis=1)
        given = output.argmax(axis=1)
        self._rows += len(true)
        self._true += np.bincount(true, minlength=self._classes)
        self._given += np.bincount(given, minlength=self._classes)
        self._right += np.bincount(true[true == given], minlength=self._classes)
        if self._classes == 2:
            self._scores.add(output[:, 1:], true[:, np.newaxis] == 1)
        else:
            self._scores.add(output, true[:, np.newaxis] == np.arange(self._classes))

    def sums(self) -> Sums | None:
        return _sums_of("classes", self._rows, (self._right, self._given, self._true), self._scores)

    def figures(self) -> dict[str, float]:
        return _figures_of("classes", self._rows, (self._right, self._given, self._true), self._scores)


class _Labels:
    """Rows that have any of some labels."""

    def __init__(self, labels: int) -> None:
        self._labels = labels
        self._rows = 0
        self._right, self._given, self._true = (np.zeros(labels, np.int64) for _ in range(3))
        self._scores = _Scores(labels)

    def add(self, output: Array, y: Array, _: Array) -> None:
        output = output.reshape(-1, self._labels)
        true, given = np.asarray(y).reshape(output.shape) > 0.5, output > 0.5
        self._rows += len(true)
        self._true += true.sum(axis=0)
        self._given += given.sum(axis=0)
        self._right += (true & given).sum(axis=0)
        self._scores.add(output, true)

    def sums(self) -> Sums | None:
        return _sums_of("labels", self._rows, (self._right, self._given, self._true), self._scores)

    def figures(self) -> dict[str, float]:
        return _figures_of("labels", self._rows, (self._right, self._given, self._true), self._scores)


class _Values:
    """A regression: each row has some values, and a model that reconstructs its input an error too."""

    def __init__(self, outputs: int, quantile: float | None) -> None:
        self._quantile = quantile
        self._rows = 0
        self._absolute = 0.0
        self._mean, self._spread, self._squared = (np.zeros(outputs) for _ in range(3))
        self._errors: dict[int, float] = {}
        self._anomaly = _Scores(1, bins=0)
        self._exact: list[Array] = []

    def add(self, output: Array, y: Array, anomaly: Array) -> None:
        output = np.asarray(output, np.float64).reshape(-1, len(self._mean))
        y = np.asarray(y, np.float64).reshape(output.shape)
        squares = (output - y) ** 2
        rows, mean = len(y), y.mean(axis=0)
        # Chan, Golub and LeVeque (1979): the spread about a running mean, without a difference of large sums.
        apart, total = mean - self._mean, self._rows + rows
        self._spread += ((y - mean) ** 2).sum(axis=0) + apart**2 * self._rows * rows / total
        self._mean += apart * rows / total
        self._squared += squares.sum(axis=0)
        self._absolute += float(np.abs(output - y).mean(axis=1).sum())
        self._rows = total
        if self._quantile is not None:
            self._add_errors(squares.mean(axis=1), anomaly)

    def _add_errors(self, errors: Array, anomaly: Array) -> None:
        """Note the errors of normal rows for the threshold, and all of them if some row is known to be an anomaly."""
        normal = errors[~anomaly]
        for position, count in zip(*np.unique(_error_bins(normal), return_counts=True), strict=True):
            self._errors[int(position)] = self._errors.get(int(position), 0.0) + float(count)
        # Beyond this the threshold comes from the first rows; the fleet's is of the bins, which hold all.
        if sum(map(len, self._exact)) < MOST_SCORES:
            self._exact.append(normal)
        self._anomaly.add(errors[:, np.newaxis], anomaly[:, np.newaxis])

    def sums(self) -> Sums | None:
        # Figures for each output travel only while they fit into a message.
        few = len(self._mean) <= MOST_OUTPUTS
        columns = zip(self._mean.tolist(), self._spread.tolist(), self._squared.tolist(), strict=True)
        return Sums.model_construct(
            kind="values",
            rows=float(self._rows),
            squared=float(self._squared.mean()),
            absolute=self._absolute,
            outputs=tuple(Output.model_construct(mean=m, spread=v, squared=e) for m, v, e in columns) if few else (),
            errors=self._errors,
            quantile=self._quantile,
        )

    def figures(self) -> dict[str, float]:
        found = {"mae": self._absolute / self._rows, "rmse": float(np.sqrt(self._squared.mean() / self._rows))}
        # R² compares with the mean of the rows, which one row equals.
        if self._rows >= 2:
            # As scikit-learn: of a constant target R² is 1 where it is met, else 0.
            constant = np.where(self._squared == 0, 1.0, 0.0)
            spread = np.where(self._spread == 0, 1.0, self._spread)
            found["r2"] = float(np.where(self._spread == 0, constant, 1 - self._squared / spread).mean())
        if self._quantile is not None and self._exact and (normal := np.concatenate(self._exact)).size:
            # The error that this share of normal rows stays below; what lies above counts as an anomaly.
            found["error_threshold"] = float(np.quantile(normal, self._quantile))
            found |= self._of_anomalies(found["error_threshold"])
        return found

    def _of_anomalies(self, threshold: float) -> dict[str, float]:
        errors, anomaly = self._anomaly.kept()
        if not anomaly.any() or (area := self._anomaly.area()) is None:
            return {}
        given, true = errors[:, 0] > threshold, anomaly[:, 0]
        right = int((given & true).sum())
        return {
            "auc": area,
            "precision": right / max(int(given.sum()), 1),
            "recall": right / int(true.sum()),
            "f1": 2 * right / max(int(given.sum()) + int(true.sum()), 1),
        }


class _Scores:
    """Scores of some labels: each by itself as long as they are few, and in bins for other devices' to be added."""

    def __init__(self, labels: int, bins: int | None = None) -> None:
        self._bins = label_bins(labels) if bins is None else bins
        self._histograms = np.zeros((2, labels, self._bins), np.int64)
        self._kept: list[tuple[Array, Array]] = []
        self._count = 0

    def add(self, scores: Array, true: Array) -> None:
        if self._bins:
            self._add_to_bins(scores, true)
        self._count += scores.size
        if self._count <= MOST_SCORES and scores.shape[1] <= _MOST_LABELS:
            self._kept.append((scores.astype(np.float32), true))

    def _add_to_bins(self, scores: Array, true: Array) -> None:
        places = _score_bins(scores, self._bins)
        for label in range(scores.shape[1]):
            for side, chosen in enumerate((true[:, label], ~true[:, label])):
                # One bincount per label and side: a two-dimensional histogram would take memory for all labels at
                # once.
                self._histograms[side, label] += np.bincount(places[chosen, label], minlength=self._bins)

    def kept(self) -> tuple[Array, Array]:
        scores, true = zip(*self._kept, strict=True)
        return np.concatenate(scores), np.concatenate(true)

    def area(self) -> float | None:
        """Return the exact area under the ROC curve, the mean over labels; None if it has none, or scores were too many."""
        if self._count > MOST_SCORES or not self._kept:
            return None
        scores, true = self.kept()
        areas = [
            area for label in range(scores.shape[1]) if (area := _area(scores[:, label], true[:, label])) is not None
        ]
        return float(np.mean(areas)) if areas else None

    def histograms(self) -> tuple[Histogram, ...]:
        if not self._bins:
            return ()
        return tuple(
            Histogram.model_construct(with_label=tuple(map(float, ones)), without=tuple(map(float, zeros)))
            for ones, zeros in zip(*self._histograms, strict=True)
        )


def _area(scores: Array, true: Array) -> float | None:
    """Return the share of pairs, of a row with the label and one without, in which the first has the higher score."""
    ones = int(true.sum())
    zeros = len(true) - ones
    if not ones or not zeros:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Of equal scores each has the middle of their ranks (Mann and Whitney 1947).
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][true].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _score_bins(scores: Array, bins: int) -> Array:
    # Binned by logit: most scores lie near 0 and 1, where equal steps of probability would put them into one bin.
    p = np.clip(np.asarray(scores, np.float64), 1e-12, 1 - 1e-12)
    logits = np.log(p / (1 - p))
    places = np.floor((logits + SCORE_REACH) * (bins / (2 * SCORE_REACH)))
    return np.asarray(np.clip(places, 0, bins - 1), np.int64)


def _error_bins(errors: Array) -> Array:
    smallest = ERROR_STEP**-ERROR_BINS
    # Steps of a constant ratio, since errors span orders of magnitude.
    places = np.floor(np.log(np.maximum(errors, smallest)) / np.log(ERROR_STEP))
    return np.asarray(np.clip(places, -ERROR_BINS, ERROR_BINS), np.int64)


def _sums_of(kind: str, rows: int, counts: tuple[Array, Array, Array], scores: _Scores) -> Sums | None:
    if len(counts[0]) > MOST_CLASSES or not rows:
        return None
    right, given, true = (tuple(map(float, each)) for each in counts)
    return Sums.model_construct(
        kind=kind, rows=float(rows), right=right, given=given, true=true, scores=scores.histograms()
    )


def _figures_of(kind: str, rows: int, counts: tuple[Array, Array, Array], scores: _Scores) -> dict[str, float]:
    if not rows:
        return {}
    right, given, true = (tuple(map(float, each)) for each in counts)
    area = scores.area()
    # The exact area has no error of binning; without it the bins tell theirs.
    bins = scores.histograms() if area is None else ()
    whole = Sums.model_construct(kind=kind, rows=float(rows), right=right, given=given, true=true, scores=bins)
    found = whole.figures()
    if area is not None:
        found["auc"] = area
    return found


class _Heads:
    """Several outputs: each one's loss and figures, under its name; they are means over a fleet's devices, so without sums."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = heads
        self._counts = [_counts_of(head, None) for head in heads]
        self._rows = 0
        self._losses, self._right = np.zeros(len(heads)), np.zeros(len(heads))

    def add(self, output: Array, y: Array, anomaly: Array) -> None:
        self._rows += len(y)
        each = zip(self._heads, given(output, self._heads), labels(y, self._heads), strict=True)
        for at, (head, found, true) in enumerate(each):
            self._losses[at] += losses(head.loss, found, true, head.loss_options).sum()
            self._right[at] += correct(head.loss, found, true).sum()
            self._counts[at].add(found, true, anomaly)

    def sums(self) -> Sums | None:
        return None

    def figures(self) -> dict[str, float]:
        first: dict[str, float] = {}
        then: dict[str, float] = {}
        for head, counts, loss, right in zip(self._heads, self._counts, self._losses, self._right, strict=True):
            first[f"{head.name}_loss"] = float(loss) / self._rows
            own = counts.figures()
            if head.loss in CLASSIFIERS:
                first[f"{head.name}_accuracy"] = float(right) / self._rows
            elif "mae" in own:
                first[f"{head.name}_mae"] = own.pop("mae")
            then |= {f"{head.name}_{name}": value for name, value in own.items() if name != "auc_error"}
        return first | then


def _counts_of(head: Head, quantile: float | None) -> _Classes | _Labels | _Values:
    shape = head.output.shape
    if head.loss in BINARY:
        return _Labels(shape[-1] if shape else 1)
    if head.loss in CLASSIFIERS:
        return _Classes(shape[-1], sparse=head.loss.startswith("sparse"))
    return _Values(head.output.size, quantile)

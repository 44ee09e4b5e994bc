"""What figures are made of that are not means over examples: sums, which add up over devices without their data.

Precision, recall and F1 come from counts by class, RMSE and R² from squared errors and the labels' spread: of these the figure
of a fleet is that of all its examples in one place. The area under the ROC curve comes from histograms of scores: scores of one
bin count as equal, so the figure is within `Sums.auc`'s second value of the exact one. How far a fleet's threshold of
reconstruction errors may be off is a bin's width, 5 %.

Plain Python: functions in the cloud have no NumPy.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedgrass.errors import MessageError, first_problem

# Characters of a message that sums may take; where they do not fit beside the rest, they go without scores.
MAX_TEXT = 2400
MOST_CLASSES = 128
MOST_OUTPUTS = 16
MOST_HISTOGRAMS = 16
MOST_BINS = 256
SCORE_REACH = 8.0
"""Scores are binned by their logit, from minus this to this."""
ERROR_STEP = 1.05
"""Each bin of reconstruction errors ends at so many times its beginning."""
ERROR_BINS = 1024
"""Bins on either side of an error of 1."""

# Bytes that a text may unpack to: 2,400 characters of zlib could hold megabytes.
_MAX_JSON = 16_384
_LARGEST = 1e30

_Count = Annotated[float, Field(ge=0, le=1 << 53, allow_inf_nan=False)]
_Value = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
_Square = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]
_Counts = tuple[_Count, ...]


class Histogram(BaseModel):
    """Scores of one label by bin: of the examples that have it, and of those that have not."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    with_label: Annotated[_Counts, Field(max_length=MOST_BINS)] = Field(alias="p")
    without: Annotated[_Counts, Field(max_length=MOST_BINS)] = Field(alias="n")

    @model_validator(mode="after")
    def _alike(self) -> Histogram:
        if len(self.with_label) != len(self.without):
            raise ValueError("both sides of a histogram have as many bins")
        return self


class Output(BaseModel):
    """One output of a regression: its labels' mean, their summed squared distance from it, and the squared errors' sum."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    mean: _Value = Field(alias="m")
    spread: _Square = Field(alias="v")
    squared: _Square = Field(alias="e")


class Sums(BaseModel):
    """Sums over some examples; ``rows`` counts what was judged: examples, or their time steps or pixels.

    ``classes``: each row has one of some classes. ``labels``: each has any of some labels. ``values``: a regression. By class or
    label: how often it was rightly given (``right``), given (``given``) and true (``true``).
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    kind: Literal["classes", "labels", "values"] = Field(alias="k")
    rows: Annotated[float, Field(gt=0, le=1 << 53, allow_inf_nan=False)] = Field(alias="n")
    right: Annotated[_Counts, Field(max_length=MOST_CLASSES)] = Field(default=(), alias="r")
    given: Annotated[_Counts, Field(max_length=MOST_CLASSES)] = Field(default=(), alias="g")
    true: Annotated[_Counts, Field(max_length=MOST_CLASSES)] = Field(default=(), alias="t")
    scores: Annotated[tuple[Histogram, ...], Field(max_length=MOST_HISTOGRAMS)] = Field(default=(), alias="s")
    squared: _Square = Field(default=0.0, alias="q", description="Mean squared error of a row, summed over rows")
    absolute: _Square = Field(default=0.0, alias="a", description="Mean absolute error of a row, summed over rows")
    outputs: Annotated[tuple[Output, ...], Field(max_length=MOST_OUTPUTS)] = Field(default=(), alias="o")
    errors: Annotated[
        dict[Annotated[int, Field(ge=-ERROR_BINS, le=ERROR_BINS)], _Count], Field(max_length=2 * ERROR_BINS + 1)
    ] = Field(default={}, alias="h", description="Rows by the bin of their reconstruction error")
    quantile: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, alias="u")

    @model_validator(mode="after")
    def _can_be(self) -> Sums:
        if not len(self.right) == len(self.given) == len(self.true):
            raise ValueError("as many classes were given as are true and right")
        for right, given, true in zip(self.right, self.given, self.true, strict=True):
            # A device that says so would push precision or recall beyond 1.
            if right > min(given, true) or max(given, true) > self.rows:
                raise ValueError(
                    "a class is right no more often than it is given and true, and that no more often than rows"
                )
        if self.kind == "classes" and not math.isclose(sum(self.true), self.rows, rel_tol=1e-9):
            raise ValueError("each row has one class")
        for histogram in self.scores:
            if sum(histogram.with_label) + sum(histogram.without) > self.rows * (1 + 1e-9):
                raise ValueError("a histogram holds no more than all rows")
        return self

    def encode(self) -> str:
        """Return the sums as text of a message."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        text = json.dumps(_rounded(plain), separators=(",", ":")).encode()
        return base64.b64encode(zlib.compress(text, 9)).decode()

    @classmethod
    def decode(cls, text: str) -> Sums:
        """Read the text of a message; raises `MessageError` if it is not one, or its numbers cannot be."""
        try:
            packed = base64.b64decode(text.encode(), validate=True)
            # By an object, since zlib.decompress has no bound on what it returns.
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(packed, _MAX_JSON)
            if unpacker.unconsumed_tail or not unpacker.eof:
                raise MessageError(f"sums: unpack to more than {_MAX_JSON} bytes, or are cut short")
            return cls.model_validate_json(plain)
        except (ValueError, binascii.Error, zlib.error) as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise MessageError(f"sums: {problem}") from error

    def without_scores(self) -> Sums:
        """Return the same without what AUC is made of, which takes the most bytes."""
        return self.model_copy(update={"scores": ()})

    @property
    def shape(self) -> tuple[object, ...]:
        """What must be equal for two to be added."""
        bins = tuple(len(histogram.with_label) for histogram in self.scores)
        # Everything that decides which numbers lie at the same place.
        return self.kind, len(self.right), bins, len(self.outputs), self.quantile, bool(self.errors)

    def figures(self) -> dict[str, float]:
        """Return every figure that follows from the sums; see docs/evaluation.md for each."""
        if self.kind == "values":
            return self._of_values()
        found = _of_counts(self)
        if (area := self.auc()) is not None:
            found["auc"], found["auc_error"] = area
        return found

    def auc(self) -> tuple[float, float] | None:
        """Return the area under the ROC curve, the mean over labels that some rows have and some have not, and its error.

        The exact area is within the error: half of the pairs whose scores lie in one bin.
        """
        areas = [area for histogram in self.scores if (area := _area(histogram)) is not None]
        if not areas:
            return None
        return sum(area for area, _ in areas) / len(areas), sum(error for _, error in areas) / len(areas)

    def _of_values(self) -> dict[str, float]:
        found = {"mae": self.absolute / self.rows, "rmse": math.sqrt(self.squared / self.rows)}
        if self.outputs and self.rows >= 2:
            found["r2"] = sum(_determination(output) for output in self.outputs) / len(self.outputs)
        if self.errors and self.quantile is not None:
            found["error_threshold"] = _quantile(self.errors, self.quantile)
        return found


def added(parts: Sequence[Sums], weights: Sequence[float], *, reach: float = 0.0) -> Sums:
    """Add sums of one shape, each as if it were of so many rows.

    Parameters
    ----------
    reach
        Multiple of the median by which no device's errors, and no spread of its labels, may lie beyond the median; 0: no bound.
    """
    bounded = _bounded(parts, reach) if reach and len(parts) > 1 else list(parts)
    # What a device says of its rows is scaled to the weight that it is allowed.
    scaled = [_scaled(part, weight / part.rows) for part, weight in zip(bounded, weights, strict=True)]
    total = scaled[0]
    for part in scaled[1:]:
        total = _sum(total, part)
    return total


def label_bins(labels: int) -> int:
    """Return the bins of each label's histogram, so that all of them fit a message; 0 if there are too many labels."""
    if labels > MOST_HISTOGRAMS:
        return 0
    # All labels share about the same number of bins; below 32 an area would say little.
    return min(MOST_BINS, max(32, 2 * MOST_BINS // labels))


def _of_counts(sums: Sums) -> dict[str, float]:
    triples = list(zip(sums.right, sums.given, sums.true, strict=True))
    judged, averaged = triples, triples
    # One label is two classes for the macro F1: with it and without.
    if sums.kind == "labels" and len(triples) == 1:
        right, given, true = triples[0]
        averaged = [triples[0], (sums.rows - given - true + right, sums.rows - given, sums.rows - true)]
    elif sums.kind == "classes":
        # As scikit-learn's average='binary': of two classes the second is the positive one.
        judged = [triples[1]] if len(triples) == 2 else _occurring(triples)
    if sums.kind == "classes" or len(triples) == 1:
        averaged = _occurring(averaged)
    return {
        "precision": _mean([_share(right, given) for right, given, _ in judged]),
        "recall": _mean([_share(right, true) for right, _, true in judged]),
        "f1": _mean([_f1(*each) for each in judged]),
        "f1_macro": _mean([_f1(*each) for each in averaged]),
    }


def _occurring(triples: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Return the classes that are true or given anywhere: others say nothing."""
    return [each for each in triples if each[1] or each[2]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _f1(right: float, given: float, true: float) -> float:
    return _share(2 * right, given + true)


def _area(histogram: Histogram) -> tuple[float, float] | None:
    """Return the area under the curve through the bins' edges, and how far the exact one may lie from it."""
    ones, zeros = sum(histogram.with_label), sum(histogram.without)
    if not ones or not zeros:
        return None
    below = won = tied = 0.0
    for one, zero in zip(histogram.with_label, histogram.without, strict=True):
        # Pairs in which the example with the label has the higher score; those of one bin count half (Mann and
        # Whitney 1947).
        won += one * below
        tied += one * zero
        below += zero
    pairs = ones * zeros
    return (won + tied / 2) / pairs, tied / 2 / pairs


def _determination(output: Output) -> float:
    if output.spread == 0:
        return 1.0 if output.squared == 0 else 0.0
    # Bounded, because a spread near 0 makes it as negative as a float goes, and messages have limits.
    return max(1 - output.squared / output.spread, -_LARGEST)


def _quantile(errors: dict[int, float], quantile: float) -> float:
    """Return the error below which this share of the rows lies, interpolated inside its bin."""
    wanted, seen = quantile * sum(errors.values()), 0.0
    for position in sorted(errors):
        count = errors[position]
        if count and seen + count >= wanted:
            # Linear in the logarithm, as the bins are.
            return float(ERROR_STEP ** (position + (wanted - seen) / count))
        seen += count
    return float(ERROR_STEP ** (max(errors) + 1))


def _scaled(sums: Sums, factor: float) -> Sums:
    return sums.model_copy(
        update={
            "rows": sums.rows * factor,
            "right": _times(sums.right, factor),
            "given": _times(sums.given, factor),
            "true": _times(sums.true, factor),
            "scores": tuple(_bins(_times(h.with_label, factor), _times(h.without, factor)) for h in sums.scores),
            "squared": sums.squared * factor,
            "absolute": sums.absolute * factor,
            "outputs": tuple(_output(o.mean, o.spread * factor, o.squared * factor) for o in sums.outputs),
            "errors": {position: count * factor for position, count in sums.errors.items()},
        }
    )


def _sum(left: Sums, right: Sums) -> Sums:
    rows = left.rows + right.rows
    histograms = zip(left.scores, right.scores, strict=True)
    return left.model_copy(
        update={
            "rows": rows,
            "right": _plus(left.right, right.right),
            "given": _plus(left.given, right.given),
            "true": _plus(left.true, right.true),
            "scores": tuple(
                _bins(_plus(a.with_label, b.with_label), _plus(a.without, b.without)) for a, b in histograms
            ),
            "squared": left.squared + right.squared,
            "absolute": left.absolute + right.absolute,
            "outputs": tuple(
                _joined(a, left.rows, b, right.rows) for a, b in zip(left.outputs, right.outputs, strict=True)
            ),
            "errors": {
                position: left.errors.get(position, 0.0) + right.errors.get(position, 0.0)
                for position in left.errors.keys() | right.errors.keys()
            },
        }
    )


def _joined(left: Output, left_rows: float, right: Output, right_rows: float) -> Output:
    """Join means and spreads without cancellation (Chan, Golub and LeVeque 1979)."""
    rows = left_rows + right_rows
    apart = right.mean - left.mean
    return _output(
        left.mean + apart * (right_rows / rows),
        left.spread + right.spread + apart * apart * left_rows * (right_rows / rows),
        left.squared + right.squared,
    )


@dataclass(frozen=True)
class _Range:
    low: float
    high: float

    def held(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def _around(values: Sequence[float], reach: float) -> _Range:
    middle, far = median_low(values), reach * median_low(map(abs, values))
    return _Range(middle - far, middle + far)


def _bounded(parts: Sequence[Sums], reach: float) -> list[Sums]:
    """Hold each device's error and spread per row near the median's, and its labels' mean within that of a usual deviation."""
    squared = _around([part.squared / part.rows for part in parts], reach)
    absolute = _around([part.absolute / part.rows for part in parts], reach)
    columns = []
    for column in zip(*(part.outputs for part in parts), strict=True):
        spread = _around([o.spread / part.rows for o, part in zip(column, parts, strict=True)], reach)
        error = _around([o.squared / part.rows for o, part in zip(column, parts, strict=True)], reach)
        middle = median_low([o.mean for o in column])
        # A device that lies about its labels' mean would otherwise blow up the fleet's spread, and with it R².
        far = reach * max(math.sqrt(max(spread.high, 0.0)), abs(middle))
        columns.append((_Range(middle - far, middle + far), spread, error))
    return [
        part.model_copy(
            update={
                "squared": squared.held(part.squared / part.rows) * part.rows,
                "absolute": absolute.held(part.absolute / part.rows) * part.rows,
                "outputs": tuple(
                    _output(
                        means.held(o.mean),
                        spread.held(o.spread / part.rows) * part.rows,
                        error.held(o.squared / part.rows) * part.rows,
                    )
                    for o, (means, spread, error) in zip(part.outputs, columns, strict=True)
                ),
            }
        )
        for part in parts
    ]


def _times(counts: _Counts, factor: float) -> _Counts:
    return tuple(count * factor for count in counts)


def _plus(left: _Counts, right: _Counts) -> _Counts:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _bins(with_label: _Counts, without: _Counts) -> Histogram:
    return Histogram.model_construct(with_label=with_label, without=without)


def _output(mean: float, spread: float, squared: float) -> Output:
    return Output.model_construct(mean=mean, spread=spread, squared=squared)


def _rounded(value: object) -> object:
    """Write whole numbers without a point, and others with ten digits."""
    if isinstance(value, float):
        # "3" for "3.0", and ten digits: it is what makes histograms fit into a message.
        return int(value) if value.is_integer() and abs(value) < 1 << 53 else float(f"{value:.10g}")
    if isinstance(value, dict):
        return {key: _rounded(below) for key, below in value.items()}
    return [_rounded(below) for below in value] if isinstance(value, list) else value

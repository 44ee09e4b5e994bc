"""A fleet's profile: what a round of statistics finds, what it asks for, and how both are named.

Plain Python: functions in the cloud have no NumPy.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedgrass.errors import DataError, first_problem
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, Version

MOST_FEATURES = 4096
"""Values of an example that are features each; of larger examples, such as images, each place of the last axis is one."""
MOST_BINS = 1024
MOST_LABELS = 65_536
MOST_MISFITS = 1000
"""Misfits that a profile names; more are only counted."""
MAX_PROFILE_BYTES = 256 << 20
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Sum = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)


class ProfileReference(_Part):
    """A profile in the bucket, and the graph of the model whose inputs it is of."""

    round: RoundNumber
    key: Annotated[str, Field(min_length=1, max_length=1024)]
    sha256: Sha256
    bytes: Annotated[int, Field(ge=1, le=MAX_PROFILE_BYTES)]
    graph_sha256: Sha256


class StatisticsTask(_Part):
    """What devices measure: bins of each histogram, and between which bounds; none without bounds.

    ``low`` and ``high`` are the operator's, for all features alike: then no device tells a minimum or maximum beyond them.
    ``profile`` is an earlier one, whose minimum and maximum of each feature are its bounds. ``max_rows``: devices tell sums of so
    many examples at most, as one vector that is clipped, noised and masked as an update is; null: exact figures of all.
    """

    bins: int = Field(default=64, ge=2, le=MOST_BINS)
    low: _Finite | None = None
    high: _Finite | None = None
    profile: ProfileReference | None = None
    max_rows: int | None = Field(default=None, ge=1, le=1 << 24)


class Quantile(_Part):
    """A quantile of a feature: the value of that rank lies within ``error`` of ``value``, and nowhere else."""

    share: float = Field(ge=0, le=1)
    value: _Finite
    error: _Sum


class Feature(_Part):
    """One feature over the fleet. ``variance`` is that of all values, as a normalization wants it, not of a sample."""

    name: str = Field(max_length=200)
    count: _Sum = Field(description="Values that are there; of a device beyond checks.max_examples only a share")
    missing: _Sum = Field(description="Values that are not, or are infinite")
    mean: _Finite | None = None
    variance: _Sum | None = None
    mean_error: _Sum | None = Field(
        default=None, description="Of a profile with noise; so much of it is chance at most"
    )
    variance_error: _Sum | None = None
    low: _Finite | None = Field(default=None, description="Least value")
    high: _Finite | None = Field(default=None, description="Greatest value")
    bounds: tuple[_Finite, _Finite] | None = Field(default=None, description="Of the histogram")
    histogram: tuple[_Sum, ...] = Field(
        default=(), max_length=MOST_BINS + 2, description="Values below the bounds, in each bin, and above them"
    )
    quantiles: tuple[Quantile, ...] = Field(default=(), max_length=100)


class Label(_Part):
    """How many examples have a label."""

    name: str = Field(max_length=200)
    count: _Sum


class Misfit(_Part):
    """A device's feature that is not what the others' is.

    ``scale``: its values are ``factor`` times theirs, as with another unit. ``offset``: they lie elsewhere. ``column``: they look
    like those of feature ``like``, as with swapped columns. ``missing``: it has none of them.
    """

    thing: str
    feature: str = Field(max_length=200)
    kind: Literal["scale", "offset", "column", "missing"]
    factor: _Finite | None = None
    like: str | None = None

    @property
    def told(self) -> str:
        """What it is, in words."""
        if self.kind == "scale":
            return f"{self.feature}: values of {self.factor:.3g} times the fleet's size; look at its unit"
        if self.kind == "column":
            return f"{self.feature}: looks like {self.like}; look at the order of the columns"
        if self.kind == "offset":
            return f"{self.feature}: values lie far from the fleet's; look at its unit and its zero"
        return f"{self.feature}: no value is there"


class Profile(_Part):
    """``models/<fleet>/profiles/<round>.json``: what a fleet's data are like, without the data."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    fleet: FleetName
    round: RoundNumber
    made_at: AwareDatetime
    model: Version = Field(description="The model whose inputs are described")
    graph_sha256: Sha256
    devices: int = Field(ge=0, description="Whose figures are in the sums")
    examples: _Sum
    features: tuple[Feature, ...] = Field(min_length=1, max_length=MOST_FEATURES)
    labels: tuple[Label, ...] = Field(default=(), max_length=MOST_LABELS)
    misfits: tuple[Misfit, ...] = Field(default=(), max_length=MOST_MISFITS)
    misfits_more: int = Field(default=0, ge=0, description="Misfits beyond those named")
    noise: _Sum | None = Field(
        default=None, description="Standard deviation of the noise on each count; null: counts are exact"
    )
    left_out: int = Field(default=0, ge=0, description="Devices whose figures are not in the sums, for they do not fit")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Profile:
        if len({feature.name for feature in self.features}) != len(self.features):
            raise ValueError("names of features must be unique")
        return self

    @classmethod
    def read(cls, content: bytes, *, name: str) -> Profile:
        """Read the file's content.

        Parameters
        ----------
        content
            What is in the file, untrusted.
        name
            What the file is called in an error.

        Raises
        ------
        DataError
            If it is not a profile.
        """
        # Before it is parsed: JSON takes many times its size in memory.
        if len(content) > MAX_PROFILE_BYTES:
            raise DataError(f"{name}: {len(content)} bytes; a profile has at most {MAX_PROFILE_BYTES}")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise DataError(f"{name}: not a profile of a fleet: {first_problem(error)}") from error

    def to_json(self) -> bytes:
        """Return the file's content; the same profile gives the same bytes."""
        return (self.model_dump_json(by_alias=True, indent=1, exclude_none=True) + "\n").encode()


def profile_key(fleet: str, number: int) -> str:
    """Object key of the profile that a round made: where devices may read.

    >>> profile_key("mill", 7)
    'models/mill/profiles/000007.json'
    """
    return f"models/{fleet}/profiles/{number:06d}.json"

"""The manifest of a model bundle, ``model.json``: what the graph takes and gives, how it trains, and each file's digest."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedgrass.bounds import MAX_TENSORS
from fedgrass.errors import BundleError, first_problem
from fedgrass.interface import Head, TensorDescription, problem_of
from fedgrass.objectives import Loss, LossOptions, Optimizer
from fedgrass.protocol.names import Sha256, Version

GRAPH = "model.tflite"
PARAMETERS = "parameters.safetensors"
INFERENCE = "inference.tflite"
INFERENCE_INT8 = "inference_int8.tflite"
ARCHITECTURE = "architecture.json"
BUILDER = "builder.zip"
MANIFEST = "model.json"

MAX_MANIFEST_BYTES = 4 << 20
MAX_WORDS = 200_000
"""Of a vocabulary."""
_MAX_VOCABULARY_BYTES = MAX_MANIFEST_BYTES // 2

Statistic = Literal["mean", "variance"]
"""What a parameter that no gradient trains measures (`fedgrass.statistics`); a ``variance`` is never below zero."""

Native = Literal["float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
"""A dtype that a parameter has in the model's own code, where that is not float32."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class SelfTest(_Model):
    """What `fedgrass.authoring.self_test` found when the bundle was exported: relative differences from the framework.

    None where there was nothing to compare with: a SavedModel does not train.
    """

    steps: int = Field(ge=1)
    loss: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    parameters: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    output: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Constant(_Model):
    """Where a parameter lies in ``inference.tflite``: its little-endian bytes, with axes permuted as by `numpy.transpose`."""

    parameter: str
    offset: int = Field(ge=0)
    axes: tuple[Annotated[int, Field(ge=0, lt=8)], ...] = Field(max_length=8)


class DataDescription(_Model):
    """How devices find x and y in their tables and images: part of the model, so that all devices read alike."""

    columns: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=65536, description="Names of x's columns, in row-major order; (): by place"
    )
    labels: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=65536, description="Names of y's columns; (): the last ones"
    )
    means: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        default=(), max_length=65536, description="The fleet's mean of each column of x, to fill in missing values"
    )
    pixels: tuple[float, float] | None = Field(
        default=None, description="What x holds for black and for white; None: 0 and 1, or the range of a whole dtype"
    )
    sample_rate: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Samples a second that x's sounds have; None: any"
    )
    vocabulary: tuple[Annotated[str, Field(max_length=200)], ...] = Field(
        default=(), max_length=MAX_WORDS, description="Words of texts in the order of their numbers; (): x is no text"
    )

    @field_validator("vocabulary")
    @classmethod
    def _vocabulary_is_short(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Each word stands on a line of model.json, which every device reads.
        if value and (size := len(json.dumps(value)) + 4 * len(value)) > _MAX_VOCABULARY_BYTES:
            raise ValueError(f"takes {size} bytes; at most {_MAX_VOCABULARY_BYTES} are allowed: leave rare words out")
        return value

    @property
    def is_text(self) -> bool:
        """Whether a table holds x as one text, in one column."""
        return bool(self.vocabulary) and len(self.columns) <= 1


class FileDescription(_Model):
    """A file of the bundle."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Manifest(_Model):
    """``model.json``: what the graph expects, and what the bundle's files must be."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(min_length=1, max_length=100)
    version: Version = "1.0.0"
    batch_size: int = Field(ge=1, le=65536)
    x: TensorDescription
    y: TensorDescription
    output: TensorDescription
    inputs: tuple[TensorDescription, ...] = Field(
        default=(),
        max_length=64,
        description="Several inputs, one after another in the row that x is; (): x is the input",
    )
    outputs: tuple[Head, ...] = Field(
        default=(), max_length=64, description="Several outputs, one after another in the rows that y and output are"
    )
    class_names: tuple[str, ...] = ()
    data: DataDescription = Field(default_factory=DataDescription)
    loss: Loss
    loss_options: LossOptions = Field(default_factory=LossOptions)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    self_test: SelfTest | None = None
    vocabulary: int | None = Field(
        default=None, ge=1, description="Tokens in x are from 0 to one less; None: not known"
    )
    vocabularies: dict[str, int] = Field(default={}, description="The same of several inputs, by name")
    parameters: tuple[TensorDescription, ...] = Field(min_length=1, max_length=MAX_TENSORS)
    frozen: tuple[str, ...] = ()
    statistics: dict[str, Statistic] | None = Field(
        default=None,
        description="Which parameters are statistics, averaged and never stepped; None: written before this was said",
    )
    native: dict[str, Native] | None = Field(
        default=None,
        description="What the model's own code holds of a parameter that travels as float32: its dtype there",
    )
    local: tuple[str, ...] | None = Field(
        default=None,
        max_length=MAX_TENSORS,
        description="What does not travel. Of the parameters: each device trains and keeps its own; other state it has as "
        "its builder makes it",
    )
    fixed: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_TENSORS,
        description="Parameters that no training moves and no update has: mean and variance by which the model normalizes its "
        "input, which `fedgrass model adapt` sets",
    )
    loss_mean: Literal["weights", "examples"] = Field(
        default="weights",
        description="What the graph divides a batch's weighted losses by: the sum of weights, or (as Keras) the examples",
    )
    anomaly_quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Of a model that reconstructs its input: the share of normal examples' errors below its threshold",
    )
    constants: tuple[Constant, ...] = Field(default=(), max_length=MAX_TENSORS)
    files: dict[str, FileDescription]

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    @model_validator(mode="after")
    def _parameters_are_named_once_and_shared(self) -> Manifest:
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) != len(names):
            raise ValueError("parameter names must be unique")
        for kind in ("statistics", "native", "fixed"):
            if strange := sorted(set(getattr(self, kind) or ()) - set(names)):
                raise ValueError(f"{kind} names {strange[0]!r}, which is not a parameter")
        if both := sorted(set(self.fixed) & set(self.local or ())):
            raise ValueError(f"{both[0]!r} is local and fixed; it can be one of them")
        if not self.shared_parameters:
            raise ValueError("local and fixed name every parameter: nothing is left to share")
        return self

    @model_validator(mode="after")
    def _files_are_present_and_fit(self) -> Manifest:
        needed = {ARCHITECTURE} if ARCHITECTURE in self.files else {GRAPH, INFERENCE}
        missing = {PARAMETERS, *needed} - self.files.keys()
        if missing:
            raise ValueError(f"files lacks {', '.join(sorted(missing))}")
        # Names become paths on the device: one with a slash or dots could lead out of the folder.
        if any("/" in name or name.startswith(".") for name in self.files):
            raise ValueError("file names must be plain")
        if wrong := problem_of(self.inputs, self.outputs, x=self.x, y=self.y, output=self.output):
            raise ValueError(wrong)
        for kind in ("columns", "means"):
            if kind == "columns" and self.data.is_text:
                continue
            if (given := len(getattr(self.data, kind))) not in (0, self.x.size):
                raise ValueError(f"data.{kind} has {given} entries, x has {self.x.size} values")
        return self

    @property
    def heads(self) -> tuple[Head, ...]:
        """Its outputs, each with its label and its loss: one, or `outputs`."""
        own = Head(output=self.output, y=self.y, loss=self.loss, loss_options=self.loss_options)
        return self.outputs or (own.model_copy(update={"class_names": self.class_names}),)

    @property
    def graph_file(self) -> str:
        """Name of the file that says what the model computes."""
        return GRAPH if GRAPH in self.files else ARCHITECTURE

    @property
    def application_file(self) -> str:
        """Name of the file that an application takes."""
        return INFERENCE if INFERENCE in self.files else PARAMETERS

    @property
    def graph_sha256(self) -> str:
        """Digest of the training graph, and of which parameters do not travel: two models with the same one can be averaged."""
        graph = self.files[self.graph_file].sha256
        # Two fleets may keep other layers for themselves with one graph: their updates hold other parameters, and
        # must not meet.
        own = [parameter.name for parameter in self.local_parameters] + sorted(self.fixed)
        return hashlib.sha256("\n".join([graph, *own]).encode()).hexdigest() if own else graph

    @property
    def local_parameters(self) -> tuple[TensorDescription, ...]:
        """The parameters that each device keeps for itself (`fedgrass.personal`)."""
        names = frozenset(self.local or ())
        return tuple(parameter for parameter in self.parameters if parameter.name in names)

    @property
    def shared_parameters(self) -> tuple[TensorDescription, ...]:
        """The parameters that updates are of, and that are averaged."""
        names = frozenset((*(self.local or ()), *self.fixed))
        return tuple(parameter for parameter in self.parameters if parameter.name not in names)

    @property
    def shares_all(self) -> bool:
        """Whether updates are of every parameter."""
        return len(self.shared_parameters) == len(self.parameters)

    @property
    def parameters_sha256(self) -> str:
        """Digest of the parameter file: what an update is a difference from."""
        return self.files[PARAMETERS].sha256

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def parameter_bytes(self) -> int:
        """Size of all parameters together."""
        return sum(parameter.nbytes for parameter in self.parameters)

    def to_json(self) -> bytes:
        """Return the file's content; the same manifest gives the same bytes."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(content: bytes, *, name: str = MANIFEST) -> Manifest:
    """Validate the bytes of a ``model.json``.

    Raises
    ------
    BundleError
        If they are too many, or not a valid manifest.
    """
    # Before it is parsed.
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{name}: more than {MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{name}: {first_problem(error)}") from error

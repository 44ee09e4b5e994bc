"""A round's report: what went in, what was refused and why, what came out, and where it went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import RecordError, first_problem
from fedgrass.protocol.gain import Gain
from fedgrass.protocol.messages import ModelIdentity
from fedgrass.protocol.metrics import others
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, ThingName, Version
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.profile import ProfileReference

Outcome = Literal["released", "advanced", "held", "profiled", "insufficient_updates", "helpers_missing"]
"""``advanced``: the model is the base of the next round, and devices do not get it otherwise.

``profiled``: the round asked for statistics, and made a profile.

``helpers_missing``: with secure aggregation, too few helpers opened the sum.
"""

ADOPTED: frozenset[str] = frozenset({"released", "advanced"})
"""Outcomes of a round whose model is the base of the next one."""

Hold = Literal["accuracy", "loss", "metric", "best_accuracy", "best_loss", "best_metric", "not_finite", "figures"]
"""Why the gate held a model: worse than its base, worse than the best so far, no numbers, or too few devices' figures.

``metric`` and ``best_metric`` are of the figure that ``gate.metric`` names.
"""

ADVICE: dict[Hold, str] = {
    "accuracy": "Devices make the model worse: lower fit.learning_rate or fit.epochs, look at the quarantined and the heaviest "
    "updates of the report, choose a robust strategy",
    "loss": "Devices make the model worse: lower fit.learning_rate or fit.epochs, lower privacy.noise_multiplier or ask more "
    "devices, choose a robust strategy",
    "metric": "Devices make the model worse by the figure that gate.metric names, or the evaluation gives no such figure: see "
    "the rounds' reasons; lower fit.learning_rate or fit.epochs, set fit.class_weight where a class is rare, or name another "
    "figure",
    "best_metric": "The fleet's model has decayed in small steps: roll back to a better version (fedgrass model roll-back), or "
    "accept it by a round started with --set gate.forget_best=true",
    "best_accuracy": "The fleet's model has decayed in small steps: roll back to a better version (fedgrass model roll-back), or "
    "accept it by a round started with --set gate.forget_best=true",
    "best_loss": "The fleet's model has decayed in small steps: roll back to a better version (fedgrass model roll-back), or "
    "accept it by a round started with --set gate.forget_best=true",
    "not_finite": "The model's figures are not numbers: lower fit.learning_rate or the strategy's, bound updates with "
    "checks.max_norm, and roll back if the base itself gives none",
    "figures": "Too few devices evaluate: raise gate.devices_seconds, lower min_updates, or put an evaluation set into the "
    "bucket",
}
"""What to do when one round after another is held for the same reason."""

HELD_IN_A_ROW = 3
"""As many are told loudly."""

# The report of 100,000 devices is some tens of megabytes; what is larger is not ours.
MAX_REPORT_BYTES = 1 << 30


UNKNOWN_THING = "unknown_thing"
"""Reason of an object whose writer is not of the fleet."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)


class UpdateEntry(_Part):
    """An update that was used. ``weight`` is its share of the sum, ``norm`` the L2 norm of its difference.

    A late one has the earlier round that it is of, and the number of models that came after its base.
    """

    thing: ThingName
    key: str
    etag: str
    bytes: int
    num_examples: int
    weight: float
    norm: float
    metrics: dict[str, float] = {}
    late_for: RoundNumber | None = None
    age: int = 0


class QuarantinedEntry(_Part):
    """An update that was refused. ``reason`` is a stable code, ``detail`` a sentence.

    ``times`` is how often the device was refused by the end of this round, over all rounds.
    """

    thing: str
    key: str
    etag: str = ""
    bytes: int
    reason: str
    detail: str
    late_for: RoundNumber | None = None
    times: int = Field(default=1, ge=1)


class Evaluation(_Part):
    """A model on the operator's evaluation set, or on the examples that devices keep back."""

    loss: float
    accuracy: float | None = None
    metrics: dict[str, float] = Field(default={}, description="Other figures by name: f1, auc, rmse, …")
    averaged: tuple[str, ...] = Field(
        default=(), description="Figures that are means of devices' own, not those of all examples in one place"
    )
    examples: int

    @classmethod
    def of(cls, metrics: Mapping[str, float], examples: int, averaged: tuple[str, ...] = ()) -> Evaluation:
        """Make it of an engine's figures; ``loss`` is among them.

        Parameters
        ----------
        metrics
            An engine's figures, by name.
        examples
            How many they are of.
        averaged
            Whether they are averages.
        """
        return cls(
            loss=metrics["loss"],
            accuracy=metrics.get("accuracy"),
            metrics=others(metrics),
            averaged=averaged,
            examples=examples,
        )

    def value(self, metric: str) -> float | None:
        """Return one figure by its name; None if there is none of that name."""
        if metric == "loss":
            return self.loss
        return self.accuracy if metric == "accuracy" else self.metrics.get(metric)


class Best(_Part):
    """The best figures of the models that a fleet had, each by itself, on one evaluation set: its high-water mark.

    ``evaluation_set`` is the SHA-256 of the operator's file, or ``devices``.
    """

    evaluation_set: str = Field(max_length=64)
    loss: float
    accuracy: float | None = None
    metrics: dict[str, float] = {}


class ModelEntry(_Part):
    """A model version and its digests."""

    version: Version
    parameters_sha256: Sha256
    graph_sha256: Sha256

    @classmethod
    def of(cls, model: ModelIdentity) -> ModelEntry:
        """Name a model."""
        return cls(version=model.version, parameters_sha256=model.parameters_sha256, graph_sha256=model.graph_sha256)


class ReleaseEntry(_Part):
    """How a version reached the fleet."""

    component_arn: str
    deployment_id: str
    target_arn: str
    model_package_arn: str | None = None


class RoundReport(_Part):
    """``reports/<fleet>/<round>/report.json``."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    fleet: FleetName
    round: RoundNumber
    outcome: Outcome
    reason: str = ""
    strategy: str
    started_at: AwareDatetime
    finished_at: AwareDatetime
    base: ModelEntry
    model: ModelEntry | None = None
    updates: tuple[UpdateEntry, ...] = ()
    quarantined: tuple[QuarantinedEntry, ...] = ()
    quarantined_more: int = Field(
        default=0, ge=0, description="Objects that were refused by their names beyond those named here, at least"
    )
    evaluation_base: Evaluation | None = None
    evaluation: Evaluation | None = None
    evaluated_by_devices: int = Field(default=0, description="Devices whose figures these are; 0: the operator's set")
    reported: dict[str, float] = Field(
        default={}, description="What most devices report of their training, by name: means by examples"
    )
    personal: Gain | None = Field(
        default=None,
        description="What models of their own bring the devices, as they say; of a round that asked for such",
    )
    model_bytes: int = Field(default=0, ge=0, description="Of the model's files together, as a device downloads them")
    local_parameters: int = Field(
        default=0,
        ge=0,
        description="Values that devices keep for themselves; figures of the operator's set are with what they were at export",
    )
    best: Best | None = Field(default=None, description="What the gate held the model against, beside its base")
    hold: Hold | None = Field(default=None, description="Why the gate held the model, as a stable code")
    inference_accuracy: dict[str, float] = {}
    server_state_sha256: Sha256 | None = Field(
        default=None,
        description="Of the server optimizer's state beside the model, or beside this report if the model is held",
    )
    release: ReleaseEntry | None = None
    profile: ProfileReference | None = Field(default=None, description="What a round of statistics made")
    privacy: PrivacyLedger | None = None
    bytes_read: int = 0
    seconds: dict[str, float] = {}

    @classmethod
    def read(cls, content: bytes, *, name: str) -> RoundReport:
        """Read the file's content; raises `RecordError`, which begins with ``name``, if it is not the report of a round."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise RecordError(f"{name}: not a report of a round: {first_problem(error)}") from error

    def to_json(self) -> bytes:
        """Return the file's content."""
        return (self.model_dump_json(by_alias=True, indent=2) + "\n").encode()

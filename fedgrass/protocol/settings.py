"""A fleet's settings: what a round does unless its start says otherwise."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedgrass.errors import ConfigurationError, first_problem
from fedgrass.partial import StepPlan
from fedgrass.protocol.asynchronous_settings import require_a_stream
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.codec_name import CodecName
from fedgrass.protocol.cohort_settings import CohortSettings, require_losses
from fedgrass.protocol.drift_settings import DriftSettings
from fedgrass.protocol.messages import FitTask, UpdateTask
from fedgrass.protocol.partial_settings import require_whole_figures
from fedgrass.protocol.personal_settings import PersonalSettings
from fedgrass.protocol.prices import Prices
from fedgrass.protocol.privacy_settings import Privacy as Privacy
from fedgrass.protocol.release_settings import Gate, Inference, Rollout
from fedgrass.protocol.run_settings import Schedule, Until
from fedgrass.protocol.secure_settings import Secure, require_sums_are_enough
from fedgrass.protocol.statistics_settings import Statistics, require_measurable, tells_sums
from fedgrass.protocol.strategy_settings import Strategy as Strategy
from fedgrass.strategies import Strategy as BuiltStrategy


class _Settings(BaseModel):
    # A misspelt setting must not pass silently: unlike messages, settings are written by hand.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Fit(FitTask):
    """Local training, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Update(UpdateTask):
    """Encoding of updates, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @field_validator("codec")
    @classmethod
    def _codec_exists(cls, name: str) -> str:
        CodecName.parse(name)
        return name


class Aggregation(_Settings):
    """The Processing job. Machines that are None are those of the fleet's stack."""

    instance_type: str | None = Field(default=None, max_length=40)
    instance_count: int | None = Field(default=None, ge=1, le=100)
    volume_gb: int = Field(default=30, ge=1, le=16384)
    timeout_seconds: int = Field(default=3600, ge=10, le=432_000)
    retry_larger: bool = Field(
        default=True, description="Retry a job that ran out of memory once, on a machine of twice the size"
    )


class Tracking(_Settings):
    """An MLflow tracking server that is told of each round."""

    uri: str = Field(
        default="",
        max_length=300,
        pattern=r"^(https?://[^\s@]+|arn:[a-z-]+:sagemaker:[a-z0-9-]+:\d{12}:mlflow-[a-z-]+/\S+)?$",
        description="Its address, or the ARN of SageMaker's; empty: none",
    )
    experiment: str = Field(default="", max_length=200, description="Name of the experiment; else the fleet's")


SiloName = Annotated[str, Field(pattern=r"^\d{12}-[a-zA-Z0-9:_-]{1,115}$")]


class FleetSettings(_Settings):
    """All settings of a fleet. Defaults suit a first round; an execution's input is laid over them."""

    # An execution's history holds 25,000 events, and a round writes some forty.
    rounds: int = Field(
        default=1, ge=1, le=100_000, description="Rounds to run one after the other; at most, with until"
    )
    task: Literal["fit", "evaluate", "statistics"] = Field(
        default="fit",
        description="evaluate: devices judge the current model on their own data, and nothing changes; statistics: they measure "
        "their data, and the round makes a profile of the fleet",
    )
    mode: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous",
        description="asynchronous: a stream of small rounds that waits for nobody; a device's update counts in the round that is "
        "open when it comes, for less if its base is old",
    )
    buffer_size: int = Field(
        default=10, ge=1, le=10_000_000, description="With mode asynchronous: updates that start an aggregation"
    )
    fraction: float = Field(default=1.0, gt=0, le=1, description="Share of the fleet that is asked")
    cohort: CohortSettings = Field(default_factory=CohortSettings)
    min_devices: int = Field(default=2, ge=1, description="Devices that must be able to train for a round to open")
    min_updates: int = Field(default=2, ge=1, description="Updates that a round needs to change anything")
    quorum: float = Field(
        default=1.0, gt=0, le=1, description="Share of the asked devices whose updates end the collecting"
    )
    deadline_seconds: int = Field(default=3600, ge=1, le=31_536_000)
    release: Literal["every_round", "on_improvement", "never"] = "every_round"
    release_every: int = Field(
        default=1,
        ge=1,
        description="Release only in rounds whose number is a multiple of it; others' models are just the next round's base",
    )
    until: Until = Field(default_factory=Until)
    prices: Prices = Field(default_factory=Prices)
    schedule: Schedule = Field(default_factory=Schedule)
    fit: Fit = Field(default_factory=Fit)
    update: Update = Field(default_factory=Update)
    personal: PersonalSettings = Field(default_factory=PersonalSettings)
    strategy: Strategy = Field(default_factory=Strategy)
    checks: Checks = Field(default_factory=Checks)
    privacy: Privacy = Field(default_factory=Privacy)
    gate: Gate = Field(default_factory=Gate)
    inference: Inference = Field(default_factory=Inference)
    aggregation: Aggregation = Field(default_factory=Aggregation)
    rollout: Rollout = Field(default_factory=Rollout)
    tracking: Tracking = Field(default_factory=Tracking)
    statistics: Statistics = Field(default_factory=Statistics)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    secure: Secure | None = Field(
        default=None, description="Secure aggregation: its helpers, and how updates are masked; null: none"
    )
    silos: tuple[SiloName, ...] = Field(
        default=(), max_length=500, description="Silos that take part, each <account>-<name>; others do not count"
    )

    @model_validator(mode="after")
    def _a_stream_can_flow(self) -> FleetSettings:
        if self.is_asynchronous:
            require_a_stream(self)
        return self

    @model_validator(mode="after")
    def _schedule_has_a_start(self) -> FleetSettings:
        if self.schedule.learning_rate.kind != "constant" and self.fit.learning_rate is None:
            raise ValueError("schedule.learning_rate: set fit.learning_rate, the value that it begins with")
        return self

    @model_validator(mode="after")
    def _job_has_a_price(self) -> FleetSettings:
        machine = self.aggregation.instance_type
        if self.until.dollars and machine and self.prices.of_machine(machine) is None:
            raise ValueError(f"until.dollars: prices.machines has no price for {machine} (aggregation.instance_type)")
        return self

    @model_validator(mode="after")
    def _partial_work_counts_as_what_it_is(self) -> FleetSettings:
        if self.fit.partial_margin_seconds and self.task == "fit":
            require_whole_figures(self)
        return self

    @model_validator(mode="after")
    def _can_be_met(self) -> FleetSettings:
        # From here on: combinations that each setting alone allows, and that could only fail later, on the devices or
        # in the job.
        if self.min_updates > self.min_devices:
            raise ValueError(
                f"min_updates ({self.min_updates}) is more than min_devices ({self.min_devices}): "
                "a round could open that can never succeed"
            )
        if self.update.noise_multiplier > 0:
            raise ValueError(
                "update.noise_multiplier: set privacy.mode to local instead, so that what is spent is counted"
            )
        if exact := self._exact_figures():
            raise ValueError(exact)
        if self.gate.devices_seconds >= self.aggregation.timeout_seconds:
            raise ValueError("gate.devices_seconds: the job waits for them, so less than aggregation.timeout_seconds")
        if self.privacy.mode == "central" and self.strategy.staleness > 0:
            raise ValueError(
                f"strategy {self.strategy.name}: with privacy.mode central a device counts once in a round, so late updates "
                "cannot be taken; set its option staleness to 0"
            )
        if self.privacy.mode != "none" and self.strategy.weighs_by_metrics:
            raise ValueError(
                f"strategy {self.strategy.name}: it weighs by a metric, and with privacy.mode {self.privacy.mode} updates carry "
                "none, or all count alike"
            )
        if self.privacy.mode == "central" and self.checks.max_norm_over_median > 0:
            raise ValueError(
                "checks.max_norm_over_median: with privacy.mode central one device's norm must not decide over another's "
                "update; use checks.max_norm"
            )
        return self

    def _exact_figures(self) -> str:
        """Say what would have devices send exact figures although only noise may leave them; empty if nothing would."""
        if self.privacy.mode not in ("local", "distributed"):
            return ""
        asking = {
            "privacy.figures": self.privacy.figures == "exact",
            "task evaluate": self.task == "evaluate",
            "gate.devices_seconds": self.gate.devices_seconds > 0,
        }
        found = next((name for name, asks in asking.items() if asks), "")
        return found and f"{found}: with privacy.mode {self.privacy.mode} no device may send exact figures of its data"

    @model_validator(mode="after")
    def _statistics_can_be_measured(self) -> FleetSettings:
        if self.task == "statistics":
            require_measurable(self)
        return self

    @model_validator(mode="after")
    def _one_thing_says_how_many_are_asked(self) -> FleetSettings:
        if self.cohort.size and self.fraction < 1:
            raise ValueError(
                f"cohort.size: fraction is {self.fraction:g}; set one of them, and the other to its default"
            )
        if 0 < self.cohort.size < self.min_updates:
            raise ValueError(
                f"cohort.size ({self.cohort.size}) is less than min_updates ({self.min_updates}): no round could succeed"
            )
        return self

    @model_validator(mode="after")
    def _losses_can_choose(self) -> FleetSettings:
        if self.cohort.chooses_by_loss:
            require_losses(self)
        return self

    @model_validator(mode="after")
    def _goes_with_what_the_strategy_sets(self) -> FleetSettings:
        if self.fit.control is not None:
            raise ValueError(f"fit.control: choose strategy {self.fit.control} instead, which sets it")
        if self.strategy.keeps_device_state and self.privacy.mode != "none":
            raise ValueError(
                f"strategy {self.strategy.name}: with privacy.mode {self.privacy.mode} the noise would add up in what devices "
                "and server keep; use fedavg or fedprox"
            )
        if "proximal_mu" in self.strategy.device_fit and self.fit.proximal_mu > 0:
            raise ValueError(f"fit.proximal_mu: strategy {self.strategy.name} sets it; use its option alpha")
        return self

    @model_validator(mode="after")
    def _goes_with_a_tree_of_noise(self) -> FleetSettings:
        if self.strategy.tree:
            name, privacy = self.strategy.name, self.privacy
            against = {
                f"privacy.mode {privacy.mode}": privacy.mode != "central",
                "privacy.adaptive_clip": privacy.adaptive_clip is not None,
                "privacy.secret_cohort": privacy.secret_cohort,
                "secure": self.secure is not None,
                f"fraction {self.fraction:g}": self.fraction < 1,
                "cohort": self.cohort != CohortSettings(),
            }
            found = next((what for what, is_so in against.items() if is_so), "")
            if found:
                raise ValueError(
                    f"{found}: strategy {name} has the aggregator's noise (privacy.mode central) from one tree over "
                    f"{self.strategy.tree} rounds, each of which asks another part of the fleet"
                )
        return self

    @property
    def is_asynchronous(self) -> bool:
        """Whether an update may count in a later round than its own; a round that does not train is never so."""
        return self.mode == "asynchronous" and self.task == "fit"

    @property
    def may_end_early(self) -> bool:
        """Whether a run may be over before its rounds are."""
        return self.until.ends or self.privacy.epsilon_budget > 0

    @property
    def max_age(self) -> int:
        """Rounds after its own in which an update still counts, and for which a device goes on training."""
        return self.strategy.staleness if self.is_asynchronous else 0

    @property
    def sampled_fraction(self) -> float:
        """Share of the fleet by which a round's privacy is counted: all of it, where nobody draws by chance alone."""
        # Amplification needs each device to be in by an independent draw, which a fixed size, turns and tags are not.
        return 1.0 if self.cohort.size or self.cohort.fair or self.cohort.where else self.fraction

    @property
    def promised_noise(self) -> float | None:
        """What devices are told of noise that they do not add themselves, in units of the clipping norm; None: there is none."""
        if self.task == "evaluate" or self.privacy.mode not in ("central", "distributed"):
            return None
        # Of a tree a device's update is in a node of each level, so its part in it has as much less noise.
        levels = self.strategy.tree.bit_length() if self.task == "fit" else 0
        return self.privacy.noise_multiplier / math.sqrt(max(1, levels))

    def at_round(self, number: int, first: int) -> FleetSettings:
        """Return these settings as one round has them, by the schedule.

        Parameters
        ----------
        number
            The round.
        first
            The first round of its run.
        """
        done = number - (first if self.schedule.since is None else self.schedule.since)
        rate, epochs = self.schedule.values(self.fit.learning_rate, self.fit.epochs, max(0, done))
        if (rate, epochs) == (self.fit.learning_rate, self.fit.epochs):
            return self
        return self.model_copy(update={"fit": self.fit.model_copy(update={"learning_rate": rate, "epochs": epochs})})

    @property
    def takes_partial_work(self) -> bool:
        """Whether updates may be of a part of a training."""
        return self.fit.partial_margin_seconds > 0 and self.task == "fit"

    def step_plan(self, batch_size: int) -> StepPlan | None:
        """Return how many steps a training has, where updates may be of a part of one; None where each is whole."""
        return StepPlan(self.fit.epochs, batch_size) if self.takes_partial_work else None

    def made_strategy(self) -> BuiltStrategy:
        """Return the strategy as these settings have it; raises `ConfigurationError` if it is not installed here."""
        found = self.strategy.made()
        return found.with_partial_work() if self.takes_partial_work else found

    @property
    def announced_fit(self) -> FitTask:
        """How devices are told to train: as ``fit`` says, with what the strategy sets."""
        return self.fit.model_copy(update=dict(self.strategy.device_fit))

    @model_validator(mode="after")
    def _sums_are_enough(self) -> FleetSettings:
        if self.secure is None and self.privacy.mode == "distributed":
            raise ValueError(
                "privacy.mode distributed: the helpers of secure aggregation add the noise, and the fleet has none; pin some "
                "with `fedgrass fleet helpers`, or set privacy.mode to central"
            )
        if self.secure is not None:
            require_sums_are_enough(self, self.strategy.known())
        return self

    @property
    def announced_update(self) -> UpdateTask:
        """What devices are told of encoding: with privacy, to clip, and to add noise if it is theirs to add."""
        privacy = self.privacy
        if self.task == "statistics":
            return self._announced_sums
        if privacy.mode == "none":
            return self.update
        # The tighter of the two: the account holds for any bound up to its own.
        clip_norm = min(privacy.clip_norm, self.update.clip_norm or privacy.clip_norm)
        if privacy.adaptive_clip is not None:
            clip_norm = self.update.clip_norm  # the aggregator clips, and has to see which updates are longer
        noise_multiplier = privacy.noise_multiplier if privacy.mode == "local" else 0.0
        figures = "left_out" if "left_out" in (privacy.figures, self.update.figures) else "exact"
        return self.update.model_copy(
            update={"clip_norm": clip_norm, "noise_multiplier": noise_multiplier, "figures": figures}
        )

    @property
    def _announced_sums(self) -> UpdateTask:
        """What devices are told of encoding statistics: as an update, but for the codec, which would round counts."""
        if not tells_sums(self):
            return UpdateTask()
        privacy = self.privacy
        return UpdateTask(
            clip_norm=privacy.clip_norm if privacy.mode != "none" else 0.0,
            noise_multiplier=privacy.noise_multiplier if privacy.mode == "local" else 0.0,
            # Nothing of a device's data goes beside its sums, in its heartbeat neither.
            figures="left_out",
        )

    def overridden(self, changes: dict[str, Any]) -> FleetSettings:
        """Return these settings with ``changes`` laid over them, objects merged key by key; another strategy has no options yet.

        Raises
        ------
        ConfigurationError
            Naming the first setting that is unknown or out of range.
        """
        base, strategy = self.model_dump(), changes.get("strategy")
        # The options of one strategy mean nothing to another, and nobody could take them away again.
        if isinstance(strategy, dict) and strategy.get("name", self.strategy.name) != self.strategy.name:
            base["strategy"]["options"] = {}
        try:
            return FleetSettings.model_validate(laid_over(base, changes))
        except ValidationError as error:
            raise ConfigurationError(first_problem(error, "settings", found=True)) from error


def laid_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` over it, objects merged key by key; an empty one takes all that was below it back."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        # Lists are replaced as a whole: there is no telling which of their items is meant.
        # Merged, an empty object would say nothing, and a name of the user's own, such as a tag, could never be taken back.
        merged[key] = (
            laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) and value else value
        )
    return merged

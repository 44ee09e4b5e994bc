"""What a simulation is: everything that its result depends on, and nothing else."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedgrass.data_settings import way_with_missing
from fedgrass.errors import ConfigurationError, first_problem
from fedgrass.parts import ATTACKS
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.attacks import Kind, attack_named

_KEEPS_BACK = 0.2  # as com.fedgrass.Runtime's validationFraction

MOST_GROUPS = 100
"""Models that a simulation has at most."""

PartitionKind = Literal["iid", "dirichlet", "shards"]


@dataclass(frozen=True)
class Attack:
    """What some of the devices do: ``kind[:share[:factor]]``, of `ATTACKS`, or one's own ``module:function``."""

    kind: str
    share: float
    factor: float

    @classmethod
    def parse(cls, text: str) -> Attack:
        """Read ``sign_flip:0.2``; raises `ValueError` with what was expected."""
        name, *rest = text.split(":")
        # `module:function:0.2`: the second part is a name, not a share, unless the first is a known attack.
        if name not in ATTACKS and rest and re.fullmatch(r"[a-zA-Z_]\w*", rest[0]):
            name, rest = f"{name}:{rest[0]}", rest[1:]
        try:
            known = attack_named(name)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        if len(rest) > 2:
            raise ValueError(f"attack {text!r}: expected KIND:SHARE:FACTOR")
        # What is not given has its default: a fifth of the devices, and the attack's own factor.
        share, factor = (*map(_number, rest), *(0.2, known.factor)[len(rest) :])
        if not 0 <= share <= 1:
            raise ValueError(f"attack {text!r}: the share of attackers must lie between 0 and 1")
        return cls(name, share, factor)

    @property
    def does(self) -> Kind:
        """What attackers of this kind do."""
        return attack_named(self.kind)


@dataclass(frozen=True)
class Stragglers:
    """A share of the devices that needs so many times as long: ``share:factor``, as in ``0.2:5x``.

    With ``:lognormal`` each of them has a factor of its own, once and for all: from 1 to ``factor``, log-normal in between.
    """

    share: float
    factor: float
    spread: bool = False

    @classmethod
    def parse(cls, text: str) -> Stragglers:
        """Read ``0.2:5x``; raises `ValueError` with what was expected."""
        match = re.fullmatch(r"([0-9.]+):([0-9.]+)x?(:lognormal)?", text)
        if match is None or not 0 <= _number(match[1]) <= 1 or _number(match[2]) < 1:
            raise ValueError(f"stragglers {text!r}: expected SHARE:FACTOR, such as 0.2:5x, or 0.5:10x:lognormal")
        return cls(_number(match[1]), _number(match[2]), match[3] is not None)


@dataclass(frozen=True)
class PartitionScheme:
    """How labels are spread over devices: ``iid``, ``dirichlet:ALPHA`` or ``shards:LABELS``."""

    kind: PartitionKind
    value: float

    @classmethod
    def parse(cls, text: str) -> PartitionScheme:
        """Read ``dirichlet:0.3``; raises `ValueError` with what was expected."""
        kind, *numbers = text.split(":")
        if kind == "iid" and not numbers:
            return cls("iid", 0.0)
        value = _number(numbers[0]) if len(numbers) == 1 else 0.0
        if kind == "dirichlet" and value > 0:
            return cls("dirichlet", value)
        if kind == "shards" and value >= 1 and value.is_integer():
            return cls("shards", value)
        raise ValueError(f"partition {text!r}: expected iid, dirichlet:ALPHA or shards:LABELS, such as dirichlet:0.3")


@dataclass(frozen=True)
class Grouping:
    """Which devices have a model in common: ``tag:NAME``, one for each value of the tag; or ``clusters:K``, chosen by each."""

    tag: str = ""
    clusters: int = 0

    @classmethod
    def parse(cls, text: str) -> Grouping:
        """Read ``clusters:4``; raises `ValueError` with what was expected."""
        kind, _, value = text.partition(":")
        if kind == "tag" and value:
            return cls(tag=value)
        if kind == "clusters" and value.isascii() and value.isdigit() and 1 <= int(value) <= MOST_GROUPS:
            return cls(clusters=int(value))
        raise ValueError(f"groups {text!r}: expected tag:NAME or clusters:K, with K from 1 to {MOST_GROUPS}")


class Simulation(BaseModel):
    """One simulation. The same one gives the same models and the same reports, however many processes work on it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    parameters_sha256: str = Field(description="Of the model that it starts from")
    graph_sha256: str
    data: str = Field(default="", description="Where the examples are; empty for scikit-learn's digits")
    loader: str = Field(default="", description="As of com.fedgrass.Runtime's data; empty: by the kind of file")
    label: str = ""
    missing: Annotated[str, AfterValidator(way_with_missing)] = Field(
        default="refuse", description="As of com.fedgrass.Runtime's data; a profile counts missing values instead"
    )
    held_out: float = Field(default=0.2, gt=0, lt=1, description="Share of the examples that judges the models")
    evaluation: str = Field(default="", description="Examples that judge the models, in place of a share of the data")
    validation: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of its examples that each device keeps back to judge models on; None: 0.2 where devices have models "
        "of their own or in groups, else 0",
    )
    devices: int = Field(default=1000, ge=1, le=10_000_000)
    examples: int = Field(default=40, ge=0, le=1_000_000, description="Of each device, drawn; 0 divides all of them")
    tag: str = Field(
        default="",
        description="Array beside x and y, or .npy file, with a value for each example: each device has examples of one value",
    )
    partition: str = "dirichlet:0.3"
    cohort: int = Field(default=50, ge=1, description="Devices that are asked in each round")
    rounds: int = Field(default=20, ge=1, le=999_999)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the asked that never answers")
    stragglers: str = ""
    attack: str = ""
    groups: str = Field(
        default="",
        description="Devices with models of their own: tag:NAME, one for each value of the tag; clusters:K, of which each device "
        "takes the one that fits its examples best; empty: one model for all",
    )
    engine: str = "litert"
    builder: str = ""
    fleet: FleetSettings

    @model_validator(mode="after")
    def _can_be_read_and_met(self) -> Simulation:
        # Only tried here, for the message; who needs the parts reads them again.
        PartitionScheme.parse(self.partition)
        if self.stragglers:
            Stragglers.parse(self.stragglers)
        if self.attack:
            Attack.parse(self.attack)
        if self.fleet.privacy.adaptive_clip is not None:
            raise ValueError(
                "privacy.adaptive_clip: a simulation keeps clip_norm as it is; set it to null, and try several"
            )
        if self.asked > self.devices:
            raise ValueError(f"cohort {self.asked}: there are only {self.devices} devices")
        if self.fleet.min_updates > self.asked:
            raise ValueError(f"min_updates {self.fleet.min_updates} is more than the cohort of {self.asked}")
        if self.fleet.cohort.where or self.fleet.cohort.min_examples:
            raise ValueError(
                "cohort.where, cohort.min_examples: virtual devices have no tags; these are for a real fleet"
            )
        if self.groups and self.fleet.until.ends:
            raise ValueError("until: groups have models of their own, which are not done together; simulate without it")
        if self.fleet.task != "fit":
            raise ValueError(f"task {self.fleet.task}: a simulation trains")
        self._require_countable()
        if self.groups:
            self._require_groups(Grouping.parse(self.groups))
        return self

    def _require_countable(self) -> None:
        """Raise `ValueError` for a budget that no rounds, or not those of one account, could be held against."""
        privacy = self.fleet.privacy
        if self.fleet.until.dollars:
            raise ValueError("until.dollars: a simulation has no account to pay; set it to 0")
        if privacy.epsilon_budget > 0 and privacy.mode == "none":
            raise ValueError(
                "privacy.epsilon_budget: rounds without noise have no finite ε; set privacy.mode, or the budget to 0"
            )
        if privacy.epsilon_budget > 0 and self.groups:
            raise ValueError("privacy.epsilon_budget: each group's model would have an account of its own; set it to 0")

    @model_validator(mode="after")
    def _can_choose_by_loss(self) -> Simulation:
        """Raise `ValueError` for what would have to know a round's devices before those of the round before reported."""
        fleet = self.fleet
        if not fleet.cohort.chooses_by_loss:
            return self
        against = {
            f"groups {self.groups}: who chose which model is not known": bool(self.groups),
            f"strategy {fleet.strategy.name}: it takes late updates, which a simulation plans rounds ahead": (
                fleet.strategy.staleness > 0
            ),
            f"attack {self.attack}: its devices know all updates of a round": bool(
                self.attack and Attack.parse(self.attack).does.omniscient
            ),
        }
        found = next((why for why, is_so in against.items() if is_so), "")
        if found:
            raise ValueError(f"cohort.by_loss: a simulation cannot choose by loss with {found}")
        return self

    def _require_groups(self, grouping: Grouping) -> None:
        """Raise `ValueError` for what does not go with groups."""
        fleet = self.fleet
        if grouping.tag and self.tag not in ("", grouping.tag):
            raise ValueError(f"groups {self.groups}: the data are divided by tag {self.tag!r}; name one of them")
        if self.validation == 0:
            raise ValueError(
                f"groups {self.groups}: devices judge the models, so each keeps examples back; not validation 0"
            )
        if fleet.is_asynchronous:
            raise ValueError(f"groups {self.groups}: rounds wait in all groups; not with mode asynchronous")
        if fleet.strategy.tree:
            raise ValueError(
                f"groups {self.groups}: strategy {fleet.strategy.name} counts on its circle of rounds, of which groups have parts"
            )
        if grouping.clusters and fleet.strategy.keeps_device_state:
            raise ValueError(
                f"groups {self.groups}: strategy {fleet.strategy.name} keeps on devices what belongs to one model, and devices "
                "change theirs; use groups by tag, or another strategy"
            )
        if self.attack and Attack.parse(self.attack).does.omniscient:
            raise ValueError(
                f"groups {self.groups}: attack {self.attack} is of those that know all updates of a round; use another"
            )

    @property
    def data_tag(self) -> str:
        """The array by which devices differ; empty if there is none."""
        return self.tag or (Grouping.parse(self.groups).tag if self.groups else "")

    @property
    def validation_share(self) -> float:
        """Share of its examples that each device keeps back."""
        if self.validation is not None:
            return self.validation
        return _KEEPS_BACK if self.groups or self.fleet.personal.mode != "none" else 0.0

    @property
    def asked(self) -> int:
        """Devices that are asked in each round: with ``cohort.size`` of the fleet's settings, so many more than that, or all.

        With a tree of noise about so many: each round has another part of the fleet.
        """
        if rounds := self.fleet.strategy.tree:
            return max(1, self.devices // rounds)
        wanted = self.fleet.cohort
        # 1e-9: 100 * 1.1 is a little more than 110.
        return min(math.ceil(wanted.size * wanted.over_ask - 1e-9), self.devices) or self.cohort

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Simulation:
        """Make one of what a user asked for; raises `ConfigurationError` naming what is wrong first."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigurationError(f"simulation: {first_problem(error, 'options')}") from error

    def difference(self, other: Simulation) -> str:
        """Return the name of the first setting, the number of rounds aside, in which two differ; empty if there is none."""
        return next((n for n in type(self).model_fields if n != "rounds" and getattr(self, n) != getattr(other, n)), "")


def parse_strategy(text: str) -> dict[str, Any]:
    """Read ``NAME[:option=value,…]``, or a Flower strategy's ``module:Class[:option=value,…]``, as settings have it."""
    match = re.fullmatch(r"(?P<name>.+?)(?::(?P<options>\w+=.*))?", text)
    if match is None:
        raise ConfigurationError("strategy: expected a name, such as fedavg or fedadam:learning_rate=0.05")
    options = {}
    # Only at commas that another option follows: values may be lists.
    for part in re.split(r",(?=\w+=)", match["options"] or ""):
        name, _, value = part.partition("=")
        if name:
            options[name] = _value(value)
    return {"name": match["name"], "options": options}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None

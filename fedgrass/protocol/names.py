"""Names that both sides must spell alike: components, topics, object keys, versions."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fedgrass.errors import ConfigurationError, MessageError

# As the template's parameter Fleet: SageMaker's names are the shortest.
FleetName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,39}$")]
# A topic holds both names and must stay within IoT Core's 256 characters.
ThingName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9:_-]{1,128}$")]
# Six digits, as in object keys: their order as text is then their order as numbers.
RoundNumber = Annotated[int, Field(ge=1, le=999_999)]
_VERSION = r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$"
Version = Annotated[str, Field(pattern=_VERSION)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

TRAINER = "com.fedgrass.Trainer"
MODEL_DEPLOYER = "com.fedgrass.ModelDeployer"
HEARTBEAT = "com.fedgrass.Heartbeat"
RUNTIME = "com.fedgrass.Runtime"
GLOBAL_MODEL = "com.fedgrass.GlobalModel"
SCORE = "score.json"
"""File of how an anomaly detector scores: in its inference model, and beside the application's with the device's threshold."""
SUITE = "com.fedgrass.Suite"

MODEL_ACTIVE_TOPIC = "fedgrass/model/active"
MODEL_ADMISSION_TOPIC = "fedgrass/model/admission"
TRAINER_STATUS_TOPIC = "fedgrass/trainer/status"
APPLICATION_TOPIC = "fedgrass/application/status"

TRAINER_COMMANDS = frozenset({"get_parameters", "set_parameters", "fit", "evaluate", "sum"})
MODEL_DEPLOYER_COMMANDS = frozenset({"roll_back"})

SILO_NAME = re.compile(r"\d{12}-")
"""What silos' names begin with: their account's number."""

DeviceChannel = Literal["heartbeat", "update", "model", "reply", "command"]

_DEVICE_TOPIC = re.compile(
    r"fedgrass/([a-zA-Z0-9_-]{1,64})/devices/([a-zA-Z0-9:_-]{1,128})/(heartbeat|update|model|reply|command)"
)
_UPDATE_KEY = re.compile(r"updates/([a-zA-Z0-9_-]{1,64})/([0-9]{6})/([a-zA-Z0-9:_-]{1,128})/update\.safetensors")

UPDATE_FILE = "update.safetensors"
PARAMETERS_FILE = "parameters.safetensors"


def check_fleet(fleet: str) -> str:
    """Return the name, or raise `ConfigurationError` if it cannot be a fleet's."""
    try:
        return TypeAdapter(FleetName).validate_python(fleet)
    except ValidationError as error:
        raise ConfigurationError(
            f"fleet {fleet!r}: expected 1 to 40 letters, digits, '_' or '-', the first a letter or a digit"
        ) from error


def check_thing(thing: str) -> str:
    """Return the name, or raise `ConfigurationError` if it cannot be a thing's."""
    try:
        return TypeAdapter(ThingName).validate_python(thing)
    except ValidationError as error:
        raise ConfigurationError(f"thing {thing!r}: expected 1 to 128 letters, digits, ':', '_' or '-'") from error


def check_device(thing: str) -> str:
    """Return the name, or raise `ConfigurationError` if it cannot be a device's, as one cannot that reads like a silo's."""
    if SILO_NAME.match(check_thing(thing)):
        raise ConfigurationError(
            f"thing {thing!r}: a name that begins with twelve digits and a hyphen is a silo's, and counts only where the fleet's "
            "settings list it; give the device another"
        )
    return thing


def fleet_digest(fleet: str) -> str:
    """Return 16 characters that stand for a fleet where its own name is too long, or would not be told from another's."""
    # 64 bits: two of an account's fleets do not meet by chance.
    return hashlib.sha256(fleet.encode()).hexdigest()[:16]


def job_prefix(fleet: str) -> str:
    """Return what the names of a fleet's Processing jobs, and of no other's, begin with.

    >>> job_prefix("mill")
    'fedgrass-901fac08e3b464b1-'
    """
    return f"fedgrass-{fleet_digest(fleet)}-"


def round_topic(fleet: str) -> str:
    """Topic of the retained announcement."""
    return f"fedgrass/{fleet}/round"


def device_topic(fleet: str, thing: str, channel: DeviceChannel) -> str:
    """Topic of one device's channel.

    Parameters
    ----------
    fleet
        The fleet's name.
    thing
        The device's thing name; the policy of its certificate allows it these topics alone.
    channel
        What is said there.

    Returns
    -------
    str
        The topic, without wildcards.

    Examples
    --------
    >>> device_topic("mill", "press-7", "update")
    'fedgrass/mill/devices/press-7/update'
    """
    return f"fedgrass/{fleet}/devices/{thing}/{channel}"


@dataclass(frozen=True)
class DeviceTopic:
    """A device topic taken apart."""

    fleet: str
    thing: str
    channel: str


def parse_device_topic(topic: str) -> DeviceTopic:
    """Take a device topic apart; raises `MessageError` for any other topic."""
    match = _DEVICE_TOPIC.fullmatch(topic)
    if match is None:
        raise MessageError(f"topic {topic!r}: expected fedgrass/<fleet>/devices/<thing>/<channel>")
    return DeviceTopic(*match.groups())


def defender_topic(thing: str) -> str:
    """Topic of a thing's own metrics report to AWS IoT Device Defender."""
    return f"$aws/things/{thing}/defender/metrics/json"


def update_prefix(fleet: str, number: int) -> str:
    """Return the prefix under which a round's updates arrive."""
    return f"updates/{fleet}/{number:06d}/"


def update_key(fleet: str, number: int, thing: str) -> str:
    """Object key of one device's update.

    Parameters
    ----------
    fleet
        The fleet's name.
    number
        The round, from 1.
    thing
        The device's thing name.

    Returns
    -------
    str
        The key; the same for every attempt of the device, so that a repeated upload replaces the first.

    Examples
    --------
    >>> update_key("mill", 7, "press-7")
    'updates/mill/000007/press-7/update.safetensors'
    """
    return f"{update_prefix(fleet, number)}{thing}/{UPDATE_FILE}"


@dataclass(frozen=True)
class UpdateKey:
    """An update's object key taken apart."""

    fleet: str
    round: int
    thing: str


def parse_update_key(key: str) -> UpdateKey:
    """Take an update's key apart; raises `MessageError` for any other key."""
    match = _UPDATE_KEY.fullmatch(key)
    if match is None:
        raise MessageError(f"key {key!r}: expected updates/<fleet>/<round>/<thing>/{UPDATE_FILE}")
    fleet, number, thing = match.groups()
    return UpdateKey(fleet, int(number), thing)


def command_key(fleet: str, thing: str, command: str) -> str:
    """Object key of the parameters that a command gives: where a device may write anyway, and no round looks.

    Parameters
    ----------
    fleet
        The fleet's name.
    thing
        The device's thing name.
    command
        The command's id.

    Returns
    -------
    str
        The key.

    Examples
    --------
    >>> command_key("mill", "press-7", "c1")
    'updates/mill/commands/press-7/c1/parameters.safetensors'
    """
    return f"updates/{fleet}/commands/{thing}/{command}/{PARAMETERS_FILE}"


def sum_prefix(fleet: str) -> str:
    """Return the prefix of what helpers are asked to sum."""
    return f"secure/{fleet}/"


def sum_request_key(fleet: str, number: int, helper: str) -> str:
    """Object key of the set of devices that a helper is asked to sum the masks of, in a round.

    Parameters
    ----------
    fleet
        The fleet's name.
    number
        The round's.
    helper
        The helper's thing name.

    Examples
    --------
    >>> sum_request_key("mill", 7, "press-7")
    'secure/mill/000007/press-7.json'
    """
    return f"{sum_prefix(fleet)}{number:06d}/{helper}.json"


def sum_command(number: int, digest: str) -> str:
    """Return the id under which a helper answers for a set of devices.

    >>> sum_command(7, "ab" * 32)
    'sum-000007-abababababababab'
    """
    return f"sum-{number:06d}-{digest[:16]}"


def model_prefix(fleet: str, version: str) -> str:
    """Prefix of a model bundle."""
    return f"models/{fleet}/{version}/"


def parameters_key(fleet: str, version: str) -> str:
    """Object key of a model's parameters."""
    return f"{model_prefix(fleet, version)}{PARAMETERS_FILE}"


def report_prefix(fleet: str, number: int) -> str:
    """Prefix of what the aggregator writes about a round."""
    return f"reports/{fleet}/{number:06d}/"


def report_key(fleet: str, number: int) -> str:
    """Object key of a round's report."""
    return f"{report_prefix(fleet, number)}report.json"


def check_key(fleet: str, number: int) -> str:
    """Object key of which devices' boxes the helpers of secure aggregation could open; the first job that asked writes it."""
    return f"{report_prefix(fleet, number)}boxes.json"


def partial_prefix(fleet: str, number: int) -> str:
    """Prefix of what a job's instances tell each other about a round; the bucket's lifecycle ends what the job leaves there."""
    return f"partial/{fleet}/{number:06d}/"


def evaluation_key(fleet: str) -> str:
    """Object key of the operator's evaluation set (a ``.npz`` with ``x`` and ``y``); it need not exist."""
    return f"evaluation/{fleet}/data.npz"


def next_version(base: str, number: int) -> str:
    """Version that round ``number`` gives a model: the base's major (its graph), the round as minor.

    >>> next_version("1.0.0", 7)
    '1.7.0'
    """
    # Another graph is another major version: its parameters fit no update of the former's.
    major = base.split(".", 1)[0]
    return f"{major}.{number}.0"


def is_version(text: str) -> bool:
    """Whether a text is a model's version."""
    return re.fullmatch(_VERSION, text) is not None


def version_order(version: str) -> tuple[int, ...]:
    """Key to sort versions by."""
    return tuple(int(part) for part in version.split("."))

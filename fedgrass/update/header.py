"""What an update says about itself, as the string metadata of its safetensors file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import UpdateError, first_field, first_problem
from fedgrass.protocol.message import Metrics
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, ThingName

Reason = Literal[
    "unexpected_key",
    "duplicate",
    "replayed",
    "missing",
    "too_large",
    "truncated",
    "corrupt_header",
    "wrong_schema",
    "unknown_codec",
    "bad_examples",
    "wrong_fleet",
    "wrong_round",
    "foreign_thing",
    "uninvited",
    "unknown_thing",
    "wrong_base",
    "wrong_graph",
    "wrong_parameters",
    "wrong_shape",
    "wrong_dtype",
    "corrupt_data",
    "not_finite",
    "norm_exceeded",
    "missing_metric",
    "implausible_steps",
    "unopened_seeds",
    "small_group",
    "implausible_group",
]
"""Why an update is refused: stable codes, counted in reports; docs/reference/quarantine.md tells the cause of each."""

MAX_EXAMPLES = 1 << 53
# Header, 16 metrics and the boxes of a masked update.
MAX_METADATA_BYTES = 8192

_COMPACT = json.JSONEncoder(separators=(",", ":"))
_WHOLE_NUMBER = re.compile(
    "[1-9][0-9]{0,18}"
)  # as it is written: no sign, point, space, underscore, or another script's digits


def _metrics(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    # JSON lets a name occur twice, and readers differ in which they take.
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    for name, value in pairs:
        if type(value) not in (int, float):  # bool is an int to isinstance, and pydantic takes text for numbers
            raise ValueError(f"{name[:40]!r} is not a number")
    return found


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not a number")


# Python's own decoder takes NaN and Infinity, which JSON does not have.
_METRICS = json.JSONDecoder(object_pairs_hook=_metrics, parse_constant=_no_constant)

# A field that is wrong has its own code where that helps to find the cause.
_REASONS: dict[str, Reason] = {
    "schema": "wrong_schema",
    "codec": "unknown_codec",
    "num_examples": "bad_examples",
}


class UpdateHeader(BaseModel):
    """An update's identity and what the device claims of it: the aggregator checks all of it."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    schema_: Literal["1"] = Field(default="1", alias="schema")
    fleet: FleetName
    round: RoundNumber
    thing: ThingName
    base_sha256: Sha256 = Field(description="Digest of the parameter file that this is a difference from")
    graph_sha256: Sha256
    num_examples: int = Field(ge=1, le=MAX_EXAMPLES)
    metrics: Metrics = {}
    codec: str = Field(default="float32", min_length=1, max_length=40)

    @property
    def rounding_seed(self) -> int:
        """Seed of what is rounded at random: an update that is written again is the same. The first 16 bytes of SHA-256."""
        text = f"{self.fleet}/{self.round}/{self.thing}/{self.base_sha256}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")

    def to_metadata(self) -> dict[str, str]:
        """Return the safetensors metadata; the same header gives the same strings."""
        fields = {name.rstrip("_"): str(value) for name, value in vars(self).items() if name != "metrics"}
        return {**fields, "metrics": _COMPACT.encode(dict(sorted(self.metrics.items())))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> UpdateHeader:
        """Read the metadata of an update file.

        Raises
        ------
        UpdateError
            With the code of the first field that is wrong.
        """
        document: dict[str, object] = dict(metadata)
        if "schema" not in document:
            raise UpdateError("corrupt_header", "the metadata lack 'schema': this is not an update file")
        # Before pydantic, which reads " 7", "7.0" and "1_000" as numbers, too.
        for name in ("round", "num_examples"):
            if _WHOLE_NUMBER.fullmatch(metadata.get(name, "1")) is None:
                reason = _REASONS.get(name, "corrupt_header")
                raise UpdateError(reason, f"header field {name}: {metadata[name][:40]!r} is not a whole number from 1")
        try:
            document["metrics"] = _METRICS.decode(metadata.get("metrics", "{}"))
            return cls.model_validate(document)
        except ValidationError as error:
            reason = _REASONS.get(first_field(error), "corrupt_header")
            raise UpdateError(reason, first_problem(error, "header", prefix="header field ")) from error
        except (ValueError, RecursionError) as error:
            raise UpdateError(
                "corrupt_header", f"header field metrics: expected a JSON object of numbers ({error})"
            ) from error

"""What every message is: UTF-8 JSON of at most 4,096 bytes, published as a binary message, and the kinds of its fields.

The bound is nucleus lite's: beyond it the connection or the subscription is dropped without a word. Unknown fields are
ignored, so that old devices survive new clouds.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from fedgrass.errors import MessageError, first_problem
from fedgrass.protocol.sums import MAX_TEXT

MAX_MESSAGE_BYTES = 4096

M = TypeVar("M", bound="Message")

Reason = Annotated[str, Field(max_length=500)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
MOST_METRICS, LONGEST_METRIC = 16, 40
"""How many figures a message holds, and the letters of the longest name."""
Metrics = Annotated[dict[Annotated[str, Field(max_length=LONGEST_METRIC)], Finite], Field(max_length=MOST_METRICS)]
ClassWeights = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)],
    ],
    Field(max_length=64),
]
ConfigName = Annotated[str, Field(min_length=1, max_length=64)]
_Int = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)]


# Pydantic's strict float takes whole numbers too, and a config record of Flower's takes no list of both kinds.
def _no_whole_number(value: object) -> object:
    if isinstance(value, int):
        raise ValueError("expected a number with a decimal point, or all of them whole numbers below 2^63")
    return value


_Float = Annotated[StrictFloat, BeforeValidator(_no_whole_number), Field(allow_inf_nan=False)]
_Str = Annotated[StrictStr, Field(max_length=200)]
ConfigValue = StrictBool | _Int | _Float | _Str | list[StrictBool] | list[_Int] | list[_Float] | list[_Str]
SumsText = Annotated[str, Field(max_length=MAX_TEXT)]
TagName = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]{0,31}$")]
TagValue = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,40}$")]
Tags = Annotated[dict[TagName, TagValue], Field(max_length=8)]
Where = Annotated[
    dict[TagName, Annotated[tuple[TagValue, ...], Field(min_length=1, max_length=8)]], Field(max_length=4)
]
ComponentVersion = Annotated[str, Field(max_length=64)]
LastError = Annotated[str, Field(max_length=200)]
CommandId = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ObjectKey = Annotated[str, Field(min_length=1, max_length=1024)]


def as_reason(text: str, most: int = 500) -> str:
    """Cut a text to what a `Reason` holds; bytes of a file name that are not text become question marks.

    Parameters
    ----------
    most
        Bytes that it may take in a message: a letter takes up to four there, a control character six.
    """
    # Lone surrogates, as of file names that are not UTF-8, cannot be encoded.
    text = text.encode(errors="replace").decode()[:most]
    taken = 0
    for index, letter in enumerate(text):
        # As the message will hold it, escapes included: the bound is on bytes on the wire, not on characters.
        taken += len(json.dumps(letter, ensure_ascii=False).encode()) - 2
        if taken > most:
            return text[:index]
    return text


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)


class Message(Part):
    """Base of every message: ``schema`` is 1 until a change that old readers could not survive."""

    schema_: Literal[1] = Field(default=1, alias="schema")

    def encode(self) -> bytes:
        """Return the message's bytes; raises `MessageError` if they pass the bound."""
        payload = self.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(payload) > MAX_MESSAGE_BYTES:
            raise MessageError(
                f"{type(self).__name__}: {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} reach every nucleus. "
                "Put what is larger into S3 and name it by key and digest"
            )
        return payload

    @classmethod
    def decode(cls: type[M], payload: bytes) -> M:
        """Read a message; raises `MessageError` naming the field that is wrong."""
        if len(payload) > MAX_MESSAGE_BYTES:
            raise MessageError(f"{cls.__name__}: {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are accepted")
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise MessageError(f"{cls.__name__}: {first_problem(error)}") from error

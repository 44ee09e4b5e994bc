"""The list of a round's updates, fixed by the first job that lists them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.ending.in_time import list_key
from fedgrass.errors import TransferError
from fedgrass.noise import SEED_BYTES
from fedgrass.protocol.report import QuarantinedEntry

# Some 300 bytes for each of a million updates.
_MOST_BYTES = 1 << 29


class UpdateList(BaseModel):
    """``updates.json``: what a round's result depends on."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    schema_: int = Field(default=1, alias="schema")
    updates: tuple[UpdateReference, ...]
    refused: tuple[QuarantinedEntry, ...] = Field(
        default=(), description="What was no update of the fleet's, by its name"
    )
    more: int = Field(default=0, ge=0, description="How much more of that there was")
    noise_seed: str = Field(pattern="^[0-9a-f]{64}$", description="Of central privacy: the same noise after a restart")


def pin_update_list(
    bucket: Bucket,
    fleet: str,
    number: int,
    found: Sequence[UpdateReference],
    refused: Sequence[QuarantinedEntry] = (),
    more: int = 0,
    *,
    noise_seed: str = "",
) -> UpdateList:
    """Fix the round's list of updates: the one that exists, or else this one.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    fleet
        The fleet's name.
    number
        The round.
    found
        The updates to combine, in any order.
    refused
        What was refused by its name.
    more
        How much more of that there was, beyond what ``refused`` names.
    noise_seed
        That of the rounds before, if they share a tree of noise; a new one is drawn else.

    Returns
    -------
    UpdateList
        The list that counts, with the seed of the round's noise.

    Raises
    ------
    TransferError
        If what is there is no list.
    """
    key = list_key(fleet, number)
    ordered = tuple(sorted(found, key=lambda reference: reference.key))
    # The seed is drawn here and counts only if this list is the one that stays: a job that runs again must draw the
    # same noise.
    seed = noise_seed or secrets.token_hex(SEED_BYTES)
    ours = UpdateList(updates=ordered, refused=tuple(refused), more=more, noise_seed=seed)
    # Written on condition that there is none (If-None-Match): of two jobs the first decides, and both go on with its
    # list.
    return _parsed(bucket, key, bucket.write_first(key, ours.model_dump_json(by_alias=True, indent=1).encode()))


def seed_before(bucket: Bucket, fleet: str, number: int) -> str:
    """Return the seed of the noise of the round before, whose tree of noise a round goes on with.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    fleet
        The fleet's name.
    number
        The round that goes on.

    Raises
    ------
    TransferError
        If it is not there any more, or no list is: with another one the noise would be neither taken back nor as much as is
        accounted.
    """
    content = bucket.read(key := list_key(fleet, number - 1), max_bytes=_MOST_BYTES)
    if content is None:
        raise TransferError(
            f"{bucket.uri(key)}: is gone, and with it the seed of the tree of noise that round {number} goes on with. Cancel the "
            "round; the next one begins a new tree"
        )
    return _parsed(bucket, key, content).noise_seed


def _parsed(bucket: Bucket, key: str, content: bytes) -> UpdateList:
    try:
        return UpdateList.model_validate_json(content)
    except ValidationError as error:
        raise TransferError(f"{bucket.uri(key)}: is not an update list; move it away to make a new one") from error

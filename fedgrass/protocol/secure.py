"""Secure aggregation as settings and announcements name it: who the helpers are, and how values become integers.

docs/secure-aggregation.md has the protocol, its threat model and a proof sketch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from itertools import combinations
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedgrass.protocol.names import ThingName

KEY_BYTES = 32
# A device holds a mask for each choice of `collude` helpers, which grows as a binomial coefficient: 10 at most here.
MOST_HELPERS = 5
MOST_DEVICES = 100_000
MOST_GROUPS = 100
"""A helper uploads, and the job keeps, as many sums as there are groups."""

MOST_NOISE_STEPS = 1 << 25
"""Largest standard deviation of noise, in steps of the integers: more cannot be drawn (`fedgrass.noise`)."""

LEAST_NOISE_STEPS = 8
"""Below it a sum of several helpers' noise would not be what the account takes it for."""

_TAIL = 8.0
"""Standard deviations of noise that the integers have room for: beyond them one value in 10**15 wraps around."""

COUNT_BITS = 20
"""Bits of an example count: `SecureTask.max_examples` is below two to that power."""


def decoded_key(text: str) -> bytes:
    """Return a public key's 32 bytes; raises `ValueError` if the text is not their base64."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != KEY_BYTES:
        raise ValueError(f"{text[:60]!r} is not a public key: expected the base64 of {KEY_BYTES} bytes")
    return found


def encoded_key(key: bytes) -> str:
    """Return a public key as settings have it."""
    return base64.b64encode(key).decode()


class Helper(BaseModel):
    """Who opens the masks of a set of devices together, with the X25519 public key that seeds are sealed for."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: ThingName
    key: Annotated[str, Field(max_length=44)]

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        decoded_key(text)
        return text


class Masking(BaseModel):
    """Who the helpers are, and how values become integers: what settings and announcements have in common.

    ``most`` is the most devices that are summed together.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    helpers: Annotated[tuple[Helper, ...], Field(min_length=2, max_length=MOST_HELPERS)]
    collude: int = Field(default=1, ge=1, lt=MOST_HELPERS, description="Helpers that may tell the cloud all they know")
    bits: Literal[16, 32] = Field(default=32, description="Width of a masked value")
    value_range: float = Field(
        default=4.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Values of a difference beyond it are cut off at it; the smaller, the finer are the steps",
    )
    max_examples: int = Field(
        default=1024, ge=1, lt=1 << COUNT_BITS, description="Examples from which on a device counts no more"
    )
    equal: bool = Field(default=False, description="Every device counts alike, whatever its number of examples")
    groups: int = Field(
        default=1,
        ge=1,
        le=MOST_GROUPS,
        description="Sum the cohort in so many groups, drawn by chance, each by itself: robust strategies work on the groups' "
        "means, and one bad device spoils no more than its group. 1: one sum",
    )
    group_min: int = Field(
        default=3,
        ge=2,
        le=MOST_DEVICES,
        description="Devices without which a group is not summed and its devices are left out, where there are several groups",
    )
    most: int = Field(default=1, ge=1, le=MOST_DEVICES)

    @model_validator(mode="after")
    def _can_be_met(self) -> Masking:
        if self.collude >= len(self.helpers):
            raise ValueError(
                f"collude is {self.collude} of {len(self.helpers)} helpers: expected fewer than there are, as all "
                "together open everything"
            )
        for what, values in (("name", [one.name for one in self.helpers]), ("key", [one.key for one in self.helpers])):
            if len(set(values)) < len(values):
                raise ValueError(f"helpers: two have the same {what}")
        if self.levels < 1:
            raise ValueError(
                f"bits {self.bits}: too narrow for the sum of {self.most} devices; at most {((1 << self.bits) - 1) // 2}"
            )
        return self

    @property
    def needed(self) -> int:
        """Helpers without whose sums nothing is opened."""
        return self.collude + 1

    def sums_that_open(self, bad: int) -> int:
        """Return how many sums of a round may be opened, each of another set, if so many helpers answer any number of sets.

        A device's update may be in all of them. docs/secure-aggregation.md has the proof, and a test plays it.
        """
        # Each set needs helpers that answer one set only, as many as those that may collude leave of the needed ones.
        return (len(self.helpers) - bad) // (self.needed - bad)

    @property
    def masks(self) -> tuple[tuple[int, ...], ...]:
        """The masks of a device: each named by the helpers, from 0, that do not know its seed."""
        return tuple(combinations(range(len(self.helpers)), self.collude))

    def known_to(self, helper: int) -> tuple[int, ...]:
        """Return the numbers of the masks whose seeds a helper is given, in order."""
        return tuple(number for number, without in enumerate(self.masks) if helper not in without)

    @property
    def least_summed(self) -> int:
        """Devices without which no helper opens a sum, whatever its owner allows."""
        return self.group_min if self.groups > 1 else 1

    def group_of(self, session: str, thing: str) -> int:
        """Return a device's group: by chance, anew in each round, and for everybody to compute.

        Parameters
        ----------
        session
            The cohort's salt.
        thing
            The device's name.
        """
        found = hashlib.sha256(f"fedgrass group 1|{session}|{thing}".encode()).digest()
        # 256 bits modulo 100 at most: no group is likelier than another by more than one in 2**249.
        return int.from_bytes(found, "big") % self.groups

    @property
    def levels(self) -> int:
        """A value is an integer from ``-levels`` to ``levels``, so that ``most`` of them never pass the modulus's half."""
        # The worst case: all devices send the largest value. Their sum must still be told from its negative.
        return ((1 << self.bits) - 1) // (2 * max(1, self.most))

    @property
    def count_bits(self) -> int:
        """Bits of an example count in one coordinate, so that ``most`` of them never reach the modulus."""
        # With 16 bits and many devices a count does not fit into one coordinate, and is spread over several.
        return min(COUNT_BITS, (((1 << self.bits) - 1) // max(1, self.most) + 1).bit_length() - 1)

    @property
    def count_coordinates(self) -> int:
        """Coordinates that an example count takes, behind the values."""
        return -(-COUNT_BITS // self.count_bits)


class SecureTask(Masking):
    """How each device masks its update. Part of the announcement.

    ``noise`` is the standard deviation of the noise on the sum, in the values' unit, that a round with privacy has: the integers
    leave room for it, and are coarse enough for it to be drawn. With ``shared_noise`` the helpers add it, each a share; else
    the round's job does.
    """

    noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    shared_noise: bool = False

    @property
    def levels(self) -> int:
        """As of `Masking`, with room for the noise too."""
        if self.noise == 0:
            return super().levels
        # The fewest helpers that may add noise have it larger by so much, as colluders may take their part off.
        relative = self.noise / self.value_range
        # In units of the largest value.
        spread = _TAIL * relative * math.sqrt(self.needed)
        room = int(((1 << self.bits) - 1) / (2 * (self.most + spread)))
        return min(super().levels, room, int(MOST_NOISE_STEPS / relative))

    @property
    def noise_steps(self) -> int:
        """The noise's deviation in steps of the integers, rounded up; 0 without noise."""
        # The factor makes up for the rounding of the product: rounded down, the noise would be less than the account
        # says.
        return math.ceil(self.noise * self.levels / self.value_range * (1 + 2.0**-40))

    def share_steps(self, adding: int) -> int:
        """Return the deviation of the noise of each of so many helpers, in steps.

        When ``collude`` of them take theirs off, what is left has `noise_steps`; all together have a little more.
        """
        # Variances add up: n shares of σ/√(n - c) leave σ when c of them are taken off.
        return math.ceil(self.noise_steps / math.sqrt(adding - self.collude) * (1 + 2.0**-40))

    @model_validator(mode="after")
    def _noise_can_be_drawn(self) -> SecureTask:
        if self.shared_noise and self.noise == 0:
            raise ValueError("shared_noise: the helpers are to add noise, and there is none (noise)")
        if self.noise > 0 and self.noise_steps < LEAST_NOISE_STEPS:
            raise ValueError(
                f"bits {self.bits}: too narrow for noise of {self.noise:g} on the sum of {self.most} devices: {self.noise_steps} "
                f"steps, expected {LEAST_NOISE_STEPS} or more; lower value_range, or set bits to 32"
            )
        return self

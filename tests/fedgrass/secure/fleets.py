"""A small fleet with helpers, in memory: devices' plain integers are known, so that sums can be held against them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.protocol import secure
from fedgrass.secure.helper import Helper, HelperLimits
from fedgrass.secure.keys import public_text
from fedgrass.secure.masks import SEED_BYTES, Expander, Masked, add_mask, commitment, dtype_of
from fedgrass.secure.request import Candidate, SumRequest, requests_for
from fedgrass.secure.sealing import Context, seal

FLEET, BASE = "mill", "ab" * 32


@cache
def private_key(index: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(f"helper {index}".encode()).digest())


@cache
def signer(thing: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(thing.encode()).digest())


def task_of(
    helpers: int = 3, collude: int = 1, *, bits: int = 32, most: int = 1000, noise: float = 0, groups: int = 1
) -> secure.SecureTask:
    named = tuple(
        secure.Helper(name=f"helper-{index}", key=public_text(private_key(index))) for index in range(helpers)
    )
    return secure.SecureTask(
        helpers=named,
        collude=collude,
        bits=16 if bits == 16 else 32,
        most=most,
        groups=groups,
        noise=noise,
        shared_noise=noise > 0,
        equal=noise > 0,
    )


def context_of(task: secure.SecureTask, number: int = 1) -> Context:
    return Context.of_round(FLEET, number, "salt", BASE, task)


@dataclass(frozen=True)
class Device:
    thing: str
    plain: Masked
    seeds: list[bytes]
    masked: Masked
    candidate: Candidate


def device(thing: str, plain: Masked, task: secure.SecureTask, number: int = 1) -> Device:
    """A device whose integers are these."""
    draws = np.random.default_rng(list(f"{thing}/{number}".encode()))
    seeds = [draws.bytes(SEED_BYTES) for _ in task.masks]
    values = plain.copy()
    for seed in seeds:
        add_mask(values, seed, Expander(task.bits))
    boxes = tuple(
        seal([seeds[mask] for mask in task.known_to(index)], context_of(task, number), thing, helper, signer(thing))
        for index, helper in enumerate(task.helpers)
    )
    told = Candidate(thing, boxes, b"".join(map(commitment, seeds)), task.group_of("salt", thing))
    return Device(thing, plain, seeds, values, told)


def devices(count: int, length: int, task: secure.SecureTask, number: int = 1) -> list[Device]:
    draws = np.random.default_rng(count)
    top = 1 << task.bits
    return [
        device(f"thing-{index:04d}", draws.integers(0, top, length).astype(dtype_of(task.bits)), task, number)
        for index in range(count)
    ]


def asked(some: list[Device], task: secure.SecureTask, number: int = 1) -> list[SumRequest]:
    return requests_for([one.candidate for one in some], context_of(task, number), len(some[0].plain), task)


def helper(folder: Path, index: int, limits: HelperLimits | None = None, **options: object) -> Helper:
    return Helper(folder / f"helper-{index}", FLEET, limits, key=private_key(index), **options)  # type: ignore[arg-type]


def plain_sum(some: list[Device]) -> Masked:
    return _added([one.plain for one in some])


def masked_sum(some: list[Device]) -> Masked:
    return _added([one.masked for one in some])


def _added(rows: list[Masked]) -> Masked:
    total: Masked = np.zeros_like(rows[0])
    for row in rows:
        np.add(total, row, out=total)
    return total

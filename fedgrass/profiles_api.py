"""Profiles of a fleet, for notebooks, scripts and the command line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.errors import DataError
from fedgrass.protocol import tables
from fedgrass.protocol.profile import MAX_PROFILE_BYTES, Profile, ProfileReference

if TYPE_CHECKING:
    from fedgrass.account import Account


def read_profile(path: str | Path) -> Profile:
    """Read a profile that ``fedgrass fleet profile --output`` wrote, or that lies in the bucket.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    DataError
        If it cannot be read, or is not a profile.

    Examples
    --------
    >>> import fedgrass
    >>> from fedgrass.data.digits import digits_bundle
    >>> _ = fedgrass.simulate_profile(digits_bundle(), Path("profile.json"), devices=5, examples=20)
    >>> profile = fedgrass.read_profile("profile.json")
    >>> profile.devices, len(profile.features), len(profile.labels)
    (5, 64, 10)
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes; a profile has at most {MAX_PROFILE_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Profile.read(content, name=str(path))


def fleet_profile(account: Account, number: int | None = None) -> Profile:
    """Return a fleet's profile.

    Parameters
    ----------
    account
        The fleet's account.
    number
        The round that made it; None: the newest.

    Raises
    ------
    DataError
        If there is none, or it is not what the round's record names.
    RecordError
        If there was no such round.
    """
    named = _named(account, number)
    if named is None:
        which = "no round" if number is None else f"round {number} (`fedgrass round status {number}`)"
        raise DataError(
            f"fleet {account.fleet!r}: {which} has made a profile yet. Start one with `fedgrass round start --task statistics`"
        )
    bucket = account.stack.bucket
    body = account.s3.get_object(Bucket=bucket, Key=named.key)["Body"]
    content: bytes = body.read(named.bytes + 1)
    where = f"s3://{bucket}/{named.key}"
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise DataError(f"{where}: differs from the digest in the record of round {named.round}")
    return Profile.read(content, name=where)


def _named(account: Account, number: int | None) -> ProfileReference | None:
    if number is None:
        return tables.load_state(account.rounds_table, account.fleet).profile
    return tables.load_round(account.rounds_table, account.fleet, number).profile

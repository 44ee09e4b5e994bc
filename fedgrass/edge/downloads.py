"""A device's downloads: with its token-exchange credentials, patiently, and only the newest kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from fedgrass.downloads import ObjectStore
from fedgrass.edge.backoff import Backoff
from fedgrass.errors import TransferError
from fedgrass.logs import Log

T = TypeVar("T")


@cache
def s3_client() -> ObjectStore:
    """Return this process's client: with the credentials that the nucleus provides and renews, and no retries but ours.

    One for all downloads, as each costs megabytes that are not given back soon.
    """
    from boto3.session import Session
    from botocore.config import Config

    # Two attempts for a blip inside botocore; `retried` does the rest, as it can be cancelled and botocore's waiting
    # cannot.
    client: ObjectStore = Session().client(
        "s3", config=Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "max_attempts": 2})
    )
    return client


def retried(
    action: Callable[[], T], cancelled: threading.Event, log: Log, *, first: float = 1.0, most: float = 60.0
) -> T | None:
    """Repeat a download, after longer and longer pauses, while it fails with `TransferError`.

    Parameters
    ----------
    action
        The download.
    cancelled
        Ends the waiting.
    log
        Takes each new reason once.
    first
        Seconds of the first pause.
    most
        Seconds of the longest pause.

    Returns
    -------
    T or None
        What ``action`` returned; None once cancelled.

    Raises
    ------
    BundleError
        Or whatever else ``action`` raises: trying again would not help.
    """
    backoff = Backoff(first=first, most=most)

    # Only `TransferError` is worth repeating: a bundle that is damaged at its source stays so.
    def attempt() -> T | None:
        try:
            return action()
        except TransferError as error:
            log.log_event("download_waiting", error=str(error))
            return None

    # By hand, here and wherever a device waits: it has no tenacity, and what ends the wait is an event.
    while not cancelled.is_set():
        if (found := attempt()) is not None:
            return found
        cancelled.wait(backoff.failed())
    return None


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the ``count`` folders in ``folder`` that were changed last."""
    folders = sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime_ns, reverse=True)
    for old in folders[count:]:
        shutil.rmtree(old, ignore_errors=True)

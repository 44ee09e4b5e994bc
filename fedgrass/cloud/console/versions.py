"""The model versions that lie in the fleet's bucket."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedgrass.protocol.names import version_order

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

VERSION = re.compile(r"^\d{1,6}\.\d{1,6}\.\d{1,6}$")

_KEPT_SECONDS = 5.0


class Versions:
    """The versions in the bucket, the newest first; they are listed again when the last list is some seconds old."""

    def __init__(self, s3: S3Client, bucket: str, fleet: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._s3 = s3
        self._bucket, self._prefix = bucket, f"models/{fleet}/"
        self._clock = clock
        self._lock = threading.Lock()
        self._at = float("-inf")
        self._versions: list[str] = []

    def all(self) -> list[str]:
        """Return them."""
        with self._lock:
            # Under the lock: visitors who come at once share one listing.
            if self._clock() - self._at > _KEPT_SECONDS:
                self._versions = self._listed()
                self._at = self._clock()
            return self._versions

    def changed(self) -> None:
        """Have them listed again."""
        with self._lock:
            self._at = float("-inf")

    def _listed(self) -> list[str]:
        # Delimiter: S3 answers with the folders, not with each version's files.
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        names = [entry["Prefix"].split("/")[2] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(filter(VERSION.match, names), key=version_order, reverse=True)

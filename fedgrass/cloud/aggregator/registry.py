"""A released model in SageMaker's Model Registry: where it lies, how good it is, and what it was made of.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModelPackage.html
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.ending.registration import ARCHIVE, archive_key, register
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Evaluation, ModelEntry

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

__all__ = ["ARCHIVE", "Registry", "pack", "store_archive"]


@dataclass(frozen=True)
class Registry:
    """A fleet's model package group.

    Attributes
    ----------
    sagemaker
        A boto3 client.
    group
        The group's name.
    image
        Image that a package names: the aggregator's, which SageMaker starts with ``serve`` where a package is deployed
        (`fedgrass.cloud.serving`).
    """

    sagemaker: SageMakerClient
    group: str
    image: str

    def register(
        self, bundle: Bundle, bucket: Bucket, record: RoundRecord, *, participants: int, evaluation: Evaluation | None
    ) -> str:
        """Store the model's archive, and register it as a package of the model registry, once.

        Parameters
        ----------
        bundle
            The round's model.
        bucket
            The fleet's bucket.
        record
            The round.
        participants
            Number of updates in the model.
        evaluation
            Its figures; None if nobody evaluated it.

        Returns
        -------
        str
            ARN of the package.
        """
        store_archive(bundle, bucket, record.fleet)
        return register(
            self.sagemaker,
            self.group,
            self.image,
            bucket.name,
            record,
            ModelEntry.of(bundle.manifest),
            participants=participants,
            evaluation=evaluation,
        )


def store_archive(bundle: Bundle, bucket: Bucket, fleet: str) -> None:
    """Put a bundle's archive beside its files, as the serving image takes it; safe to repeat.

    Parameters
    ----------
    bundle
        The bundle.
    bucket
        The fleet's bucket.
    fleet
        The fleet's name.

    Raises
    ------
    ReleaseError
        If another archive is there.
    """
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
        packed = Path(folder) / ARCHIVE
        pack(bundle, packed)
        bucket.publish(archive_key(fleet, bundle.manifest.version), packed)


def pack(bundle: Bundle, path: Path) -> None:
    """Write the bundle's files as ``.tar.gz``; the same bundle gives the same bytes."""
    with (
        path.open("wb") as file,
        # No name and no time: both would be in the archive, and the same model would give other bytes each time.
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name in (*sorted(bundle.manifest.files), MANIFEST):
            # A bare entry: owner, group and time are 0, not this machine's.
            entry = tarfile.TarInfo(name)
            entry.size = bundle.path(name).stat().st_size
            entry.mode = 0o644
            with bundle.path(name).open("rb") as content:
                tar.addfile(entry, content)

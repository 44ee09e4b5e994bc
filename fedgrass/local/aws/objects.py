"""S3 through the endpoint, for the services of the layer that read and write objects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.errors import TransferError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BLOCK = 1 << 20


class Objects:
    """S3 objects by bucket and key.

    Parameters
    ----------
    s3
        A boto3 S3 client of the local endpoint.
    """

    def __init__(self, s3: S3Client) -> None:
        self._s3 = s3

    def read(self, bucket: str, key: str) -> Iterable[bytes]:
        """Yield an object in blocks of 1 MiB.

        Raises
        ------
        TransferError
            If it does not exist or cannot be read.
        """
        try:
            yield from self._s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(_BLOCK)
        except (BotoCoreError, ClientError) as error:
            raise TransferError(f"s3://{bucket}/{key} cannot be read: {error}") from error

    def presign(self, bucket: str, key: str) -> str:
        """Return a URL from which anyone can get the object for an hour."""
        # boto3's default is an hour.
        return str(self._s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``, in order.

        Raises
        ------
        TransferError
            If the bucket cannot be listed.
        """
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return sorted(item["Key"] for page in pages for item in page.get("Contents", []))
        except (BotoCoreError, ClientError) as error:
            raise TransferError(f"s3://{bucket}/{prefix} cannot be listed: {error}") from error

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Write an object to a file, making its folder.

        Parameters
        ----------
        bucket
            The bucket.
        key
            The object's key.
        path
            File to write.

        Raises
        ------
        TransferError
            If it cannot be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in self.read(bucket, key):
                file.write(block)

    def upload(self, path: Path, bucket: str, key: str) -> None:
        """Put a file into a bucket.

        Parameters
        ----------
        path
            File to read.
        bucket
            The bucket.
        key
            The object's key.

        Raises
        ------
        TransferError
            If the bucket does not exist or cannot be written.
        """
        try:
            self._s3.upload_file(str(path), bucket, key)
        except (BotoCoreError, ClientError, OSError) as error:
            raise TransferError(f"{path} cannot be put to s3://{bucket}/{key}: {error}") from error

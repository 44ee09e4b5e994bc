"""What a Processing container finds under ``/opt/ml``, and what is taken from there.

Source: "How Amazon SageMaker Processing configures input and output" and "build your own processing container" in the
SageMaker developer guide. The container's root is a folder here, so every ``/opt/ml/…`` path is taken below it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, TypeAlias

from fedgrass.errors import ConfigurationError
from fedgrass.local.s3_uri import split_uri

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import type_defs as api

    Source: TypeAlias = api.ProcessingS3InputTypeDef | api.S3DataSourceUnionTypeDef

_MAX_EXIT_MESSAGE = 1024


class Objects(Protocol):
    """S3 as a job needs it."""

    def read(self, bucket: str, key: str) -> Iterable[bytes]:
        """Return the object's blocks."""

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``, in order."""

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Write an object to ``path``.

        Parameters
        ----------
        bucket
            The bucket.
        key
            The object's key.
        path
            File to write.
        """

    def upload(self, path: Path, bucket: str, key: str) -> None:
        """Put a file's content under ``key``.

        Parameters
        ----------
        path
            File to read.
        bucket
            The bucket.
        key
            The object's key.
        """


class Host:
    """One instance of a job: a container root with its ``opt/ml``.

    Parameters
    ----------
    root
        The container's ``/``.
    index, count
        Which of how many instances it is, from 0.
    """

    def __init__(self, root: Path, index: int, count: int) -> None:
        self.root = root
        self.name = f"algo-{index + 1}"
        self._index = index
        self._count = count

    @property
    def ml(self) -> Path:
        """The folder that is ``/opt/ml`` in a real container."""
        return self.root / "opt" / "ml"

    def path(self, container_path: str) -> Path:
        """Return where an absolute path of the container is.

        Raises
        ------
        ConfigurationError
            If it is relative or leaves the container.
        """
        path = PurePosixPath(container_path)
        # A container path becomes one of this machine: it must not lead out of the job's folder.
        if not path.is_absolute() or ".." in path.parts:
            raise ConfigurationError(f"LocalPath {container_path!r} is not an absolute path in the container.")
        return self.root.joinpath(*path.parts[1:])

    def write_configuration(self, job: Mapping[str, object]) -> None:
        """Write ``resourceconfig.json`` and ``processingjobconfig.json``."""
        config = self.ml / "config"
        config.mkdir(parents=True)
        hosts = [f"algo-{number + 1}" for number in range(self._count)]
        (config / "resourceconfig.json").write_text(json.dumps({"current_host": self.name, "hosts": hosts}))
        (config / "processingjobconfig.json").write_text(json.dumps(job))
        (self.ml / "output").mkdir()

    def download(self, source: Source, local_path: str, objects: Objects) -> None:
        """Fetch one ``S3Input``, or a channel's ``S3DataSource``, or this host's share of it, to a path in the container.

        Parameters
        ----------
        source
            An ``S3Input`` or a channel's ``S3DataSource``.
        local_path
            Where the container expects it; absolute.
        objects
            S3.

        Raises
        ------
        TransferError
            If an object cannot be read.
        ConfigurationError
            If nothing is there, or the manifest is malformed.
        """
        bucket, files = _listed(source, objects)
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            # Every count-th of the sorted keys, so that the hosts' shares do not overlap.
            files = files[self._index :: self._count]
        target = self.path(local_path)
        target.mkdir(parents=True, exist_ok=True)
        for key, relative in files:
            # Such a key is what consoles make for an empty folder.
            if not relative.endswith("/"):
                objects.download(bucket, key, target / relative)

    def upload(self, destination: api.ProcessingS3OutputTypeDef, objects: Objects) -> None:
        """Send one ``S3Output``: every file of a folder, or one file.

        Raises
        ------
        TransferError
            If an object cannot be written.
        """
        bucket, prefix = split_uri(destination["S3Uri"])
        source = self.path(destination["LocalPath"])
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            if path.is_file():
                objects.upload(path, bucket, f"{prefix.rstrip('/')}/{path.relative_to(source)}".lstrip("/"))

    def exit_message(self) -> str | None:
        """Return the first 1 KB of ``/opt/ml/output/message``, if the job wrote one."""
        path = self.ml / "output" / "message"
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(_MAX_EXIT_MESSAGE).decode(errors="replace") or None


def _listed(source: Source, objects: Objects) -> tuple[str, list[tuple[str, str]]]:
    """Return the bucket, and each key with its path below the input's folder."""
    if source.get("S3DataType") == "ManifestFile":
        return _manifest(source["S3Uri"], objects)
    bucket, prefix = split_uri(source["S3Uri"])
    keys = objects.keys(bucket, prefix)
    if not keys:
        raise ConfigurationError(f"No object begins with {source['S3Uri']}.")
    # S3Prefix is a prefix of names: without a slash it may be a folder, or the beginning of several objects' names.
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    below = [(key, key.removeprefix(folder)) for key in keys if key.startswith(folder) and key != folder]
    # No folder of that name: the objects that begin with it go by their last part.
    return bucket, below or [(key, key.rpartition("/")[2]) for key in keys]


def _manifest(uri: str, objects: Objects) -> tuple[str, list[tuple[str, str]]]:
    data = b"".join(objects.read(*split_uri(uri)))
    try:
        # A list whose first entry has the prefix and whose others are what follows it.
        entries = json.loads(data)
        data_bucket, prefix = split_uri(entries[0]["prefix"])
        names = [str(name) for name in entries[1:]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigurationError(
            f'{uri} is not a manifest: expected [{{"prefix": "s3://…/"}}, "key", …] ({error}).'
        ) from error
    return data_bucket, [(prefix + name, name) for name in names]

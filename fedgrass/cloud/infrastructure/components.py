"""Publish built components as ``gdk component publish`` does, for machines without the GDK.

Takes the ``greengrass-build`` trees that ``components/build.py`` made, uploads the artifacts to the bucket the GDK would
choose, fills in version and addresses, and creates the component versions. A component whose recipe and artifacts are
those of its newest version is left as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from tenacity import retry, retry_if_exception, stop_after_delay, wait_exponential_jitter

from fedgrass.buckets import owned_by
from fedgrass.cloud.infrastructure.script import Caller
from fedgrass.cloud.infrastructure.storage import ensure_bucket
from fedgrass.errors import ConfigurationError, TransferError
from fedgrass.protocol.names import version_order

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_s3 import S3Client

_FIRST_VERSION = "1.0.0"
_SOURCE_TAG = "fedgrass-source"


@dataclass(frozen=True)
class Published:
    """A component version in the account. ``fresh`` is False where the newest one was already this."""

    name: str
    version: str
    arn: str
    fresh: bool


class ComponentPublisher:
    """Publishes built projects, one after the other, with the caller's clients.

    Parameters
    ----------
    greengrass, s3
        boto3 clients of ``greengrassv2`` and ``s3``.
    account, region, partition
        Where components live; part of their ARNs and of the bucket's name.
    """

    def __init__(
        self, *, greengrass: GreengrassV2Client, s3: S3Client, account: str, region: str, partition: str = "aws"
    ) -> None:
        self._greengrass = greengrass
        self._s3 = owned_by(s3, account)
        self._account = account
        self._region = region
        self._partition = partition

    def publish(self, build: Path, *, bucket: str) -> Published:
        """Publish the component in a ``greengrass-build`` folder.

        Raises
        ------
        ConfigurationError
            If the folder is not such a tree.
        TransferError
            If the component version does not become deployable.
        """
        recipes = list((build / "recipes").glob("*.yaml"))
        if len(recipes) != 1:
            raise ConfigurationError(
                f"{build}: expected one recipe, found {len(recipes)}; run components/build.py first"
            )
        recipe = yaml.safe_load(recipes[0].read_text())
        name = recipe["ComponentName"]
        files = sorted((build / "artifacts" / name).rglob("*.zip"))
        # Of recipe and archives together: both make a version, and it lies on the version as a tag.
        source = _digest(recipes[0], *files)
        newest = self._newest(name)
        if newest and newest.tags.get(_SOURCE_TAG) == source:
            return Published(name, newest.version, newest.arn, fresh=False)
        version = _next_patch(newest.version) if newest else _FIRST_VERSION
        # The GDK's own rule for the name, so that a machine with the kit and one without use the same bucket.
        bucket = f"{bucket}-{self._region}-{self._account}"
        addresses = {}
        if files:
            caller = Caller(self._account, self._region, self._partition)
            ensure_bucket(
                self._s3, bucket, caller, otherwise="components need it: name another in every gdk-config.json"
            )
        # Before the component version: Greengrass reads the artifacts' digests from S3 when it is created.
        for file in files:
            key = f"{name}/{version}/{file.name}"
            self._s3.upload_file(str(file), bucket, key)
            addresses[file.name] = f"s3://{bucket}/{key}"
        recipe["ComponentVersion"] = version
        for artifact in _artifacts(recipe):
            artifact["Uri"] = addresses[artifact["Uri"].rsplit("/", 1)[-1]]
        created = self._greengrass.create_component_version(
            inlineRecipe=json.dumps(recipe).encode(), tags={_SOURCE_TAG: source}
        )
        self._wait_until_deployable(created["arn"])
        return Published(name, version, created["arn"], fresh=True)

    def _newest(self, name: str) -> _Version | None:
        arn = f"arn:{self._partition}:greengrass:{self._region}:{self._account}:components:{name}"
        try:
            pages = self._greengrass.get_paginator("list_component_versions").paginate(arn=arn)
            versions = [version for page in pages for version in page["componentVersions"]]
        except self._greengrass.exceptions.ResourceNotFoundException:
            return None
        if not versions:
            return None
        newest = max(versions, key=lambda version: version_order(version["componentVersion"]))
        described = self._greengrass.describe_component(arn=newest["arn"])
        return _Version(newest["componentVersion"], newest["arn"], described.get("tags", {}))

    def _wait_until_deployable(self, arn: str) -> None:
        @retry(
            retry=retry_if_exception(lambda error: isinstance(error, _NotYetDeployableError)),
            # Seconds. The jitter keeps several publishers of one account from asking in step.
            wait=wait_exponential_jitter(multiplier=0.1, max=2, jitter=0.1),
            stop=stop_after_delay(120),
            reraise=True,
        )
        def check() -> None:
            status = self._greengrass.describe_component(arn=arn)["status"]
            state = status["componentState"]
            # FAILED is final, with a reason; waiting longer would only hide it.
            if state == "FAILED":
                raise TransferError(
                    f"{arn}: Greengrass refused the component: {status.get('message', 'no reason given')}"
                )
            if state != "DEPLOYABLE":
                raise _NotYetDeployableError(f"{arn}: still {state} after two minutes")

        check()


class _Version(NamedTuple):
    version: str
    arn: str
    tags: Mapping[str, str]


class _NotYetDeployableError(TransferError):
    """The component version is not deployable yet."""


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        # The name, a null byte, the content's digest: no two lists of files run together into the same bytes.
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _next_patch(version: str) -> str:
    major, minor, patch = version_order(version)
    return f"{major}.{minor}.{patch + 1}"


def _artifacts(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for manifest in recipe.get("Manifests", []):
        yield from manifest.get("Artifacts", [])

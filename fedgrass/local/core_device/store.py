"""The component store: recipes and artifacts on the device, each artifact checked against its recipe's digest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import shutil
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.errors import FedgrassError
from fedgrass.files import sha256_of, write_atomically
from fedgrass.local.core_device.layout import Layout
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.local.core_device.recipe import parse
from fedgrass.local.recipe import Artifact, Permission, Recipe
from fedgrass.local.s3_uri import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BLOCK = 1 << 20
_READ_BITS = {"NONE": 0o000, "OWNER": 0o400, "ALL": 0o444}
_EXECUTE_BITS = {"NONE": 0o000, "OWNER": 0o100, "ALL": 0o111}


class ArtifactError(FedgrassError):
    """An artifact is not what its recipe says, or cannot be unpacked: trying again would not help."""

    code = "artifact"


class ComponentStore:
    """Keeps component versions; ``s3`` is a boto3 S3 client with the device's credentials."""

    def __init__(self, layout: Layout, s3: S3Client, nucleus: Nucleus = CLASSIC) -> None:
        self._layout = layout
        self._s3 = s3
        self._nucleus = nucleus
        self._fetching = threading.Lock()

    def save_recipe(self, recipe: Recipe, content: bytes) -> None:
        """Keep a recipe as it came."""
        write_atomically(self._layout.recipe(recipe.name, recipe.version), content)

    def recipe(self, name: str, version: str) -> Recipe:
        """Return a kept recipe."""
        content = self._layout.recipe(name, version).read_bytes()
        return parse(content, yaml_is_strings=self._nucleus.yaml_is_strings)

    def fetch(self, recipe: Recipe, artifacts: Iterable[Artifact]) -> None:
        """Download what is missing, check its digest, and unpack archives; blocks, also while another fetch runs.

        Raises
        ------
        ArtifactError
            A digest does not match, or an archive is malformed.
        ConfigurationError
            A URI is not ``s3://bucket/key``.
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError
            S3 did not give the object.
        """
        with self._fetching:  # that of a cancelled deployment goes on to its end
            for artifact in artifacts:
                self._fetch(recipe, artifact)

    def clean(self, keep: Iterable[tuple[str, str]]) -> None:
        """Remove every component version that is not in ``keep`` (pairs of name and version)."""
        kept = set(keep)
        packages = self._layout.root / "packages"
        for kind in ("artifacts", "artifacts-unarchived"):
            for folder in (packages / kind).glob("*/*"):
                if (folder.parent.name, folder.name) not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
        recipes = {self._layout.recipe(name, version) for name, version in kept}
        for path in (packages / "recipes").glob("*.recipe"):
            if path not in recipes:
                path.unlink(missing_ok=True)

    def _fetch(self, recipe: Recipe, artifact: Artifact) -> None:
        bucket, key = split_uri(artifact.uri)
        path = self._layout.artifacts(recipe.name, recipe.version) / Path(key).name
        unpacked = self._layout.unarchived(recipe.name, recipe.version) / path.stem
        if not path.exists() or bytes.fromhex(sha256_of(path)) != _expected_digest(artifact, recipe.name):
            # What was unpacked from the former archive must not be taken for this one's.
            shutil.rmtree(unpacked, ignore_errors=True)
            self._download(bucket, key, path, artifact, recipe.name)
        path.chmod(_mode(artifact.permission))
        if artifact.unarchive == "ZIP":
            self._unpack(path, unpacked, artifact)

    def _download(self, bucket: str, key: str, path: Path, artifact: Artifact, component: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        digest = hashlib.sha256()
        body = self._s3.get_object(Bucket=bucket, Key=key)["Body"]
        with partial.open("wb") as file:
            while block := body.read(_BLOCK):
                digest.update(block)
                file.write(block)
        if digest.digest() != _expected_digest(artifact, component):
            partial.unlink()
            found = base64.b64encode(digest.digest()).decode()
            raise ArtifactError(
                f"{component}: artifact {artifact.uri} has SHA-256 {found}, its recipe says {artifact.digest}; "
                "it was changed after the component version was created: create a new version"
            )
        path.unlink(missing_ok=True)
        partial.replace(path)

    def _unpack(self, archive: Path, target: Path, artifact: Artifact) -> None:
        if target.exists():
            return  # renamed into place as a whole, so it is complete
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(partial)  # zipfile itself drops absolute paths and ".."
        except (zipfile.BadZipFile, OSError) as error:
            raise ArtifactError(f"artifact {artifact.uri} cannot be unpacked as ZIP: {error}") from error
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else _mode(artifact.permission))
        partial.rename(target)


def _expected_digest(artifact: Artifact, component: str) -> bytes:
    try:
        digest = base64.b64decode(artifact.digest or "", validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ArtifactError(
            f"{component}: artifact {artifact.uri} needs a base64 SHA-256 digest, found {artifact.digest!r}"
        )
    return digest


def _mode(permission: Permission) -> int:
    # The device and its components are one user here, so OWNER is who runs them both.
    return _READ_BITS[permission.read] | _EXECUTE_BITS[permission.execute] | 0o400

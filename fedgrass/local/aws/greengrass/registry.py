"""The component registry: versions, their recipes, and the digests of their artifacts."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

from fedgrass.errors import ConfigurationError, FedgrassError
from fedgrass.local.aws.account import arn
from fedgrass.local.aws.api import ApiError, page
from fedgrass.local.aws.greengrass.recipe import Document, PublishedRecipe, dump, load
from fedgrass.local.aws.greengrass.semver import Version, newest
from fedgrass.local.aws.rest_json import blob
from fedgrass.local.s3_uri import split_uri
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import type_defs as api

_SETTLE_S = 0.1
"""How long a new version stays REQUESTED, so that callers must poll as they must on AWS."""


class ObjectStore(Protocol):
    """S3 as the registry needs it."""

    def read(self, bucket: str, key: str) -> Iterable[bytes]:
        """Return the object's blocks; raise `TransferError` if it cannot be read."""

    def presign(self, bucket: str, key: str) -> str:
        """Return a URL from which anyone can get the object for a while."""


@dataclass
class ComponentVersion:
    """One version, immutable but for the state it settles into."""

    recipe: PublishedRecipe
    whole: Document
    tags: Mapping[str, str]
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    state: str = "REQUESTED"
    message: str = "NONE"
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def arn(self) -> str:
        """ARN of the version."""
        return f"{component_arn(self.recipe.name)}:versions:{self.recipe.version}"

    def status(self) -> dict[str, object]:
        """Return the ``CloudComponentStatus`` of the API."""
        return {
            "componentState": self.state,
            "message": self.message,
            "errors": self.errors,
            "vendorGuidance": "ACTIVE",
        }


def component_arn(name: str) -> str:
    """Return the ARN of a component, all versions."""
    return arn("greengrass", f"components:{name}")


class Registry:
    """The account's private components."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._components: dict[str, dict[str, ComponentVersion]] = {}
        self._by_token: dict[str, ComponentVersion] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # One thread: versions settle in the order in which they were made.
        self._settling = ThreadPoolExecutor(1, "component-registry")

    def stop(self) -> None:
        """Leave versions that have not settled as they are."""
        self._stopping.set()
        self._settling.shutdown(wait=False, cancel_futures=True)

    def find(self, name: str, version: str) -> ComponentVersion | None:
        """Return a version by name, in whatever state."""
        return self._components.get(name, {}).get(version)

    # Operations, in the parameters and results of boto3's `greengrassv2`

    def create_component_version(self, parameters: api.CreateComponentVersionRequestTypeDef) -> dict[str, object]:
        """Register a recipe; its artifacts are read and digested a moment later."""
        if "inlineRecipe" not in parameters:
            raise ApiError("ValidationException", "inlineRecipe is required: Lambda functions are not imported here.")
        recipe, whole = load(blob(parameters["inlineRecipe"]))
        token = parameters.get("clientToken")
        with self._lock:
            version = self._by_token.get(token) if token else None
            if version is None:
                version = self._add(recipe, whole, parameters.get("tags") or {})
                if token:
                    self._by_token[token] = version
                self._settling.submit(self._settle, version)
        return {
            "arn": version.arn,
            "componentName": recipe.name,
            "componentVersion": recipe.version,
            "creationTimestamp": version.created,
            "status": {"componentState": "REQUESTED", "message": "NONE", "errors": {}, "vendorGuidance": "ACTIVE"},
        }

    def get_component(self, parameters: api.GetComponentRequestTypeDef) -> dict[str, object]:
        """Return the recipe, with the digests that the service added."""
        version = self._version(parameters["arn"])
        output_format = parameters.get("recipeOutputFormat", "JSON")
        return {
            "recipeOutputFormat": output_format,
            "recipe": dump(version.whole, output_format),
            "tags": version.tags,
        }

    def describe_component(self, parameters: api.DescribeComponentRequestTypeDef) -> dict[str, object]:
        """Return metadata and state."""
        version = self._version(parameters["arn"])
        recipe = version.recipe
        platforms = [
            {"name": manifest.platform.get("os", "*"), "attributes": manifest.platform} for manifest in recipe.manifests
        ]
        return {
            "arn": version.arn,
            "componentName": recipe.name,
            "componentVersion": recipe.version,
            "creationTimestamp": version.created,
            "publisher": recipe.publisher,
            "description": recipe.description,
            "status": version.status(),
            "platforms": platforms,
            "tags": version.tags,
        }

    def list_components(self, parameters: api.ListComponentsRequestTypeDef) -> dict[str, object]:
        """List private components with the newest version of each."""
        found = []
        # The public ones are AWS's, of which there are none here.
        for name, versions in sorted(self._components.items()) if parameters.get("scope") != "PUBLIC" else ():
            latest = versions[max(versions, key=Version.parse)]
            summary = {
                "arn": latest.arn,
                "componentVersion": latest.recipe.version,
                "creationTimestamp": latest.created,
                "publisher": latest.recipe.publisher,
                "description": latest.recipe.description,
            }
            found.append({"arn": component_arn(name), "componentName": name, "latestVersion": summary})
        items, token = page(found, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"components": items, "nextToken": token}

    def list_component_versions(self, parameters: api.ListComponentVersionsRequestTypeDef) -> dict[str, object]:
        """List a component's versions, newest first."""
        name, _ = _parse(parameters["arn"])
        versions = self._components.get(name, {})
        found = [
            {"componentName": name, "componentVersion": text, "arn": versions[text].arn}
            for text in sorted(versions, key=Version.parse, reverse=True)
        ]
        items, token = page(found, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"componentVersions": items, "nextToken": token}

    def delete_component(self, parameters: api.DeleteComponentRequestTypeDef) -> dict[str, object]:
        """Forget a version; devices that run it keep it."""
        version = self._version(parameters["arn"])
        with self._lock:
            versions = self._components[version.recipe.name]
            versions.pop(version.recipe.version, None)
            if not versions:
                del self._components[version.recipe.name]
        return {}

    def get_component_version_artifact(
        self, parameters: api.GetComponentVersionArtifactRequestTypeDef
    ) -> dict[str, object]:
        """Return a URL for an artifact, named by its URI or by the file's name."""
        version = self._version(parameters["arn"])
        wanted = parameters["artifactName"]
        for manifest in version.recipe.manifests:
            for artifact in manifest.artifacts:
                if artifact.uri == wanted or artifact.uri.endswith(f"/{wanted}"):
                    return {"preSignedUrl": self._objects.presign(*split_uri(artifact.uri))}
        raise _not_found(wanted, "artifact")

    def resolve_component_candidates(
        self, parameters: api.ResolveComponentCandidatesRequestTypeDef
    ) -> dict[str, object]:
        """Choose the newest version of each candidate that all requirements and the platform allow."""
        attributes = (parameters.get("platform") or {}).get("attributes") or {}
        resolved = []
        for candidate in parameters.get("componentCandidates", []):
            name = candidate["componentName"]
            requirements = dict(candidate.get("versionRequirements") or {})
            if candidate.get("componentVersion"):
                # A plain version is a range too, of one: it is met like the requirements.
                requirements["requested"] = candidate["componentVersion"]
            version = self._choose(name, requirements, attributes)
            resolved.append(
                {
                    "arn": version.arn,
                    "componentName": name,
                    "componentVersion": version.recipe.version,
                    "recipe": dump(version.whole),
                    "vendorGuidance": "ACTIVE",
                }
            )
        return {"resolvedComponentVersions": resolved}

    def _choose(self, name: str, requirements: dict[str, str], attributes: Mapping[str, str]) -> ComponentVersion:
        usable = {
            text: version
            for text, version in self._components.get(name, {}).items()
            if version.state == "DEPLOYABLE" and version.recipe.fits(attributes)
        }
        try:
            best = newest(usable, requirements.values())
        except ConfigurationError as error:
            raise ApiError("ValidationException", f"Component {name}: {error}") from error
        if best is None:
            asked = ", ".join(f"{source} requires {text}" for source, text in requirements.items()) or "any version"
            there = ", ".join(sorted(usable)) or "none for this platform"
            raise _not_found(name, "component", f"No version of {name} satisfies: {asked}. Deployable: {there}.")
        return usable[best]

    def _add(self, recipe: PublishedRecipe, whole: Document, tags: Mapping[str, str]) -> ComponentVersion:
        versions = self._components.setdefault(recipe.name, {})
        if recipe.version in versions:
            state = versions[recipe.version].state
            raise ApiError(
                "ConflictException",
                f"Component [{recipe.name} : {recipe.version}] already exists with state: [{state}]",
                status=409,
                resourceId=f"{recipe.name}:{recipe.version}",
                resourceType="component version",
            )
        # In place from now on, though not deployable yet: a second creation must meet a conflict.
        versions[recipe.version] = ComponentVersion(recipe, whole, tags)
        return versions[recipe.version]

    def _version(self, text: str) -> ComponentVersion:
        name, version = _parse(text)
        found = self.find(name, version) if version else None
        if found is None:
            raise _not_found(text, "component version")
        return found

    def _settle(self, version: ComponentVersion) -> None:
        if self._stopping.wait(_SETTLE_S):
            return
        version.state = "INITIATED"
        for manifest in version.whole["Manifests"]:
            for artifact in manifest.get("Artifacts", []):
                self._add_digest(version, artifact)
        if version.errors:
            version.message = "One or more artifacts could not be read."
        # Last: whoever polls must find the digests in place when it says DEPLOYABLE.
        version.state = "FAILED" if version.errors else "DEPLOYABLE"
        log_event("component_version_settled", arn=version.arn, state=version.state, errors=version.errors)

    def _add_digest(self, version: ComponentVersion, artifact: dict[str, str]) -> None:
        digest = hashlib.sha256()
        try:
            for block in self._objects.read(*split_uri(artifact["Uri"])):
                digest.update(block)
        except FedgrassError as error:
            version.errors[artifact["Uri"]] = str(error)
        else:
            artifact["Digest"] = base64.b64encode(digest.digest()).decode()
            artifact["Algorithm"] = "SHA-256"


def _parse(text: str) -> tuple[str, str | None]:
    parts = text.split(":")
    # arn:aws:greengrass:REGION:ACCOUNT:components:NAME, with :versions:VERSION behind it for one version.
    if len(parts) in {7, 9} and parts[2] == "greengrass" and parts[5] == "components":
        return parts[6], parts[8] if len(parts) == 9 else None
    raise ApiError("ValidationException", f"{text!r} is not the ARN of a component or of a component version.")


def _not_found(identifier: str, kind: str, message: str | None = None) -> ApiError:
    return ApiError(
        "ResourceNotFoundException",
        message or f"{kind.capitalize()} {identifier} does not exist.",
        status=404,
        resourceId=identifier,
        resourceType=kind,
    )

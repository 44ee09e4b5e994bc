"""Which component versions a deployment means: dependencies followed in the cloud until nothing is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.greengrass.semver import newest
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.local.core_device.recipe import parse
from fedgrass.local.recipe import Manifest, Recipe

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client

_SERVICES = {
    "aws.greengrass.TokenExchangeService": "2.0.3",
    "aws.greengrass.StreamManager": "2.2.1",
}
# Passes until nothing changes; two components that exclude each other's versions would never settle.
_MAX_PASSES = 64


class ResolutionError(FedgrassError):
    """The deployment's components and their dependencies have no common solution."""

    code = "resolution"


@dataclass(frozen=True)
class Resolved:
    """One component version of a deployment."""

    recipe: Recipe
    manifest: Manifest
    content: bytes


class Resolver:
    """Asks ``greengrass``, a boto3 ``greengrassv2`` client, for candidates."""

    def __init__(
        self, greengrass: GreengrassV2Client, attributes: Mapping[str, str], nucleus: Nucleus = CLASSIC
    ) -> None:
        self._greengrass = greengrass
        self._attributes = dict(attributes)
        self._nucleus = nucleus
        self._builtin = {**_SERVICES, nucleus.name: nucleus.version}

    def resolve(self, roots: Mapping[str, Mapping[str, str]]) -> dict[str, Resolved]:
        """Return every component that ``roots`` need, themselves included; blocks.

        Parameters
        ----------
        roots
            For each component named by a deployment, its version by target.

        Raises
        ------
        ResolutionError
            Dependencies keep changing each other's versions.
        botocore.exceptions.ClientError
            No version satisfies all requirements; the message is the service's.
        """
        resolved: dict[str, Resolved] = {}
        asked: dict[str, dict[str, str]] = {}
        for _ in range(_MAX_PASSES):
            wanted = self._requirements(roots, resolved)
            resolved = {name: found for name, found in resolved.items() if name in wanted}
            # Only those of which something else is required than in the pass before.
            pending = {name: needs for name, needs in wanted.items() if asked.get(name) != needs}
            asked = wanted
            if not pending:
                return resolved
            resolved |= self._ask(pending)
        raise ResolutionError(f"dependencies of {sorted(roots)} do not settle: each choice asks for another version")

    def _ask(self, pending: Mapping[str, Mapping[str, str]]) -> dict[str, Resolved]:
        answer = self._greengrass.resolve_component_candidates(
            platform={"name": "linux", "attributes": self._attributes},
            componentCandidates=[
                {"componentName": name, "versionRequirements": dict(needs)} for name, needs in pending.items()
            ],
        )
        found: dict[str, Resolved] = {}
        nucleus = self._nucleus
        for version in answer["resolvedComponentVersions"]:
            recipe = parse(version["recipe"], yaml_is_strings=self._nucleus.yaml_is_strings)
            manifest = recipe.manifest(
                self._attributes,
                requires_runtime=nucleus.requires_runtime,
                requires_artifacts=nucleus.requires_artifacts,
            )
            found[recipe.name] = Resolved(recipe, manifest, version["recipe"])
        if missing := pending.keys() - found.keys():
            raise ResolutionError(f"the cloud named no version of {sorted(missing)}")
        return found

    def _requirements(
        self, roots: Mapping[str, Mapping[str, str]], resolved: Mapping[str, Resolved]
    ) -> dict[str, dict[str, str]]:
        """Return what is required of each component that is reachable from the roots, by who requires it."""
        # Built-in components have no version to choose; they are only checked.
        wanted = {name: dict(versions) for name, versions in roots.items() if name not in self._builtin}
        queue = list(wanted)
        seen: set[str] = set()
        while queue:
            name = queue.pop()
            if name in seen or name not in resolved:
                continue
            seen.add(name)
            for dependency, details in resolved[name].recipe.dependencies.items():
                if dependency in self._builtin:
                    self._check_builtin(dependency, details.version_requirement, name)
                else:
                    wanted.setdefault(dependency, {})[name] = details.version_requirement
                    queue.append(dependency)
        return wanted

    def _check_builtin(self, name: str, requirement: str, dependent: str) -> None:
        version = self._builtin[name]
        if newest([version], [requirement]) is None:
            raise ResolutionError(
                f"{dependent} requires {name} {requirement}; this device has {version}: widen the requirement"
            )

"""Deployments: resolve, download, ask the components, apply, wait; and roll back if it does not work.

Source: DefaultDeploymentTask, DeploymentConfigMerger and ComponentManager of the classic nucleus; nucleus lite as it was seen
to behave: it installs everything first, replaces what runs only then, waits for each component for so long, and takes nothing
back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from fedgrass.errors import FedgrassError
from fedgrass.files import write_atomically
from fedgrass.local.core_device.clients import is_transient
from fedgrass.local.core_device.component import Specification
from fedgrass.local.core_device.configuration import DEFAULTS_TIME, ConfigurationStore, Snapshot
from fedgrass.local.core_device.ipc.lifecycle import ComponentUpdates
from fedgrass.local.core_device.layout import Layout
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.local.core_device.resolve import Resolved, Resolver
from fedgrass.local.core_device.store import ComponentStore
from fedgrass.local.core_device.supervisor import Outcome, Supervisor
from fedgrass.local.recipe import Recipe
from fedgrass.logs import log_event

_T = TypeVar("_T")
_KEPT_RESULTS = 20
# Seconds between two tries to reach the cloud; doubled each time.
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0

Specify = Callable[[Sequence[Recipe]], dict[str, Specification]]


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)


class ConfigurationUpdate(_Document):
    """What a deployment changes in one component's configuration: ``reset`` first, then ``merge``."""

    merge: dict[str, Any] = Field(default_factory=dict)
    reset: list[str] = Field(default_factory=list)


class DeployedComponent(_Document):
    """A component that a deployment names."""

    version: str
    configuration_update: ConfigurationUpdate | None = None


class UpdatePolicy(_Document):
    """Whether components are asked first, and how many seconds they have to answer."""

    action: Literal["NOTIFY_COMPONENTS", "SKIP_NOTIFY_COMPONENTS"] = "NOTIFY_COMPONENTS"
    timeout: float = 60.0


class DeploymentDocument(_Document):
    """A deployment as the job carries it; ``creation_timestamp`` is in milliseconds."""

    deployment_id: str
    target_arn: str
    parent_target_arn: str | None = None
    configuration_arn: str | None = None
    creation_timestamp: float
    components: dict[str, DeployedComponent]
    failure_handling_policy: Literal["ROLLBACK", "DO_NOTHING"] = "ROLLBACK"
    component_update_policy: UpdatePolicy = Field(default_factory=UpdatePolicy)


class Result(BaseModel):
    """How a deployment ended on this device."""

    status: Literal["SUCCEEDED", "FAILED", "REJECTED"]
    detail: str
    cause: str = ""


class Active(BaseModel):
    """What is in force: the versions that each target asks for, and all that this needs."""

    targets: dict[str, dict[str, str]] = Field(default_factory=dict)
    components: dict[str, str] = Field(default_factory=dict)
    configured: dict[str, str] = Field(default_factory=dict)
    """The deployment that last came with a configuration update for a component: nucleus lite then restarts it."""
    results: dict[str, Result] = Field(default_factory=dict)

    def roots(self) -> dict[str, dict[str, str]]:
        """Return the version that each target asks of each component it names."""
        roots: dict[str, dict[str, str]] = {}
        for target, versions in self.targets.items():
            for name, version in versions.items():
                roots.setdefault(name, {})[target] = version
        return roots


@dataclass(frozen=True)
class Parts:
    """What a deployment works on."""

    layout: Layout
    resolver: Resolver
    store: ComponentStore
    configuration: ConfigurationStore
    supervisor: Supervisor
    updates: ComponentUpdates
    specify: Specify
    start_builtin: Callable[[frozenset[str]], Awaitable[None]]
    nucleus: Nucleus = CLASSIC


class Undo(BaseModel):
    """What a deployment that is cut off is undone by."""

    deployment: str
    configuration: Snapshot


class DeploymentError(FedgrassError):
    """A deployment's document lacks what the nucleus needs."""

    code = "deployment"


class Deployer:
    """Applies one deployment at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._file = parts.layout.deployments / "active.json"
        self._undo = parts.layout.deployments / "undo.json"
        self.active = Active()
        self.applying = False
        if self._file.exists():
            self.active = Active.model_validate_json(self._file.read_bytes())

    async def resume(self) -> None:
        """Start what was in force when the device stopped; a deployment that was cut off is undone first."""
        if self._undo.exists():
            undo = Undo.model_validate_json(self._undo.read_bytes())
            # Power may have gone after the end was written and before this file was removed: that one is not undone.
            if undo.deployment not in self.active.results:
                log_event("deployment_interrupted", deployment=undo.deployment)
                self._parts.configuration.restore(undo.configuration)
            self._undo.unlink()
        await self._begin(self._specify(self.active), installed=not self._parts.nucleus.installs_at_boot)

    async def deploy(self, document: DeploymentDocument) -> Result:
        """Carry out a deployment; it can be cancelled until :attr:`applying` is true."""
        log_event("deployment_started", deployment=document.deployment_id, components=sorted(document.components))
        # A copy: until the deployment has succeeded, the device is on what it was on.
        target = self.active.model_copy(deep=True)
        # A subdeployment takes the place of its parent's on the few devices that it is for.
        group = document.parent_target_arn or document.target_arn
        target.targets[group] = {name: item.version for name, item in document.components.items()}
        if self._parts.nucleus.restarts_on_configuration:
            updated = [name for name, item in document.components.items() if item.configuration_update is not None]
            target.configured |= dict.fromkeys(updated, document.deployment_id)
        try:
            if self._parts.nucleus.jobs_name_a_configuration and document.configuration_arn is None:
                raise DeploymentError("the job names no configurationArn, which the thing group is read from")
            # Resolving, downloading and asking change nothing that runs: a failure here needs no roll-back.
            resolved = await self._with_retries(lambda: self._parts.resolver.resolve(target.roots()))
            await self._with_retries(lambda: self._download(resolved))
            if document.component_update_policy.action == "NOTIFY_COMPONENTS":
                await self._parts.updates.consent(document.deployment_id, document.component_update_policy.timeout)
        except (FedgrassError, ClientError, BotoCoreError) as error:
            result = Result(status="FAILED", detail="FAILED_NO_STATE_CHANGE", cause=str(error))
            return self._ended(document, result, self.active)
        target.components = {name: found.recipe.version for name, found in resolved.items()}
        # From now on a newer job waits until this one is done.
        self.applying = True
        try:
            return await self._apply(document, target, resolved)
        finally:
            self.applying = False

    async def _apply(self, document: DeploymentDocument, target: Active, resolved: Mapping[str, Resolved]) -> Result:
        before = self._parts.configuration.snapshot()
        # On the disk before the first change: a device that loses power in between undoes it at its next start.
        undo = Undo(deployment=document.deployment_id, configuration=before)
        write_atomically(self._undo, undo.model_dump_json().encode())
        try:
            self._configure(document, resolved)
            specifications = self._specify(target)
        except FedgrassError as error:
            self._parts.configuration.restore(before)
            result = Result(status="FAILED", detail="FAILED_NO_STATE_CHANGE", cause=str(error))
            return self._ended(document, result, self.active)
        if self._parts.nucleus.installs_first:
            prepared = await self._parts.supervisor.prepare(specifications, self._parts.nucleus.patience)
            if not prepared.succeeded:
                log_event("deployment_not_installed", broken=dict(prepared.broken))
                return self._ended(document, Result(status="FAILED", detail=""), self.active)
        outcome = await self._start(specifications)
        if outcome.succeeded:
            for name in self.active.components.keys() - target.components.keys():
                self._parts.configuration.remove(name)
            return self._ended(document, Result(status="SUCCEEDED", detail="SUCCESSFUL"), target)
        cause = "; ".join(f"{name} is BROKEN: {reason}" for name, reason in sorted(outcome.broken.items()))
        if not self._parts.nucleus.rolls_back:
            log_event("deployment_broken", deployment=document.deployment_id, cause=cause)
            return self._ended(document, Result(status="FAILED", detail=""), target)
        if document.failure_handling_policy == "DO_NOTHING":
            return self._ended(
                document, Result(status="FAILED", detail="FAILED_ROLLBACK_NOT_REQUESTED", cause=cause), target
            )
        log_event("deployment_rolled_back", deployment=document.deployment_id, cause=cause)
        self._parts.configuration.restore(before)
        undone = await self._start(self._specify(self.active))
        detail = "FAILED_ROLLBACK_COMPLETE" if undone.succeeded else "FAILED_UNABLE_TO_ROLLBACK"
        return self._ended(document, Result(status="FAILED", detail=detail, cause=cause), self.active)

    def _ended(self, document: DeploymentDocument, result: Result, active: Active) -> Result:
        results = {**self.active.results, document.deployment_id: result}
        self.active = active
        # Results are kept for jobs whose report got lost on the way: they are reported again and not done again.
        self.active.results = dict(list(results.items())[-_KEPT_RESULTS:])
        write_atomically(self._file, self.active.model_dump_json().encode())
        self._undo.unlink(missing_ok=True)
        self._parts.store.clean(self.active.components.items())
        self._parts.updates.announce_done(document.deployment_id)
        log_event(
            "deployment_ended",
            deployment=document.deployment_id,
            status=result.status,
            detail=result.detail,
            cause=result.cause,
        )
        return result

    def _configure(self, document: DeploymentDocument, resolved: Mapping[str, Resolved]) -> None:
        store = self._parts.configuration
        # Defaults carry the oldest time there is and updates the deployment's: what was set later stays.
        for name in resolved.keys() | document.components.keys():
            named = document.components.get(name)
            update = (named.configuration_update if named else None) or ConfigurationUpdate()
            # In the nucleus's order: what is reset falls back to the recipe's default, then the merge is laid over
            # it.
            store.reset(name, update.reset)
            if name in resolved:
                store.merge(name, resolved[name].recipe.configuration.default, DEFAULTS_TIME)
            store.merge(name, update.merge, document.creation_timestamp)

    def _specify(self, active: Active) -> dict[str, Specification]:
        recipes = [self._parts.store.recipe(name, version) for name, version in active.components.items()]
        return {
            name: replace(one, configuration=active.configured.get(name, ""))
            for name, one in self._parts.specify(recipes).items()
        }

    async def _start(self, specifications: Mapping[str, Specification]) -> Outcome:
        await self._begin(specifications)
        return await self._parts.supervisor.settled(self._parts.nucleus.patience)

    async def _begin(self, specifications: Mapping[str, Specification], *, installed: bool = False) -> None:
        needed = {name for specification in specifications.values() for name in specification.dependencies}
        # Before the components: they wait for these as for any other HARD dependency.
        await self._parts.start_builtin(frozenset(needed))
        await self._parts.supervisor.replace(specifications, installed=installed)

    def _download(self, resolved: Mapping[str, Resolved]) -> None:
        for found in resolved.values():
            self._parts.store.save_recipe(found.recipe, found.content)
            self._parts.store.fetch(found.recipe, found.manifest.artifacts)

    async def _with_retries(self, work: Callable[[], _T]) -> _T:
        """Run blocking ``work`` in a thread, for ever again while the cloud cannot be reached."""
        delay = _FIRST_RETRY
        while True:
            try:
                return await asyncio.to_thread(work)
            except (ClientError, BotoCoreError) as error:
                if not is_transient(error):
                    raise
                log_event("cloud_unreachable", error=str(error), retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)

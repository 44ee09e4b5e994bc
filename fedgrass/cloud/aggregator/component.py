"""A component version in the account: created once, waited for, the same however often it is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential

from fedgrass.errors import ConfigurationError, ReleaseError

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_greengrassv2.type_defs import CloudComponentStatusTypeDef


@dataclass(frozen=True)
class Account:
    """Where components live."""

    partition: str
    region: str
    account: str

    @classmethod
    def of(cls, arn: str) -> Account:
        """Return the place that an ARN names, such as the thing group's."""
        parts = arn.split(":")
        if len(parts) < 6 or parts[0] != "arn" or not parts[3] or not parts[4]:
            raise ConfigurationError(
                f"{arn!r}: expected the ARN of a thing group, arn:aws:iot:REGION:ACCOUNT:thinggroup/NAME"
            )
        return cls(parts[1], parts[3], parts[4])

    def component_arn(self, name: str, version: str) -> str:
        """Return the ARN of a component version."""
        return f"arn:{self.partition}:greengrass:{self.region}:{self.account}:components:{name}:versions:{version}"


def create_component(greengrass: GreengrassV2Client, account: Account, recipe: bytes, *, timeout: float = 300.0) -> str:
    """Create the component version of a JSON recipe and wait until it is DEPLOYABLE; returns its ARN.

    A version that exists already is taken if its artifacts are the same ones, so that a job that was killed can be
    run
    again.

    Parameters
    ----------
    greengrass
        The boto3 client.
    account
        Account and region, for the version's ARN.
    recipe
        The recipe, as JSON.
    timeout
        Seconds to wait for DEPLOYABLE.

    Returns
    -------
    str
        ARN of the version.

    Raises
    ------
    ReleaseError
        If the version holds other artifacts, cannot be created, or is not ready in time.
    """
    document = json.loads(recipe)
    name, version = document["ComponentName"], document["ComponentVersion"]
    arn = account.component_arn(name, version)
    try:
        greengrass.create_component_version(inlineRecipe=recipe)
    # Already there, by a job that was killed: taken only if it is the same, as component versions are never replaced.
    except greengrass.exceptions.ConflictException:
        _require_same_artifacts(greengrass, arn, document)
    _wait_until_deployable(greengrass, arn, timeout)
    return arn


def _require_same_artifacts(greengrass: GreengrassV2Client, arn: str, ours: dict[str, Any]) -> None:
    # Compared by artifacts alone: the service may give a recipe back in another form than it took it.
    found = json.loads(greengrass.get_component(arn=arn, recipeOutputFormat="JSON")["recipe"])
    if _uris(found) != _uris(ours):
        raise ReleaseError(
            f"{arn}: exists with other artifacts (for example {min(_uris(found) - _uris(ours), default='none')!r}). "
            "A version is never replaced, and those of a component exist once in an account and region: publish under the next "
            "major (fedgrass model publish --version 2.0.0), or give the fleet a component of its own (ModelComponent of "
            "scripts/deploy)"
        )


def _uris(recipe: dict[str, Any]) -> set[str]:
    return {artifact["Uri"] for manifest in recipe["Manifests"] for artifact in manifest.get("Artifacts", ())}


def _wait_until_deployable(greengrass: GreengrassV2Client, arn: str, timeout: float) -> None:
    def status() -> CloudComponentStatusTypeDef:
        try:
            return greengrass.describe_component(arn=arn)["status"]
        except greengrass.exceptions.ResourceNotFoundException:
            return {"componentState": "REQUESTED"}  # not yet everywhere: the service is eventually consistent

    wait = Retrying(
        retry=retry_if_result(lambda found: found["componentState"] in {"REQUESTED", "INITIATED"}),
        # Seconds: quick at first, then every three.
        wait=wait_exponential(multiplier=0.05, max=3),
        stop=stop_after_delay(timeout),
    )
    try:
        found = wait(status)
    except RetryError as error:
        raise ReleaseError(f"{arn}: not DEPLOYABLE after {timeout:.0f} s; run again to go on waiting") from error
    except ClientError as error:
        raise ReleaseError(f"{arn}: its state cannot be read ({error})") from error
    if found["componentState"] != "DEPLOYABLE":
        raise ReleaseError(
            f"{arn}: {found['componentState']}, not DEPLOYABLE: {found.get('message', 'no reason given')}"
        )

"""The aggregator's image, made by CodeBuild: nobody needs Docker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedgrass.cloudformation import StackOutputs
from fedgrass.errors import InfrastructureError

if TYPE_CHECKING:
    from boto3 import Session

_POLL_SECONDS = 5.0


def image_exists(session: Session, outputs: StackOutputs, tag: str) -> bool:
    """Say whether the fleet's repository has an image.

    Parameters
    ----------
    session
        A boto3 session.
    outputs
        The stack's, with the repository.
    tag
        The image's tag, made of its content's digest.

    Returns
    -------
    bool
        Whether it is there.
    """
    ecr = session.client("ecr")
    try:
        ecr.describe_images(repositoryName=outputs.repository_uri.partition("/")[2], imageIds=[{"imageTag": tag}])
    # An image's tag is its source's digest, so one that is there is the right one.
    except ecr.exceptions.ImageNotFoundException:
        return False
    return True


def build_image(
    session: Session,
    outputs: StackOutputs,
    *,
    tell: Callable[[str], object],
    tag: str | None = None,
    source: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Have CodeBuild make the image, and wait until it is there; takes some three minutes.

    Parameters
    ----------
    tag, source
        What to make, and of which archive, ``BUCKET/KEY``; those of the project, which are the stack's, if None.

    Raises
    ------
    InfrastructureError
        If the build fails; the message names its log.
    """
    codebuild = session.client("codebuild")
    # Overrides for this build only; the project itself is CloudFormation's to change.
    other: dict[str, Any] = {}
    if source is not None:
        other["sourceLocationOverride"] = source
    if tag is not None:
        other["environmentVariablesOverride"] = [{"name": "IMAGE_TAG", "value": tag, "type": "PLAINTEXT"}]
    build = codebuild.start_build(projectName=outputs.image_build_project, **other)["build"]
    phase = ""
    # CodeBuild has no waiter in boto3.
    while build["buildStatus"] == "IN_PROGRESS":
        if build.get("currentPhase", "") != phase:
            phase = build["currentPhase"]
            tell(f"  {phase.lower().replace('_', ' ')}")
        pause(_POLL_SECONDS)
        [build] = codebuild.batch_get_builds(ids=[build["id"]])["builds"]
    if build["buildStatus"] != "SUCCEEDED":
        log = build.get("logs", {}).get("deepLink", "the log group /fedgrass/<fleet>/image")
        raise InfrastructureError(f"the image's build {build['id']} ended as {build['buildStatus']}; see {log}")

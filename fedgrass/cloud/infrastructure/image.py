"""The aggregator's image, made by CodeBuild: nobody needs Docker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedgrass.cloudformation import StackOutputs
from fedgrass.errors import InfrastructureError
from fedgrass.polling import poll

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_codebuild.type_defs import BuildTypeDef

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
    phase: str | None = None

    def look() -> BuildTypeDef:
        nonlocal build, phase
        # The first look is at what StartBuild answered.
        if phase is not None:
            [build] = codebuild.batch_get_builds(ids=[build["id"]])["builds"]
        now = build.get("currentPhase", "")
        if now and now != phase and build["buildStatus"] == "IN_PROGRESS":
            tell(f"  {now.lower().replace('_', ' ')}")
        phase = now
        return build

    # CodeBuild has no waiter in boto3, and ends each build in the end.
    poll(
        look,
        lambda found: found["buildStatus"] != "IN_PROGRESS",
        until=lambda: math.inf,
        pause=_POLL_SECONDS,
        sleep=pause,
    )
    if build["buildStatus"] != "SUCCEEDED":
        log = build.get("logs", {}).get("deepLink", "the log group /fedgrass/<fleet>/image")
        raise InfrastructureError(f"the image's build {build['id']} ended as {build['buildStatus']}; see {log}")

"""Publish every component: with the Greengrass Development Kit where it is installed, else by its rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgrass.checkout import build_tool
from fedgrass.cloud.infrastructure import script
from fedgrass.cloud.infrastructure.components import ComponentPublisher, Published
from fedgrass.cloud.infrastructure.storage import ensure_bucket, own_s3
from fedgrass.errors import InfrastructureError

if TYPE_CHECKING:
    from boto3 import Session

# `find_gdk` knows the kit by it.
GDK_VERSION = "1.6.2"


def find_gdk() -> str | None:
    """Return the Greengrass Development Kit's command, or None; an index package of the same name is not taken for it."""
    command = shutil.which("gdk")
    if command is None:
        return None
    # The package index has a project `gdk` that is something else: the kit is known by its version.
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    return command if GDK_VERSION in said.stdout + said.stderr else None


def publish_with_gdk(gdk: str, project: Path, *, bucket: str, region: str) -> None:
    """Build and publish one project.

    The kit asks STS without naming a region: it is given the region in the variable that it reads.

    Parameters
    ----------
    gdk
        Path of the kit's command.
    project
        The component's folder, with ``gdk-config.json``.
    bucket
        Bucket for the artifacts.
    region
        Region of bucket and component.

    Raises
    ------
    InfrastructureError
        With the kit's last words, if it fails.
    """
    for argv in (
        [gdk, "component", "build"],
        [gdk, "component", "publish", "--bucket", bucket, "--region", region],
    ):
        # The kit calls boto3 without a region, and boto3 reads AWS_DEFAULT_REGION only.
        environment = {**os.environ, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        done = subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
        if done.returncode:
            raise InfrastructureError(
                f"{' '.join(argv[1:3])} failed in {project}: {(done.stderr or done.stdout).strip()[-800:]}"
            )


def bucket_of(project: Path) -> str:
    """Return the bucket's stem that a project's gdk-config.json names."""
    [settings] = json.loads((project / "gdk-config.json").read_text())["component"].values()
    return str(settings["publish"]["bucket"])


def publish_all(session: Session, caller: script.Caller, steps: script.Steps, *, gdk: str | None) -> None:
    """Publish every component, dependencies first, the suite last.

    Parameters
    ----------
    session
        A boto3 session.
    caller
        Account, region and partition.
    steps
        Does each step, or only tells of it.
    gdk
        Path of the kit's command; None builds and publishes without it.

    Raises
    ------
    InfrastructureError
        If a component cannot be built or published.
    """
    s3 = own_s3(session, caller)
    publisher = ComponentPublisher(
        greengrass=session.client("greengrassv2"),
        s3=s3,
        account=caller.account,
        region=caller.region,
        partition=caller.partition,
    )
    for project in build_tool().projects():
        stem = bucket_of(project)
        name = next(iter(json.loads((project / "gdk-config.json").read_text())["component"]))
        if gdk is not None:
            # The kit's own rule for a bucket's name.
            bucket = f"{stem}-{caller.region}-{caller.account}"
            if not steps.dry_run:  # before the kit does, which neither protects it nor asks whose it is
                ensure_bucket(s3, bucket, caller, otherwise="components need it: name another in every gdk-config.json")
            steps.do(
                f"gdk component build and publish {name}",
                publish_with_gdk,
                gdk,
                project,
                bucket=bucket,
                region=caller.region,
            )
            continue
        made = steps.do(f"build and publish {name}", _publish, publisher, project, stem)
        if made is not None:
            steps.tell(f"  {made.version}" + ("" if made.fresh else ", unchanged"))


def _publish(publisher: ComponentPublisher, project: Path, stem: str) -> Published:
    return publisher.publish(build_tool().build(project), bucket=stem)


def main(
    use_gdk: Annotated[
        bool, typer.Option("--gdk/--no-gdk", help="Use the Greengrass Development Kit if it is installed.")
    ] = True,
    dry_run: script.DryRun = False,
) -> None:
    """Build every component and publish it to the AWS account of the environment, the suite last.

    A component that did not change keeps its version (without the kit; the kit makes a new one each time).
    """
    session = script.own_session()
    caller = script.identify(session)
    gdk = find_gdk() if use_gdk else None
    if gdk is None:
        typer.echo(
            f"gdk {GDK_VERSION} is not used: publishing by its rules (same archives, bucket and versions). "
            f"To use it: pip install git+https://github.com/aws-greengrass/aws-greengrass-gdk-cli.git@v{GDK_VERSION}",
            err=True,
        )
    publish_all(session, caller, script.Steps(dry_run=dry_run), gdk=gdk)


if __name__ == "__main__":
    script.run(main)

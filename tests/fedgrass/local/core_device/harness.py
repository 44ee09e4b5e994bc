"""Run a core device in a test, and publish and deploy components for it through the real APIs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedgrass.local import processes
from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.waiting import eventually

REPOSITORY = Path(__file__).resolve().parents[4]
BUCKET = "core-device-tests"


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, reaped by its parent or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def zipped(files: Mapping[str, str]) -> bytes:
    """Return a ZIP archive of text files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Fleet:
    """A thing group in the local AWS, with components to deploy to it."""

    aws: LocalAwsProcess
    name: str = field(default_factory=lambda: f"fleet-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        self.iot = self.aws.client("iot")
        self.greengrass = self.aws.client("greengrassv2")
        self.s3 = self.aws.client("s3")
        self.arn = self.iot.create_thing_group(thingGroupName=self.name)["thingGroupArn"]
        self.s3.create_bucket(Bucket=BUCKET)

    def add(self, thing: str) -> None:
        """Create a thing in the group."""
        self.iot.create_thing(thingName=thing)
        self.iot.add_thing_to_thing_group(thingGroupName=self.name, thingName=thing)

    def publish(
        self,
        name: str,
        lifecycle: Mapping[str, Any],
        *,
        version: str = "1.0.0",
        configuration: Mapping[str, Any] | None = None,
        dependencies: Mapping[str, Any] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Create a component version; ``files`` become its archive ``code.zip``."""
        artifacts = []
        if files is not None:
            key = f"{name}/{version}/code.zip"
            self.s3.put_object(Bucket=BUCKET, Key=key, Body=zipped(files))
            artifacts = [{"Uri": f"s3://{BUCKET}/{key}", "Unarchive": "ZIP", "Permission": {"Read": "ALL"}}]
        recipe = {
            "RecipeFormatVersion": "2020-01-25",
            "ComponentName": name,
            "ComponentVersion": version,
            "ComponentDescription": "test",
            "ComponentPublisher": "test",
            "ComponentConfiguration": {"DefaultConfiguration": dict(configuration or {})},
            "ComponentDependencies": dict(dependencies or {}),
            "Manifests": [
                {
                    "Platform": {"os": "linux", "runtime": "*"},
                    "Lifecycle": dict(lifecycle),
                    "Artifacts": artifacts,
                }
            ],
        }
        arn = self.greengrass.create_component_version(inlineRecipe=json.dumps(recipe).encode())["arn"]

        def deployable() -> bool:
            state = self.greengrass.describe_component(arn=arn)["status"]
            assert state["componentState"] != "FAILED", state
            return bool(state["componentState"] == "DEPLOYABLE")

        eventually(deployable, f"{name} {version} deployable")

    def deploy(self, components: Mapping[str, Any], **policies: Any) -> str:
        """Deploy to the group; a component is a version, or a mapping as the API has it."""
        named = {
            name: {"componentVersion": item} if isinstance(item, str) else item for name, item in components.items()
        }
        answer = self.greengrass.create_deployment(targetArn=self.arn, components=named, deploymentPolicies=policies)
        return str(answer["deploymentId"])

    def result(self, thing: str, deployment: str) -> dict[str, Any]:
        """Wait for the end of a deployment on one device and return its effective deployment."""

        def ended() -> dict[str, Any] | None:
            try:
                found = self.greengrass.list_effective_deployments(coreDeviceThingName=thing)["effectiveDeployments"]
            except self.greengrass.exceptions.ResourceNotFoundException:
                return None
            for one in found:
                done = one["coreDeviceExecutionStatus"] not in {"IN_PROGRESS", "QUEUED"}
                if one["deploymentId"] == deployment and done:
                    return dict(one)
            return None

        return eventually(ended, f"deployment {deployment} on {thing}") or {}


class DeviceProcess:
    """``python -m fedgrass.local.core_device`` as a child; leaving its ``with`` block stops it."""

    def __init__(self, fleet: Fleet, root: Path, thing: str, *, arguments: tuple[str, ...] = ()) -> None:
        self.root = root
        self.thing = thing
        self.fleet = fleet
        self._arguments = arguments
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> DeviceProcess:
        """Start it and wait until it serves components."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "device.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "fedgrass.local.core_device", "--root", str(self.root), "--thing", self.thing]
        command += ["--endpoint-url", self.fleet.aws.endpoint_url, "--mqtt", self.fleet.aws.mqtt, *self._arguments]
        environment = {**os.environ, **self.fleet.aws.environment(), "PYTHONPATH": str(REPOSITORY)}
        with (self.root / "stderr.log").open("ab") as output:
            self.child = processes.spawn(command, env=environment, stdout=output, stderr=output)
        child = self.child

        def ready() -> bool:
            assert child.poll() is None, self.text("stderr.log")
            return (self.root / "device.json").exists()

        eventually(ready, f"device {self.thing} started")
        return self

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        return processes.stop(self.child) if self.child is not None else 0

    def text(self, path: str) -> str:
        """Return the content of a file below the root, empty if there is none."""
        file = self.root / path
        return file.read_text() if file.exists() else ""

    def log(self, component: str) -> str:
        """Return what a component wrote."""
        return self.text(f"logs/{component}.log")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the device's log events of one name."""
        lines = [json.loads(line) for line in self.text("logs/greengrass.log").splitlines()]
        return [line for line in lines if line["event"] == name]

    def __enter__(self) -> DeviceProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

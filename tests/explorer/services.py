"""The other services of a fleet's account in memory; a call of any of them is a step of the schedule."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.explorer.dynamo import refusal
from tests.explorer.scheduler import Scheduler
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Scheduled:
    """A service whose every method is a step of the schedule."""

    def __init__(self, scheduler: Scheduler, name: str, service: Any) -> None:
        self._scheduler = scheduler
        self._name = name
        self._service = service

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if name in {"exceptions", "name"} or not callable(found):
            return found
        if name == "get_paginator":
            return lambda operation: _Paginator(self._scheduler, f"{self._name}.{operation}", found(operation))
        label = f"{self._name}.{name}"
        return lambda *given, **arguments: self._scheduler.call(
            _told(label, arguments), lambda: found(*given, **arguments)
        )


class _Paginator:
    def __init__(self, scheduler: Scheduler, label: str, paginator: Any) -> None:
        self._scheduler = scheduler
        self._label = label
        self._paginator = paginator

    def paginate(self, **arguments: Any) -> Iterator[Any]:
        pages = self._scheduler.call(_told(self._label, arguments), lambda: [*self._paginator.paginate(**arguments)])
        yield from pages


class ScheduledTable(Scheduled):
    """A table, whose client is scheduled as well."""

    def __init__(self, scheduler: Scheduler, table: Any) -> None:
        super().__init__(scheduler, f"table {table.name}", table)
        self.name = table.name
        self.meta = SimpleNamespace(client=Scheduled(scheduler, f"table {table.name}", table.meta.client))


def _told(label: str, arguments: dict[str, Any]) -> str:
    for name in ("Key", "topic", "targetArn", "ProcessingJobName", "taskToken", "Item"):
        if name in arguments:
            value = arguments[name]
            if isinstance(value, dict):
                value = value.get("key") or value.get("thing")
            return f"{label} {value}"
    return label


class Objects:
    """S3: versions are not kept, an object's ETag is its content's digest."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_: None))  # there is one account only

    def put_object(self, *, Key: str, Body: Any, IfNoneMatch: str = "", **more: Any) -> None:  # noqa: N803 - boto3's
        if IfNoneMatch and Key in self.objects:
            raise refusal("PreconditionFailed")
        content = Body if isinstance(Body, bytes) else Body.read()
        self.objects[Key] = (content, more.get("Metadata") or {})

    def upload_file(self, Filename: str, Bucket: str, Key: str) -> None:  # noqa: N803
        self.objects[Key] = (Path(Filename).read_bytes(), {})

    def get_object(self, *, Bucket: str, Key: str, **_arguments: Any) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise refusal("NoSuchKey")
        content = self.objects[Key][0]
        headers = {"content-length": str(len(content))}
        about = {"HTTPStatusCode": 200, "HTTPHeaders": headers}
        return {"Body": io.BytesIO(content), "ContentLength": len(content), "ResponseMetadata": about}

    def head_object(self, *, Bucket: str, Key: str, **_arguments: Any) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise refusal("404")
        content, metadata = self.objects[Key]
        return {"Metadata": metadata, "ContentLength": len(content), "ETag": f'"{_etag(content)}"'}

    def list_objects_v2(self, *, Bucket: str, Prefix: str, **_arguments: Any) -> dict[str, Any]:  # noqa: N803
        return {"Contents": [{"Key": key} for key in sorted(self.objects) if key.startswith(Prefix)]}

    def list_object_versions(self, *, Bucket: str, Prefix: str, **more: Any) -> dict[str, Any]:  # noqa: N803
        """List in one page, from a marker on; with a delimiter, common prefixes as S3 does."""
        marker, delimiter = str(more.get("KeyMarker") or ""), more.get("Delimiter")
        found: dict[str, Any] = {"Versions": [], "CommonPrefixes": [], "IsTruncated": False}
        for key, (content, _) in sorted(self.objects.items()):
            if not key.startswith(Prefix) or key <= marker:
                continue
            rest = key.removeprefix(Prefix)
            if delimiter and delimiter in rest:
                folder = {"Prefix": Prefix + rest.split(delimiter)[0] + delimiter}
                found["CommonPrefixes"] += [folder] if folder not in found["CommonPrefixes"] else []
                continue
            entry = {"Key": key, "Size": len(content), "ETag": f'"{_etag(content)}"', "IsLatest": True}
            found["Versions"].append({**entry, "LastModified": START})
        return found

    def get_paginator(self, operation: str) -> Any:
        if operation != "list_object_versions":
            raise NotImplementedError(operation)
        return self

    def paginate(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        yield self.list_object_versions(**arguments)


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class Retained:
    """IoT Core's data plane: the retained message of the one topic there is."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        self.message = b""
        self._heard = heard

    def publish(self, *, topic: str, qos: int, retain: bool, payload: bytes) -> None:
        self.message = payload
        self._heard(payload)


class Jobs:
    """SageMaker: each name once, and the model registry."""

    def __init__(self, started: Callable[[str, dict[str, str]], None], stop: Callable[[str], None]) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, dict[str, Any]] = {}
        self._tokens: dict[str, str] = {}
        self._started = started
        self._stop = stop

    def create_processing_job(self, **arguments: Any) -> None:
        name = arguments["ProcessingJobName"]
        if name in self.jobs:
            raise refusal("ResourceInUse")
        self.jobs[name] = {**arguments, "ProcessingJobStatus": "InProgress"}
        self._started(name, arguments["Environment"])

    def describe_processing_job(self, *, ProcessingJobName: str) -> dict[str, Any]:  # noqa: N803
        return dict(self.jobs[ProcessingJobName])

    def stop_processing_job(self, *, ProcessingJobName: str) -> None:  # noqa: N803
        if ProcessingJobName not in self.jobs:
            raise refusal("ResourceNotFound")
        if self.jobs[ProcessingJobName]["ProcessingJobStatus"] != "InProgress":
            raise refusal("ValidationException")
        self._stop(ProcessingJobName)

    def create_model_package(self, **arguments: Any) -> dict[str, str]:
        token = str(arguments.get("ClientToken") or len(self.packages))
        if token not in self._tokens:
            arn = f"arn:aws:sagemaker:us-east-1:123456789012:model-package/mill/{len(self.packages) + 1}"
            self._tokens[token] = arn
            self.packages[arn] = {**arguments, "ModelPackageArn": arn}
        return {"ModelPackageArn": self._tokens[token]}

    def get_paginator(self, operation: str) -> Any:
        if operation != "list_model_packages":
            raise NotImplementedError(operation)
        return self

    def paginate(self, *, ModelPackageGroupName: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        yield {"ModelPackageSummaryList": list(self.packages.values())}


class Greengrass(FakeGreengrass):
    """Greengrass whose deployments devices hear of."""

    def __init__(self, deployed: Callable[[dict[str, Any]], None], now: Callable[[], datetime]) -> None:
        super().__init__()
        self._now = now
        self.polls_until_deployable = 0
        self._deployed = deployed

    def deploy(self, arguments: dict[str, Any]) -> str:
        made = super().deploy(arguments)
        self.latest["creationTimestamp"] = self._now()
        self._deployed(self.latest)
        return made

"""SageMaker's endpoints: the container contract of hosting, run as one process for each.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from werkzeug import Request, Response

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.account import arn
from fedgrass.local.aws.api import ApiError, json_response
from fedgrass.local.aws.processing.job import Surroundings
from fedgrass.local.processes import signal_group, wait_until
from fedgrass.local.s3_uri import split_uri

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import type_defs as api

_START_S = 240.0  # what SageMaker gives a container until /ping answers, half of it
# SageMaker's own limit on an invocation, in seconds.
_ANSWER_S = 60.0
_INVOKED = re.compile(r"/endpoints/([^/]+)/invocations")
_WORDS = {"model": "Model", "endpoint-config": "EndpointConfig"}

Asked = TypeVar("Asked")


@dataclass
class _Endpoint:
    name: str
    config: str
    status: str = "Creating"
    reason: str | None = None
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def describe(self) -> dict[str, object]:
        shown = {
            "EndpointName": self.name,
            "EndpointArn": arn("sagemaker", f"endpoint/{self.name}"),
            "EndpointConfigName": self.config,
            "EndpointStatus": self.status,
            "FailureReason": self.reason,
        }
        return {name: value for name, value in shown.items() if value is not None}


class Hosting:
    """A `Layer` for models, endpoint configurations, endpoints, and their invocation.

    Parameters
    ----------
    surroundings
        What containers run in.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._models: dict[str, api.CreateModelInputTypeDef] = {}
        self._configs: dict[str, api.CreateEndpointConfigInputTypeDef] = {}
        self._endpoints: dict[str, _Endpoint] = {}
        self._count = 0
        self._lock = threading.RLock()
        self._operations: dict[str, Callable[[Any], dict[str, object]]] = {
            "CreateModel": lambda given: self._create(self._models, "model", given["ModelName"], given),
            "DeleteModel": lambda given: self._delete(self._models, "ModelName", given["ModelName"]),
            "CreateEndpointConfig": lambda given: self._create(
                self._configs, "endpoint-config", given["EndpointConfigName"], given
            ),
            "DeleteEndpointConfig": lambda given: self._delete(
                self._configs, "EndpointConfigName", given["EndpointConfigName"]
            ),
            "CreateEndpoint": self._create_endpoint,
            "UpdateEndpoint": self._update_endpoint,
            "DescribeEndpoint": lambda given: self._find(given["EndpointName"]).describe(),
            "DeleteEndpoint": self._delete_endpoint,
        }

    def layer(self, request: Request) -> Response | None:
        """Answer the operations on endpoints, and pass invocations on to their containers."""
        # Two APIs are signed as sagemaker: the runtime's, by path, and the control plane's, by a header.
        invoked = _INVOKED.fullmatch(request.path)
        operation = self._operations.get(request.headers.get("X-Amz-Target", "").removeprefix("SageMaker."))
        if invoked is None and operation is None:
            return None
        try:
            if invoked is not None:
                return self._invoke(unquote(invoked[1]), request)
            # Not around an invocation, which may take a minute and would hold up all others.
            with self._lock:
                answer = operation(json.loads(request.get_data() or b"{}")) if operation else {}
            return json_response(answer, content_type="application/x-amz-json-1.1")
        except ApiError as error:
            return error.response()

    def _create(self, kept: dict[str, Asked], kind: str, name: str, given: Asked) -> dict[str, object]:
        if name in kept:
            raise ApiError("ValidationException", f"Cannot create already existing {kind} {name}.")
        kept[name] = given
        return {f"{_WORDS[kind]}Arn": arn("sagemaker", f"{kind}/{name}")}

    def _delete(self, kept: dict[str, Asked], key: str, name: str) -> dict[str, object]:
        if kept.pop(name, None) is None:
            raise ApiError("ValidationException", f"Could not find {key} {name}.")
        return {}

    def _create_endpoint(self, given: api.CreateEndpointInputTypeDef) -> dict[str, object]:
        name = given["EndpointName"]
        if name in self._endpoints:
            raise ApiError("ValidationException", f"Cannot create already existing endpoint {name}.")
        self._endpoints[name] = _Endpoint(name, given["EndpointConfigName"])
        self._begin(self._endpoints[name])
        return {"EndpointArn": arn("sagemaker", f"endpoint/{name}")}

    def _update_endpoint(self, given: api.UpdateEndpointInputTypeDef) -> dict[str, object]:
        endpoint = self._find(given["EndpointName"])
        endpoint.config, endpoint.status = given["EndpointConfigName"], "Updating"
        self._begin(endpoint)
        return {"EndpointArn": arn("sagemaker", f"endpoint/{endpoint.name}")}

    def _delete_endpoint(self, given: api.DeleteEndpointInputTypeDef) -> dict[str, object]:
        endpoint = self._find(given["EndpointName"])
        del self._endpoints[endpoint.name]
        _end(endpoint.process)
        return {}

    def _begin(self, endpoint: _Endpoint) -> None:
        config = self._configs.get(endpoint.config)
        if config is None:
            raise ApiError("ValidationException", f"Could not find endpoint configuration {endpoint.config}.")
        model = self._models[config["ProductionVariants"][0]["ModelName"]]
        self._count += 1
        # Numbered: after an update the former container still serves from its own folder.
        folder = self._surroundings.state / "hosting" / f"{endpoint.name}-{self._count}"
        threading.Thread(target=self._bring_up, args=(endpoint, model, folder), daemon=True).start()

    def _bring_up(self, endpoint: _Endpoint, model: api.CreateModelInputTypeDef, folder: Path) -> None:
        before, port = endpoint.process, _free_port()
        try:
            process = self._launch(endpoint.name, model, folder, port)
        except (FedgrassError, OSError, tarfile.TarError) as error:
            endpoint.status, endpoint.reason = "Failed", f"Failed to download model data: {error}"
            return
        # Its death is waited for too: a container that fails to start would else be pinged for four minutes.
        ended = wait_until(lambda: _pings(port) or process.poll() is not None, seconds=_START_S)
        if not ended or process.poll() is not None:
            _end(process)
            endpoint.status = "Failed"
            endpoint.reason = "The container did not pass the ping health check; see its log."
            return
        endpoint.process, endpoint.port, endpoint.status = process, port, "InService"
        # Only now: until the new container answers, the former serves, as SageMaker has it.
        _end(before)

    def _launch(
        self, name: str, model: api.CreateModelInputTypeDef, folder: Path, port: int
    ) -> subprocess.Popen[bytes]:
        ml = folder / "opt" / "ml"
        (ml / "model").mkdir(parents=True)
        archive = folder / "model.tar.gz"
        self._surroundings.objects.download(*split_uri(model["PrimaryContainer"]["ModelDataUrl"]), archive)
        with tarfile.open(archive) as packed:
            # The data filter refuses what would land outside the folder.
            packed.extractall(ml / "model", filter="data")
        command = list(self._surroundings.command)
        if command[0] in {"python", "python3"}:
            command[0] = sys.executable
        environment = {
            # Nothing else of this process's environment; a container has none of it either.
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ},
            **(model["PrimaryContainer"].get("Environment") or {}),
            "FEDGRASS_ML_ROOT": str(ml),
            "FEDGRASS_SERVING_HOST": "127.0.0.1",
            "SAGEMAKER_BIND_TO_PORT": str(port),
        }
        log = self._surroundings.state / "logs" / f"endpoint-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return self._surroundings.children.start(
                [*command, "serve"], env=environment, cwd=ml.parent, stdout=output, stderr=output
            )

    def _invoke(self, name: str, request: Request) -> Response:
        endpoint = self._find(name)
        if endpoint.status not in {"InService", "Updating"} or endpoint.port == 0:
            raise ApiError("ValidationError", f"Endpoint {name} is {endpoint.status}.")
        # Of the headers that SageMaker passes on to a container, those that ours reads.
        headers = {key: value for key in ("Content-Type", "Accept") if (value := request.headers.get(key))}
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=_ANSWER_S)
        try:
            connection.request("POST", "/invocations", request.get_data(), headers)
            answer = connection.getresponse()
            body, status = answer.read(), answer.status
        except OSError as error:
            raise ApiError("ModelNotReadyException", f"Endpoint {name} does not answer: {error}", status=429) from error
        finally:
            connection.close()
        if status != 200:
            said = body.decode(errors="replace")
            raise ApiError(
                # What SageMaker answers whatever the container's code was, with that code among its members.
                "ModelError",
                f'Received client error ({status}) from primary with message "{said}"',
                status=424,
                OriginalStatusCode=status,
                OriginalMessage=said,
            )
        return Response(body, content_type=answer.getheader("Content-Type"))

    def _find(self, name: str) -> _Endpoint:
        if name not in self._endpoints:
            raise ApiError("ValidationException", f'Could not find endpoint "{name}".')
        return self._endpoints[name]


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        signal_group(process.pid, signal.SIGTERM)


def _free_port() -> int:
    # Free at this moment: another program may take it before the container binds it, which then fails its health
    # check.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _pings(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()

"""SageMaker's hosting contract: ``GET /ping`` and ``POST /invocations``, by the standard library alone.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fedgrass.cloud.ending.registration import CONTENT_TYPES
from fedgrass.cloud.serving.bodies import JSON, read_examples, write_outputs
from fedgrass.cloud.serving.model import ServedModel
from fedgrass.errors import ConfigurationError, DataError, FedgrassError
from fedgrass.logs import Log, configure

log = Log(__name__)

MAX_BODY = 25 << 20
"""Bytes; SageMaker itself passes no more on."""
_AT_ONCE = 8
"""Bodies that are read side by side; beyond that the answer is to try again."""
_PATIENCE_S = 60.0


class RefusedError(Exception):
    """A request gets this status, and these words."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_S
    server: ModelServer

    def do_GET(self) -> None:
        """Answer ``/ping``: whoever gets an answer knows that the model is loaded."""
        if self._path() == "/ping":
            manifest = self.server.model.manifest
            self._answer(
                HTTPStatus.OK, JSON, json.dumps({"model": manifest.name, "version": manifest.version}).encode()
            )
        else:
            self._refuse(RefusedError(HTTPStatus.NOT_FOUND, "expected GET /ping or POST /invocations"))

    def do_POST(self) -> None:
        """Answer ``/invocations``."""
        # Not waiting: bodies of 25 MB that pile up would take the container's memory.
        if not self.server.slots.acquire(blocking=False):
            self._refuse(
                RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"{_AT_ONCE} requests are answered already; try again")
            )
            return
        try:
            self._invoke()
        except RefusedError as error:
            self._refuse(error)
        except DataError as error:
            self._refuse(RefusedError(HTTPStatus.BAD_REQUEST, str(error)))
        finally:
            self.server.slots.release()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Keep the log for what goes wrong."""

    def _invoke(self) -> None:
        if self._path() != "/invocations":
            raise RefusedError(HTTPStatus.NOT_FOUND, "expected GET /ping or POST /invocations")
        content_type = self._type("Content-Type")
        if content_type not in CONTENT_TYPES:
            wanted = ", ".join(CONTENT_TYPES)
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type {content_type!r}: expected one of {wanted}"
            )
        accepted = self._accepted(content_type)
        model = self.server.model
        examples = read_examples(self._body(), content_type, model.manifest.x, model.manifest.inputs)
        outputs = write_outputs(model.predict(examples), accepted, model.manifest.outputs)
        self._answer(HTTPStatus.OK, accepted, outputs)

    def _body(self) -> bytes:
        # isdecimal alone lets other scripts' digits through.
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length; chunks are not taken")
        # Length of the text first: int() of a very long one takes quadratic time.
        if len(length) > 12 or int(length) > MAX_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length[:20]} bytes; at most {MAX_BODY} are taken"
            )
        try:
            body = self.rfile.read(int(length))
        except OSError as error:  # too slow, or gone
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come ({error})") from error
        if len(body) < int(length):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{length} bytes were announced, {len(body)} came")
        return body

    def _accepted(self, content_type: str) -> str:
        wanted = [entry.partition(";")[0].strip().lower() for entry in self.headers.get("Accept", "").split(",")]
        if any(entry in ("", "*/*") for entry in wanted):
            return content_type
        found = next((entry for entry in wanted if entry in CONTENT_TYPES), None)
        if found is None:
            raise RefusedError(HTTPStatus.NOT_ACCEPTABLE, f"Accept: expected one of {', '.join(CONTENT_TYPES)}")
        return found

    def _type(self, header: str) -> str:
        return self.headers.get(header, "").partition(";")[0].strip().lower()

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _refuse(self, error: RefusedError) -> None:
        self.close_connection = True  # the rest of its body is not read
        log.log_event("inference_refused", path=self._path()[:100], status=int(error.status), reason=str(error)[:500])
        self._answer(error.status, JSON, json.dumps({"error": str(error)}).encode())

    def _answer(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


class ModelServer(ThreadingHTTPServer):
    """Answers for one model.

    Parameters
    ----------
    address
        Host and port; port 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], model: ServedModel) -> None:
        self.model = model
        self.slots = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, Handler)


def serve(environment: Mapping[str, str]) -> int:
    """Serve the model below ``/opt/ml/model`` until SIGTERM; returns the exit code: 2 if there is none to serve."""
    configure()
    try:
        port = environment.get("SAGEMAKER_BIND_TO_PORT", "8080")
        if not port.isdecimal() or int(port) > 65535:
            raise ConfigurationError(f"SAGEMAKER_BIND_TO_PORT: expected a port, found {port!r}")
        model = ServedModel(Path(environment.get("FEDGRASS_ML_ROOT", "/opt/ml")) / "model")
        # All of the container's addresses: SageMaker speaks to it from outside.
        host = environment.get("FEDGRASS_SERVING_HOST", "0.0.0.0")  # noqa: S104
        server = ModelServer((host, int(port)), model)
    except (FedgrassError, OSError) as error:
        log.log_event("endpoint_failed", reason=str(error))
        return 2
    # From a thread: shutdown waits for the loop that this handler interrupted.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    log.log_event(
        "endpoint_started", model=model.manifest.name, version=model.manifest.version, port=server.server_port
    )
    server.serve_forever()
    server.server_close()
    return 0


def main() -> int:
    """Entry point."""
    return serve(os.environ)

"""The one HTTP endpoint: our layers by service, and moto behind them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from moto.moto_server import werkzeug_app
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug import Request
from werkzeug.serving import WSGIRequestHandler, make_server

from fedgrass.local.aws.account import REGION
from fedgrass.local.aws.api import Layer, signing_name
from fedgrass.local.aws.contention import Contention
from fedgrass.local.aws.overrides import override
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_WARM = ("s3", "sts", "iam", "iot", "dynamodb", "lambda", "events", "states", "sagemaker", "logs", "cloudformation")
"""Services whose moto backends are loaded before the endpoint says that it is ready: each takes a while."""


class Application:
    """WSGI application that lets a service's layers answer before moto does.

    Parameters
    ----------
    contention
        Refuses some requests before anybody sees them.

    Attributes
    ----------
    layers
        By the name that requests are signed for, such as ``greengrass``.
    """

    def __init__(self, contention: Contention) -> None:
        self.layers: dict[str, Layer] = {}
        self._contention = contention
        self._on_change: dict[str, list[Callable[[], None]]] = {}
        override(werkzeug_app, "DISABLE_GLOBAL_CORS", True)  # else any web page may read the answers
        self._moto = DomainDispatcherApplication(create_backend_app)
        # It would list its own folder at each request
        override(self._moto, "get_backend_for_host", lru_cache(self._moto.get_backend_for_host))
        # A transaction that moto cancels puts its tables back as they were before it: what others wrote meanwhile would go.
        self._one_by_one = {"dynamodb": threading.Lock()}

    def on_change(self, *services: str, call: Callable[[], None]) -> None:
        """Call ``call`` when moto has answered a request for a service which may have changed something."""
        for service in services:
            self._on_change.setdefault(service, []).append(call)

    def warm(self) -> None:
        """Load moto's backends."""
        for service in _WARM:
            scope = f"AWS4-HMAC-SHA256 Credential=local/20200101/{REGION}/{service}/aws4_request, "
            # moto tells DynamoDB's two APIs apart by this header.
            target = {"HTTP_X_AMZ_TARGET": "DynamoDB_20120810.ListTables"} if service == "dynamodb" else {}
            self._moto.get_application({"PATH_INFO": "/", "HTTP_AUTHORIZATION": scope, "HTTP_HOST": "local", **target})

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        service = signing_name(environ.get("HTTP_AUTHORIZATION")) or ""
        # Before our own layers, which a busy account throttles as well.
        refusal = self._contention.refusal(service, Request(environ))
        if refusal is not None:
            return refusal(environ, start_response)
        # Layers read the body only of what they answer, or put it back: moto reads it from the environment after
        # them.
        layer = self.layers.get(service)
        if layer is not None:
            response = layer(Request(environ))
            if response is not None:
                return response(environ, start_response)
        with self._one_by_one.get(service, contextlib.nullcontext()):
            answer: Iterable[bytes] = self._moto(environ, start_response)
        # Outside the lock: what is called may take its time.
        # JSON services read by POST too, so this is called more often than something changes; what is called must not
        # mind.
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            for call in self._on_change.get(service, ()):
                call()
        return answer


class _Handler(WSGIRequestHandler):
    """Requests are logged at debug level: a demo makes thousands."""

    # Else there is a new connection for each request.
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
        log_event("http_request", request=getattr(self, "requestline", "-"), status=code)

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's name
        log_event("http_failed" if type == "error" else "http_message", message=message % args if args else message)


class Server:
    """A threaded HTTP server on loopback."""

    def __init__(self, application: WSGIApplication, port: int = 0) -> None:
        # Bound here and served from `start` on: early requests wait in the kernel's queue and are not refused.
        self._server = make_server("127.0.0.1", port, application, threaded=True, request_handler=_Handler)
        # 0.1: seconds between two looks at whether to stop, which is how long `stop` may take.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="endpoint", daemon=True)

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._server.port)

    def start(self) -> None:
        """Answer requests; those that came since the port was bound are waiting."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; requests under way end with the process."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

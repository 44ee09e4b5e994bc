"""Serve operations of a REST-JSON service from botocore's own model of it.

The model says how each operation is spelled on the wire; the service is then only a function per operation, from
the parameters that boto3 takes to the result that boto3 returns.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StructureShape
from botocore.validate import ParamValidator
from werkzeug import Request, Response

from fedgrass.local.aws.api import ApiError, json_response

Operation = Callable[[Any], Mapping[str, object]]
"""From parameters of the operation's own shape, which botocore has checked, to the result."""


@dataclass(frozen=True)
class _Route:
    method: str
    path: re.Pattern[str]
    model: OperationModel
    operation: Operation


class RestJsonService:
    """A `Layer` that answers the operations given and leaves others to moto.

    Parameters
    ----------
    service
        botocore's name of the service, such as ``greengrassv2``.
    operations
        Function by operation name, such as ``CreateDeployment``.
    """

    def __init__(self, service: str, operations: Mapping[str, Operation]) -> None:
        model = ServiceModel(Loader().load_service_model(service, "service-2"), service)
        routes = [self._route(model.operation_model(name), function) for name, function in operations.items()]
        # A literal segment wins over a label in the same place
        self._routes = sorted(routes, key=lambda route: route.path.pattern.count("(?P<"))

    def __call__(self, request: Request) -> Response | None:
        """Answer ``request`` if it is one of the operations."""
        raw = urlsplit(request.environ["RAW_URI"])  # labels may hold encoded slashes
        for route in self._routes:
            match = route.path.fullmatch(raw.path)
            if match is None or route.method != request.method:
                continue
            labels = {name: unquote(text) for name, text in match.groupdict().items()}
            try:
                parameters = _read(route.model.input_shape, labels, parse_qs(raw.query), request)
                return _write(route.model, route.operation(parameters))
            except ApiError as error:
                return error.response()
        return None

    @staticmethod
    def _route(model: OperationModel, operation: Operation) -> _Route:
        # {label} is one segment, {label+} may hold slashes.
        path = re.escape(model.http["requestUri"].split("?")[0])
        path = re.sub(r"\\{(\w+)\\\+\\}", r"(?P<\1>.+)", path)
        path = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", path)
        return _Route(model.http["method"], re.compile(path), model, operation)


def _read(
    shape: StructureShape | None, labels: dict[str, str], query: dict[str, list[str]], request: Request
) -> dict[str, object]:
    if shape is None:
        return {}
    # A payload member is the whole body, as it is, and the other members travel outside it.
    payload = shape.serialization.get("payload")
    body = {} if payload else _json_object(request)
    found: dict[str, object] = {}
    for name, member in shape.members.items():
        wire = member.serialization.get("name", name)
        location = member.serialization.get("location")
        value: object = None
        if location == "uri":
            value = labels[wire]
        elif location == "querystring":
            values = query.get(wire)
            value = values if member.type_name == "list" else values[-1] if values else None
        elif location == "header":
            value = request.headers.get(wire)
        elif name == payload:
            found[name] = request.get_data()
        else:
            value = body.get(wire)
        if value is not None:
            found[name] = _decode(member, value)
    # What boto3 checks of its own requests; other clients check nothing.
    report = ParamValidator().validate(found, shape)
    if report.has_errors():
        raise ApiError("ValidationException", report.generate_report(), reason="FIELD_VALIDATION_FAILED")
    return found


def blob(value: object) -> bytes:
    """Return a blob among the parameters: here it is always bytes, while a client may give a text or a stream.

    Raises
    ------
    ApiError
        ``ValidationException`` if it is anything else.
    """
    if not isinstance(value, bytes):
        raise ApiError("ValidationException", f"A blob is a {type(value).__name__}; expected bytes.")
    return value


def _json_object(request: Request) -> dict[str, Any]:
    data = request.get_data()
    if not data:
        return {}
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ApiError("ValidationException", f"The request's body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise ApiError("ValidationException", "The request's body is not a JSON object.")
    return body


def _decode(shape: Shape, value: Any) -> object:
    try:
        match shape:
            case StructureShape():
                wires = {name: member.serialization.get("name", name) for name, member in shape.members.items()}
                return {
                    name: _decode(shape.members[name], value[wire])
                    for name, wire in wires.items()
                    if value.get(wire) is not None
                }
            case ListShape():
                return [_decode(shape.member, item) for item in value]
            case MapShape():
                return {key: _decode(shape.value, item) for key, item in value.items()}
        match shape.type_name:
            case "blob":
                return base64.b64decode(value, validate=True)
            # In a query it is a text.
            case "boolean":
                return value if isinstance(value, bool) else {"true": True, "false": False}[value]
            case "integer" | "long":
                return int(value)
            case "float" | "double":
                return float(value)
            case _:
                return value
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{value!r} is not a {shape.type_name} as {shape.name} has it ({error})."
        raise ApiError("ValidationException", message) from error


def _write(model: OperationModel, result: Mapping[str, Any]) -> Response:
    status = int(model.http.get("responseCode", 200))
    shape = model.output_shape
    if shape is None:
        # An answer with 204 may have no body (RFC 9110, 15.3.5).
        return json_response({}, status=status) if status != 204 else Response(status=204)
    headers = {}
    body = {}
    payload = shape.serialization.get("payload")
    for name, member in shape.members.items():
        value = result.get(name)
        if value is None:
            continue
        wire = member.serialization.get("name", name)
        location = member.serialization.get("location")
        if location == "statusCode":
            status = value
        elif location == "header":
            headers[wire] = str(value)
        elif name != payload:
            body[wire] = _encode(member, value)
    if payload:
        headers["x-amzn-RequestId"] = str(uuid.uuid4())
        return Response(result.get(payload, b""), status=status, headers=headers)
    return json_response(body, status=status, headers=headers)


def _encode(shape: Shape, value: Any) -> object:
    match shape:
        case StructureShape():
            return {
                member.serialization.get("name", name): _encode(member, value[name])
                for name, member in shape.members.items()
                if value.get(name) is not None
            }
        case ListShape():
            return [_encode(shape.member, item) for item in value]
        case MapShape():
            return {key: _encode(shape.value, item) for key, item in value.items()}
    match shape.type_name:
        case "blob":
            return base64.b64encode(value).decode()
        case "timestamp":
            return value.timestamp() if isinstance(value, datetime) else value
        case _:
            return value

"""What every HTTP layer of the local AWS shares: how requests are told apart and how errors are answered."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from werkzeug import Request, Response

from fedgrass.errors import FedgrassError

Item = TypeVar("Item")

Layer = Callable[[Request], Response | None]
"""Answers a request, or returns None to leave it to moto."""


class ApiError(FedgrassError):
    """A service refuses a request; the client raises it as the modelled exception of that name.

    Parameters
    ----------
    name
        Shape name in the service's model, such as ``ResourceNotFoundException``.
    message
        What was asked and why it cannot be done.
    status
        HTTP status.
    members
        Further members of the exception's shape.
    """

    code = "api"

    def __init__(self, name: str, message: str, *, status: int = 400, **members: object) -> None:
        super().__init__(message)
        self.name = name
        self.status = status
        self.members = members

    def response(self) -> Response:
        """Return the error as the JSON protocols write it."""
        # AWS's services spell the message's key either way, and SDKs look for both.
        body = {"__type": self.name, "message": str(self), "Message": str(self), **self.members}
        # JSON 1.x has the error's name in the body, REST-JSON in this header.
        return json_response(body, status=self.status, headers={"x-amzn-ErrorType": self.name})


def json_response(
    body: object,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    content_type: str = "application/json",
) -> Response:
    """Answer with JSON, and with the request id that AWS SDKs expect.

    Parameters
    ----------
    body
        What is sent.
    status
        HTTP status.
    headers
        Further headers.
    content_type
        Which kind of JSON it is.

    Returns
    -------
    Response
        The answer.
    """
    response = Response(json.dumps(body), status=status, content_type=content_type)
    response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
    response.headers.update(headers or {})
    return response


def signing_name(authorization: str | None) -> str | None:
    """Return the service that a SigV4 ``Authorization`` header was made for, such as ``greengrass``."""
    if not authorization or "Credential=" not in authorization:
        return None
    scope = authorization.split("Credential=", 1)[1].split(",", 1)[0].split("/")
    return scope[3] if len(scope) >= 5 else None


def page(
    items: Sequence[Item], *, token: str | None, limit: int | None, default: int = 50
) -> tuple[list[Item], str | None]:
    """Cut one page out of a list.

    Parameters
    ----------
    items
        The whole list.
    token
        ``nextToken`` of the request; None for the first page.
    limit
        Items that the request asks for; None for the default.
    default
        Items of a page.

    Returns
    -------
    tuple
        The page, and the token of the next; None after the last.

    Raises
    ------
    ApiError
        ``ValidationException`` if the token is not one that this function gave out.
    """
    if token is not None and not token.isdecimal():
        raise ApiError("ValidationException", f"nextToken {token!r} is not one that this service returned.")
    start = int(token or 0)
    end = start + (limit or default)
    return list(items[start:end]), str(end) if end < len(items) else None

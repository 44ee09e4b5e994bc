"""Step Functions: moto interprets the state machines; this only repairs what it gets wrong on the way in."""

from __future__ import annotations

import io
import json
import uuid

from werkzeug import Request, Response


def name_execution(request: Request) -> Response | None:
    """Name an execution that the caller left unnamed, as the service does.

    moto calls each of them ``None``, and refuses the second.
    """
    if request.headers.get("X-Amz-Target") != "AWSStepFunctions.StartExecution":
        return None
    data = request.get_data()
    body = json.loads(data)
    if not body.get("name"):
        data = json.dumps({**body, "name": str(uuid.uuid4())}).encode()
    request.environ["wsgi.input"] = io.BytesIO(data)
    request.environ["CONTENT_LENGTH"] = str(len(data))
    return None

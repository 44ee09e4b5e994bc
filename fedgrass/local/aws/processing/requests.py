"""SageMaker's requests as they come: JSON with the operation's name in a header, checked against botocore's own model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from werkzeug import Request, Response

from fedgrass.local.aws.api import ApiError, json_response

CONTENT_TYPE = "application/x-amz-json-1.1"

Operations: TypeAlias = Mapping[str, Callable[[Any], dict[str, object]]]
"""By name: from parameters of the operation's own shape, which have been checked, to the result."""


def answer(operations: Operations, request: Request) -> Response | None:
    """Answer a request by its operation; None if it asks for another one."""
    name = request.headers.get("X-Amz-Target", "").removeprefix("SageMaker.")
    operation = operations.get(name)
    shape = None if operation is None else _service().operation_model(name).input_shape
    if operation is None or shape is None:
        return None
    try:
        parameters = json.loads(request.get_data() or b"{}")
        # boto3 has checked this before it sent it; other clients check nothing.
        report = ParamValidator().validate(parameters, shape)
        if report.has_errors():
            raise ApiError("ValidationException", report.generate_report())
        return json_response(operation(parameters), content_type=CONTENT_TYPE)
    except ApiError as error:
        return error.response()


@cache
def _service() -> ServiceModel:
    # Cached: SageMaker's model is megabytes of JSON.
    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")

"""What moto lacks of SageMaker's model registry: removing packages and groups."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

from moto.sagemaker.models import SageMakerModelBackend, sagemaker_backends
from werkzeug import Request, Response

from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.api import ApiError, json_response


def layer(request: Request) -> Response | None:
    """Answer DeleteModelPackage and DeleteModelPackageGroup, and refuse ListTags of what is not there."""
    operation = _OPERATIONS.get(request.headers.get("X-Amz-Target", "").removeprefix("SageMaker."))
    if operation is None:
        return None
    data = request.get_data()
    # moto may read it after us.
    request.environ["wsgi.input"] = io.BytesIO(data)
    try:
        operation(sagemaker_backends[ACCOUNT][REGION], json.loads(data))
    except ApiError as error:
        return error.response()
    if operation is _require_group:
        return None
    return json_response({}, content_type="application/x-amz-json-1.1")


def _delete_package(registry: SageMakerModelBackend, parameters: Mapping[str, str]) -> None:
    name = parameters["ModelPackageName"]
    # It may be named by its ARN as well, which is how moto keeps packages.
    arn = registry.model_package_name_mapping.pop(name, name)
    if registry.model_packages.pop(arn, None) is None:
        raise ApiError("ValidationException", f"ModelPackage {name} does not exist.")


def _delete_group(registry: SageMakerModelBackend, parameters: Mapping[str, str]) -> None:
    name = parameters["ModelPackageGroupName"]
    # AWS deletes no group that still has packages.
    if any(package.model_package_group_name == name for package in registry.model_packages.values()):
        raise ApiError("ConflictException", f"Model Package Group {name} contains model packages.")
    if registry.model_package_groups.pop(name, None) is None:
        raise ApiError("ValidationException", f"Model Package Group {name} does not exist.")


def _require_group(registry: SageMakerModelBackend, parameters: Mapping[str, str]) -> None:
    kind, _, name = parameters["ResourceArn"].rpartition(":")[2].partition("/")
    if kind == "model-package-group" and name not in registry.model_package_groups:
        raise ApiError("ValidationException", f"Model Package Group {name} does not exist.")  # moto fails at it


_OPERATIONS = {
    "DeleteModelPackage": _delete_package,
    "DeleteModelPackageGroup": _delete_group,
    "ListTags": _require_group,
}

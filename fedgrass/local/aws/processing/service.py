"""SageMaker's Processing operations; the rest of SageMaker is moto's."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from werkzeug import Request, Response

from fedgrass.local.aws.account import arn
from fedgrass.local.aws.api import ApiError, page
from fedgrass.local.aws.events import Emit
from fedgrass.local.aws.processing.job import ProcessingJob, Surroundings
from fedgrass.local.aws.processing.requests import Operations, answer

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import type_defs as api

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_TIMES = ("CreationTime", "LastModifiedTime", "ProcessingStartTime", "ProcessingEndTime")


class Processing:
    """A `Layer` for Create-, Describe-, List- and StopProcessingJob.

    Parameters
    ----------
    surroundings
        What jobs run in.
    emit
        Sends the state change events.
    """

    def __init__(self, surroundings: Surroundings, emit: Emit) -> None:
        self._surroundings = surroundings
        self._emit = emit
        self._jobs: dict[str, ProcessingJob] = {}
        self._lock = threading.Lock()
        self._operations: Operations = {
            "CreateProcessingJob": self._create,
            "DescribeProcessingJob": self._describe,
            "ListProcessingJobs": self._list,
            "StopProcessingJob": self._stop,
        }

    def layer(self, request: Request) -> Response | None:
        """Answer the Processing operations."""
        return answer(self._operations, request)

    def _create(self, parameters: api.CreateProcessingJobRequestTypeDef) -> dict[str, object]:
        _check(parameters)
        # Name and entry in one step: two requests of a name at once must not both succeed.
        with self._lock:
            name = parameters["ProcessingJobName"]
            if name in self._jobs:
                raise ApiError("ResourceInUse", f"Job name must be unique within an AWS account and region: {name}.")
            job = self._jobs[name] = ProcessingJob(parameters, self._surroundings, self._changed)
        job.start()
        return {"ProcessingJobArn": job.arn}

    def _describe(self, parameters: api.DescribeProcessingJobRequestTypeDef) -> dict[str, object]:
        return self._find(parameters["ProcessingJobName"]).describe()

    def _list(self, parameters: api.ListProcessingJobsRequestTypeDef) -> dict[str, object]:
        key = {"Name": lambda job: job.name, "Status": lambda job: job.status}.get(
            parameters.get("SortBy", "CreationTime"), lambda job: job.created
        )
        after = parameters.get("CreationTimeAfter")  # seconds, in JSON
        found = [
            job
            for job in self._jobs.values()
            if parameters.get("NameContains", "") in job.name
            and parameters.get("StatusEquals") in {None, job.status}
            and not (isinstance(after, (int, float)) and job.created < after)
        ]
        found.sort(key=key, reverse=parameters.get("SortOrder", "Descending") == "Descending")
        items, token = page(found, token=parameters.get("NextToken"), limit=parameters.get("MaxResults"), default=10)
        shown = (
            "ProcessingJobName",
            "ProcessingJobArn",
            "ProcessingJobStatus",
            "ExitMessage",
            "FailureReason",
            *_TIMES,
        )
        summaries = [{name: value for name, value in job.describe().items() if name in shown} for job in items]
        return {"ProcessingJobSummaries": summaries, **({"NextToken": token} if token else {})}

    def _stop(self, parameters: api.StopProcessingJobRequestTypeDef) -> dict[str, object]:
        job = self._find(parameters["ProcessingJobName"])
        if not job.stop():
            raise ApiError("ValidationException", f"Processing job {job.name} is {job.status}: it cannot be stopped.")
        return {}

    def _find(self, name: str) -> ProcessingJob:
        if name not in self._jobs:
            raise ApiError("ValidationException", f"Could not find requested job with name: {name}")
        return self._jobs[name]

    def _changed(self, job: ProcessingJob) -> None:
        detail = job.describe()
        # EventBridge has these in milliseconds, the API in seconds.
        detail |= {name: int(value * 1000) for name in _TIMES if isinstance(value := detail.get(name), float)}
        self._emit("aws.sagemaker", "SageMaker Processing Job State Change", [job.arn], detail)


def _check(parameters: api.CreateProcessingJobRequestTypeDef) -> None:
    """Check the limits that AWS sets and the features that are not run here.

    Raises
    ------
    ApiError
        ``ValidationException`` that names the field.
    """
    environment = parameters.get("Environment") or {}
    inputs = parameters.get("ProcessingInputs") or []
    outputs = parameters.get("ProcessingOutputConfig", {"Outputs": []})["Outputs"]
    arguments = parameters["AppSpecification"].get("ContainerArguments") or []
    instances = parameters["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    s3_inputs: list[Mapping[str, object]] = [
        source.get("S3Input") or {} for source in inputs if not source.get("AppManaged")
    ]
    # The numbers are SageMaker's limits on a request.
    problems = {
        f"ProcessingJobName {parameters['ProcessingJobName']!r} does not match {_NAME.pattern}": (
            _NAME.fullmatch(parameters["ProcessingJobName"]) is None
        ),
        "Environment has more than 100 entries": len(environment) > 100,
        "Environment has a name or a value of more than 256 characters": any(
            len(text) > 256 for pair in environment.items() for text in pair
        ),
        "ProcessingInputs has more than 10 entries": len(inputs) > 10,
        "Outputs has more than 10 entries": len(outputs) > 10,
        "ContainerArguments has more than 100 entries": len(arguments) > 100,
        "an entry of ContainerArguments has more than 256 characters": any(len(text) > 256 for text in arguments),
        "InstanceCount is not between 1 and 100": not 1 <= instances <= 100,
        "an input without S3Input is not run here": any("S3Uri" not in source for source in s3_inputs),
        "S3InputMode Pipe is not run here": any(source.get("S3InputMode") == "Pipe" for source in s3_inputs),
        "S3CompressionType Gzip is not run here": any(
            source.get("S3CompressionType") == "Gzip" for source in s3_inputs
        ),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise ApiError("ValidationException", f"{'; '.join(found)}.", resource=arn("sagemaker", "processing-job"))

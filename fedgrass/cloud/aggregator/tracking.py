"""A fleet as an experiment on an MLflow tracking server, and each of its rounds as a run.

MLflow's REST interface is spoken as it is (https://mlflow.org/docs/latest/rest-api.html), so that the image needs no
package for it. SageMaker's managed MLflow takes the same requests, signed, with the server's ARN in a header:
https://docs.aws.amazon.com/sagemaker/latest/dg/mlflow.html
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session

from fedgrass.errors import TransferError
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport

_API = "/api/2.0/mlflow/"
_SECONDS = (5, 30)  # to connect, to read
_MAX_PARAM = 500  # characters, in every version of MLflow
_MOST_PARAMS = 100  # in one request
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
_ROUND, _EXECUTION = "fedgrass.round", "fedgrass.execution"


class Tracking:
    """An MLflow tracking server.

    Parameters
    ----------
    uri
        Its address, or the ARN of a tracking server of SageMaker's.
    credentials
        That requests to SageMaker's are signed with.
    http
        botocore's session, or what sends a prepared request in its place.
    """

    def __init__(self, uri: str, credentials: Credentials | None = None, http: URLLib3Session | None = None) -> None:
        self._arn = uri if uri.startswith("arn:") else ""
        self._region = uri.split(":")[3] if self._arn else ""
        # https://docs.aws.amazon.com/sagemaker/latest/dg/mlflow.html: one host for a region; the header below names the
        # server.
        self._address = f"https://{self._region}.experiments.sagemaker.aws" if self._arn else uri.rstrip("/")
        self._credentials = credentials
        self._http = http or URLLib3Session(timeout=_SECONDS)  # type: ignore[arg-type]  # the stubs know no pair

    def follow(self, record: RoundRecord, report: RoundReport, *, experiment: str, report_uri: str) -> str:
        """Record a round's settings, figures and lineage as one run of the tracking server, once.

        Parameters
        ----------
        record
            The round.
        report
            Its report.
        experiment
            Name of the experiment; made if absent.
        report_uri
            Where the report is.

        Returns
        -------
        str
            The run's id.

        Raises
        ------
        TransferError
            If the server cannot be reached or refuses.
        """
        place = self._experiment(experiment)
        run = self._run(place, record)
        # MLflow wants milliseconds since the epoch.
        now = int(time.time() * 1000)
        # MLflow takes up to 100 parameters in a request, and 1,000 metrics. A value that it has already is no error.
        settings = [{"key": key, "value": value[:_MAX_PARAM]} for key, value in parameters(record).items()]
        for start in range(0, len(settings), _MOST_PARAMS):
            self._ask("runs/log-batch", {"run_id": run, "params": settings[start : start + _MOST_PARAMS]})
        self._ask(
            "runs/log-batch",
            {
                "run_id": run,
                "metrics": [
                    {"key": key, "value": value, "timestamp": now, "step": record.round}
                    for key, value in metrics(report).items()
                ],
                "tags": [{"key": f"fedgrass.{k}", "value": v} for k, v in lineage(record, report, report_uri).items()],
            },
        )
        self._ask("runs/update", {"run_id": run, "status": "FINISHED", "end_time": _milliseconds(report.finished_at)})
        return run

    def _experiment(self, name: str) -> str:
        try:
            found = self._ask(f"experiments/get-by-name?experiment_name={quote(name, safe='')}")
        # The one refusal that means "make it"; others, such as a missing permission, are raised.
        except _RefusedError as refusal:
            if refusal.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return str(self._ask("experiments/create", {"name": name})["experiment_id"])
        return str(found["experiment"]["experiment_id"])

    def _run(self, experiment: str, record: RoundRecord) -> str:
        """Return the round's run: a restarted job continues the first job's."""
        tags = {_ROUND: str(record.round), _EXECUTION: record.execution}
        # Backticks: a tag's name with a dot is not a word in MLflow's filter language.
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self._ask("runs/search", {"experiment_ids": [experiment], "filter": condition, "max_results": 1})
        if found.get("runs"):
            return str(found["runs"][0]["info"]["run_id"])
        made = self._ask(
            "runs/create",
            {
                "experiment_id": experiment,
                "run_name": f"round {record.round}",
                "start_time": _milliseconds(record.opened_at),
                "tags": [{"key": key, "value": value} for key, value in tags.items()],
            },
        )
        return str(made["run"]["info"]["run_id"])

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        request = AWSRequest(
            # MLflow searches by POST, too: whatever has a body is one.
            method="GET" if body is None else "POST",
            url=self._address + _API + path,
            data=content,
            headers={"Content-Type": "application/json"},
        )
        if self._arn:
            request.headers["x-mlflow-sm-tracking-server-arn"] = self._arn
            # botocore's SigV4Auth sets this header for S3 only.
            request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(content).hexdigest()
            if self._credentials is None:
                raise TransferError("there are no AWS credentials to sign requests to SageMaker's MLflow with")
            SigV4Auth(self._credentials, "sagemaker-mlflow", self._region).add_auth(request)
        try:
            response = self._http.send(request.prepare())
        except BotoCoreError as error:
            raise TransferError(f"MLflow at {self._address} cannot be reached: {error}") from error
        try:
            document: dict[str, Any] = json.loads(response.content)
        except ValueError as error:
            raise TransferError(
                f"MLflow at {self._address}: {path}: status {response.status_code}, and the answer is not JSON"
            ) from error
        if response.status_code != 200:
            raise _RefusedError(self._address, path, document)
        return document


class _RefusedError(TransferError):
    def __init__(self, address: str, path: str, document: dict[str, Any]) -> None:
        self.code = str(document.get("error_code", ""))
        super().__init__(f"MLflow at {address} refused {path}: {self.code} {document.get('message', document)}"[:300])


def parameters(record: RoundRecord) -> dict[str, str]:
    """Return the round's settings, such as ``fit.epochs``."""
    return dict(_flat(record.settings.model_dump(mode="json", exclude={"tracking"})))


def metrics(report: RoundReport) -> dict[str, float]:
    """Return the round's figures."""
    found = {
        "participants": float(len(report.updates)),
        "quarantined": float(len(report.quarantined)),
        "bytes_read": float(report.bytes_read),
        **{f"seconds.{phase}": value for phase, value in report.seconds.items()},
        **{f"accuracy.{file}": value for file, value in report.inference_accuracy.items()},
    }
    for prefix, evaluation in (("", report.evaluation), ("base.", report.evaluation_base)):
        if evaluation is not None:
            found[prefix + "loss"] = evaluation.loss
            found |= {} if evaluation.accuracy is None else {prefix + "accuracy": evaluation.accuracy}
            found |= {prefix + name: value for name, value in evaluation.metrics.items()}
    if report.privacy is not None and report.privacy.epsilon is not None and not report.privacy.unbounded:
        found["epsilon"] = report.privacy.epsilon
    return found


def lineage(record: RoundRecord, report: RoundReport, report_uri: str) -> dict[str, str]:
    """Describe what a round's model was made of, and what became of it.

    Parameters
    ----------
    record
        The round.
    report
        Its report.
    report_uri
        Where the report is.

    Returns
    -------
    dict
        Tags by name; what is not known is left out.
    """
    found: dict[str, str | None] = {
        "fleet": record.fleet,
        "outcome": report.outcome,
        "reason": report.reason,
        "base_version": report.base.version,
        "base_parameters_sha256": report.base.parameters_sha256,
        "graph_sha256": report.base.graph_sha256,
        "version": report.model.version if report.model else None,
        "parameters_sha256": report.model.parameters_sha256 if report.model else None,
        "deployment_id": report.release.deployment_id if report.release else None,
        "model_package_arn": report.release.model_package_arn if report.release else None,
        "report": report_uri,
    }
    return {key: value for key, value in found.items() if value}


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{_NOT_IN_NAMES.sub('_', key)}.")
        else:
            # MLflow refuses a name with other characters, and one that is not its own normal form as a path; names of
            # classes may be anything.
            yield prefix + _NOT_IN_NAMES.sub("_", key), "" if value is None else str(value)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)

"""A released model's entry in SageMaker's Model Registry, made once by whoever comes.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModelPackage.html
"""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import TYPE_CHECKING

from fedgrass.protocol.names import model_prefix, report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Evaluation, ModelEntry

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

ARCHIVE = "model.tar.gz"
CONTENT_TYPES = ("application/json", "text/csv", "application/x-npy")
"""What the image takes and gives where it serves a model (`fedgrass.cloud.serving`)."""
_MAX_VALUE = 256  # characters of a metadata property
_MOST_VALUES = 50  # metadata properties of a package: SageMaker refuses one with more


def archive_key(fleet: str, version: str) -> str:
    """Object key of a model's archive."""
    return model_prefix(fleet, version) + ARCHIVE


def register(
    sagemaker: SageMakerClient,
    group: str,
    image: str,
    bucket: str,
    record: RoundRecord,
    model: ModelEntry,
    *,
    participants: int,
    evaluation: Evaluation | None,
) -> str:
    """Register the round's model as a package of the model registry, once.

    Parameters
    ----------
    sagemaker
        The boto3 client.
    group
        Name of the model package group.
    image
        URI of the image that serves the model.
    bucket
        The fleet's bucket, which already holds the model's archive.
    record
        The round.
    model
        The round's model.
    participants
        Number of updates in the model.
    evaluation
        Its figures; None if nobody evaluated it.

    Returns
    -------
    str
        ARN of the package, whether it was made now or before.
    """
    description = f"{record.fleet} {model.version}"
    # Looked for first: how long SageMaker remembers a ClientToken is not said, and this may be repeated days later.
    found = _find(sagemaker, group, description)
    if found is not None:
        return found
    properties = {
        "fleet": record.fleet,
        "round": str(record.round),
        "version": model.version,
        "base_version": record.base.version,
        "parameters_sha256": model.parameters_sha256,
        "graph_sha256": model.graph_sha256,
        "strategy": record.settings.strategy.name,
        "participants": str(participants),
        "report": f"s3://{bucket}/{report_key(record.fleet, record.round)}",
        "execution": record.execution,
    }
    if evaluation is not None:
        properties |= {"loss": f"{evaluation.loss:.6g}", "examples": str(evaluation.examples)}
        if evaluation.accuracy is not None:
            properties["accuracy"] = f"{evaluation.accuracy:.6g}"
        properties |= {name: f"{value:.6g}" for name, value in evaluation.metrics.items()}
    archive = f"s3://{bucket}/{archive_key(record.fleet, model.version)}"
    made = sagemaker.create_model_package(
        ModelPackageGroupName=group,
        ModelPackageDescription=description,
        ModelApprovalStatus="Approved",  # the round's gate or a person passed it
        InferenceSpecification={
            "Containers": [{"Image": image, "ModelDataUrl": archive, "Framework": "TENSORFLOW"}],
            "SupportedContentTypes": list(CONTENT_TYPES),
            "SupportedResponseMIMETypes": list(CONTENT_TYPES),
        },
        # Lineage comes first: of a model with very many figures the last ones are left out.
        CustomerMetadataProperties={
            name: value[:_MAX_VALUE] for name, value in islice(properties.items(), _MOST_VALUES)
        },
        # Two that come at once make one package.
        ClientToken=hashlib.sha256(f"{group} {description} {model.parameters_sha256}".encode()).hexdigest()[:36],
    )
    return str(made["ModelPackageArn"])


def _find(sagemaker: SageMakerClient, group: str, description: str) -> str | None:
    pages = sagemaker.get_paginator("list_model_packages").paginate(ModelPackageGroupName=group)
    for page in pages:
        for package in page["ModelPackageSummaryList"]:
            if package.get("ModelPackageDescription") == description:
                return str(package["ModelPackageArn"])
    return None

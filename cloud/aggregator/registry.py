"""A released model in SageMaker's Model Registry: where it lies, how good it is, and what it was made of.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModelPackage.html
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.aggregator.s3 import Bucket
from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.protocol.names import model_prefix, report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Evaluation

ARCHIVE = "model.tar.gz"
_MAX_VALUE = 256  # characters of a metadata property


@dataclass(frozen=True)
class Registry:
    """A fleet's model package group.

    Attributes
    ----------
    sagemaker
        A boto3 client.
    group
        The group's name.
    image
        Image that a package names; a package must have one. It is the aggregator's, which serves no requests: to serve a
        model, deploy its ``inference.tflite`` in an image of your own.
    """

    sagemaker: Any
    group: str
    image: str

    def register(
        self, bundle: Bundle, bucket: Bucket, record: RoundRecord, *, participants: int, evaluation: Evaluation | None
    ) -> str:
        """Register the round's model, once; returns the package's ARN."""
        description = f"{record.fleet} {bundle.manifest.version}"
        found = self._find(description)
        if found is not None:
            return found
        key = model_prefix(record.fleet, bundle.manifest.version) + ARCHIVE
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
            packed = Path(folder) / ARCHIVE
            pack(bundle, packed)
            bucket.publish(key, packed)
        properties = {
            "fleet": record.fleet,
            "round": str(record.round),
            "version": bundle.manifest.version,
            "base_version": record.base.version,
            "parameters_sha256": bundle.manifest.parameters_sha256,
            "graph_sha256": bundle.manifest.graph_sha256,
            "strategy": record.settings.strategy.name,
            "participants": str(participants),
            "report": bucket.uri(report_key(record.fleet, record.round)),
            "execution": record.execution,
        }
        if evaluation is not None:
            properties |= {"loss": f"{evaluation.loss:.6g}", "examples": str(evaluation.examples)}
            if evaluation.accuracy is not None:
                properties["accuracy"] = f"{evaluation.accuracy:.6g}"
        made = self.sagemaker.create_model_package(
            ModelPackageGroupName=self.group,
            ModelPackageDescription=description,
            ModelApprovalStatus="Approved",  # the round's gate or a person passed it
            InferenceSpecification={
                "Containers": [{"Image": self.image, "ModelDataUrl": bucket.uri(key), "Framework": "TENSORFLOW"}],
                "SupportedContentTypes": ["application/x-npy"],
                "SupportedResponseMIMETypes": ["application/x-npy"],
            },
            CustomerMetadataProperties={name: value[:_MAX_VALUE] for name, value in properties.items()},
        )
        return str(made["ModelPackageArn"])

    def _find(self, description: str) -> str | None:
        pages = self.sagemaker.get_paginator("list_model_packages").paginate(ModelPackageGroupName=self.group)
        for page in pages:
            for package in page["ModelPackageSummaryList"]:
                if package.get("ModelPackageDescription") == description:
                    return str(package["ModelPackageArn"])
        return None


def pack(bundle: Bundle, path: Path) -> None:
    """Write the bundle's files as ``.tar.gz``; the same bundle gives the same bytes."""
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name in (*sorted(bundle.manifest.files), MANIFEST):
            entry = tarfile.TarInfo(name)
            entry.size = bundle.path(name).stat().st_size
            entry.mode = 0o644
            with bundle.path(name).open("rb") as content:
                tar.addfile(entry, content)

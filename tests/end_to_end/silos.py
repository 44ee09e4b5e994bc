"""Another AWS account beside the fleet's, in which silos' own stacks are deployed as its administrator would."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.aws.client import start as start_aws
from fedgrass.local.fleet import LocalFleet
from fedgrass.tensors import Array
from tests.fixtures.places import TEMPLATE
from tests.fixtures.waiting import PATIENCE

IMAGE = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/fedgrass/image@sha256:{'5' * 64}"
BUCKET = "hospital-data"


@contextmanager
def silo_account(
    fleet: LocalFleet, folder: Path, account: str, data: dict[str, tuple[Array, Array]]
) -> Iterator[LocalAwsProcess]:
    """Start the account, with a silo for each of ``data``."""
    with start_aws(folder / account, account=account, accounts=fleet.accounts) as aws:
        aws.client("s3").create_bucket(Bucket=BUCKET)
        for name, (x, y) in data.items():
            content = io.BytesIO()
            np.savez(content, x=x, y=y)
            aws.client("s3").put_object(Bucket=BUCKET, Key=f"{name}/data.npz", Body=content.getvalue())
            parameters = {
                "Silo": name,
                "Fleet": fleet.fleet,
                "FleetAccount": fleet.aws.account,
                "FleetRole": f"arn:aws:iam::{fleet.aws.account}:role/fedgrass-{fleet.fleet}-silo",
                "FleetRegion": fleet.aws.region,
                "Image": IMAGE,
                "DataBucket": BUCKET,
                "DataPrefix": f"{name}/",
                "Loader": "npz",
                "File": "data.npz",
                "WaitSeconds": str(int(PATIENCE)),
            }
            aws.client("cloudformation").create_stack(
                StackName=f"silo-{name}",
                TemplateBody=TEMPLATE.with_name("silo_account.yaml").read_text(),
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
                Capabilities=["CAPABILITY_NAMED_IAM"],
            )
        yield aws

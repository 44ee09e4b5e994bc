"""Silos' training jobs as processes: SageMaker's container contract, with the fleet's account at the local endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from fedgrass.tensors import Array
from local.fleet import LocalFleet
from tests.fixtures.waiting import PATIENCE

_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def silo_jobs(
    fleet: LocalFleet, folder: Path, data: dict[str, tuple[Array, Array]]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a job for each silo, to take part in one round; what is still running at the end is killed."""
    with ExitStack() as stack:
        jobs = []
        for silo, (x, y) in data.items():
            root = folder / silo
            (root / "input/config").mkdir(parents=True)
            (root / "input/data/training").mkdir(parents=True)
            np.savez(root / "input/data/training/data.npz", x=x, y=y)
            parameters = {
                "fleet": fleet.fleet,
                "silo": silo,
                "role_arn": f"arn:aws:iam::{fleet.aws.account}:role/fedgrass-{fleet.fleet}-silo",
                "region": fleet.aws.region,
                "loader": "npz",
                "file": "data.npz",
                "wait_seconds": str(PATIENCE),
            }
            (root / "input/config/hyperparameters.json").write_text(json.dumps(parameters))
            environment = {**os.environ, **fleet.aws.environment(), "FEDGRASS_ML_ROOT": str(root)}
            job = subprocess.Popen([sys.executable, "-m", "cloud.silo"], cwd=_ROOT, env=environment)
            stack.callback(job.wait)
            stack.callback(job.kill)
            jobs.append(job)
        yield jobs

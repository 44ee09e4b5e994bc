"""A job that is run again, after it was killed anywhere or after others have gone on."""

from __future__ import annotations

from typing import Any

import pytest

from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.protocol.names import GLOBAL_MODEL, model_prefix
from tests.fedgrass.cloud.aggregator.conftest import (
    FLEET,
    GROUP_ARN,
    ROUND,
    Fleet,
    three_updates,
    update_bytes,
)

NEW = model_prefix(FLEET, f"1.{ROUND}.0")


def test_running_again_returns_the_same_report_and_makes_nothing_new(fleet: Fleet) -> None:
    three_updates(fleet)
    first = fleet.run()
    fleet.put_update("press-d", 8)
    assert fleet.run() == first
    assert len(fleet.greengrass.deployments) == 1


class KilledError(BaseException):
    """The process is gone: nothing of ours runs after it."""


class KillingS3:
    """An S3 client that dies at its n-th write, before or after the write is done."""

    def __init__(self, client: Any, writes: int, after: bool) -> None:
        self._client = client
        self._writes = writes
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        self._writes -= 1
        if self._writes < 0 and not self._after:
            raise KilledError
        answer = self._client.put_object(**arguments)
        if self._writes < 0:
            raise KilledError
        return answer


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("writes", range(6))
def test_a_job_killed_at_any_write_gives_the_same_result_when_run_again(fleet: Fleet, writes: int, after: bool) -> None:
    three_updates(fleet)
    with pytest.raises(KilledError):
        fleet.run(bucket=Bucket(KillingS3(fleet.s3, writes, after), "fedgrass-test"))  # type: ignore[arg-type]
    uploaded = {key.removeprefix(NEW) for key in fleet.keys(NEW)}
    assert MANIFEST not in uploaded or uploaded == {*fleet.base.manifest.files, MANIFEST}
    assert not fleet.greengrass.deployments or writes >= 5
    if writes >= 1 or after:
        fleet.put_update("press-d", 8)  # after the list was pinned: it comes too late
        fleet.put_update("press-a", 77)  # and what was pinned stays what it was
    report = fleet.run()
    assert report.outcome == "released"
    assert report.model is not None
    assert report.model.parameters_sha256 == digest_of_the_three(fleet)
    assert len(fleet.greengrass.deployments) == 1
    assert len(fleet.greengrass.components) == 1


@pytest.mark.parametrize("when", ["before_create", "after_create"])
def test_a_job_killed_while_deploying_deploys_once_when_run_again(fleet: Fleet, when: str) -> None:
    def die() -> None:
        raise KilledError

    three_updates(fleet)
    setattr(fleet.greengrass, when, die)
    with pytest.raises(KilledError):
        fleet.run()
    setattr(fleet.greengrass, when, lambda: None)
    report = fleet.run()
    assert report.outcome == "released"
    assert len(fleet.greengrass.deployments) == 1


def test_a_job_run_late_does_not_put_an_older_model_over_a_newer_one(fleet: Fleet) -> None:
    three_updates(fleet)
    newer = {GLOBAL_MODEL: {"componentVersion": "2.0.0"}}
    fleet.greengrass.deploy({"targetArn": GROUP_ARN, "components": newer})
    report = fleet.run()
    assert report.outcome == "held"
    assert "2.0.0" in report.reason
    assert fleet.greengrass.latest["components"] == newer


def digest_of_the_three(fleet: Fleet) -> str:
    """Digest of what the three updates give, aggregated on their own in a folder."""
    updates = fleet.folder / "alone"
    updates.mkdir()
    for seed, thing in enumerate(["press-b", "press-a", "press-c"]):
        content = update_bytes(fleet.base, thing, seed, fleet.folder, num_examples=100 * (seed + 1))
        (updates / f"{thing}.safetensors").write_bytes(content)
    aggregate_folder(fleet.base.folder, updates, fleet.folder / "out")
    return Bundle.open(fleet.folder / "out").manifest.parameters_sha256

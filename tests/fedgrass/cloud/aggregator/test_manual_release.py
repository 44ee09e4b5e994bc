"""A person's word on which model a fleet has, over what a real job held or released."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.canaries import CanaryError
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.manual_release import fleet_clients, release, roll_back
from fedgrass.cloud.aggregator.release import publish_model
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.server_state import load_state
from fedgrass.cloud.ending.deployment import SupersededError
from fedgrass.errors import ReleaseError, RoundRefusedError
from fedgrass.protocol import tables
from fedgrass.protocol.names import GLOBAL_MODEL, report_prefix, update_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, make_record, update_bytes
from tests.fedgrass.cloud.console.conftest import GROUP_ARN, Fleet, fresh_fleet

HELD = "1.3.0"
CANARIES = f"{GROUP_ARN.rpartition('/')[0]}/canaries"
VISION = {"componentVersion": "4.2.0", "configurationUpdate": {"merge": '{"fps": 5}'}}


class Mill:
    """A fleet with its first model deployed beside another's component; ``run`` is a round's job, recorded as closed."""

    def __init__(self, fleet: Fleet, base: Bundle, folder: Path) -> None:
        self.fleet, self.account, self._folder = fleet, fleet.account, folder
        self.clients = fleet_clients(fleet.account)
        components = {GLOBAL_MODEL: {"componentVersion": "1.0.0"}, "com.acme.Vision": VISION}
        fleet.greengrass.deploy({"targetArn": GROUP_ARN, "components": components})
        self.first = publish_model(base, self.clients).base
        for seed, thing in enumerate(("a", "b", "c")):
            content = update_bytes(base, thing, seed, folder)
            key = update_key(FLEET, ROUND, thing)
            self.account.s3.put_object(Bucket=self.account.stack.bucket, Key=key, Body=content)

    def run(self, **settings: Any) -> RoundRecord:
        record = make_record(FLEET, self.first, FleetSettings().overridden(settings))
        self.clients.rounds.put_item(Item=record.to_item())
        source = RoundUpdates(self.account.s3, self.account.stack.bucket, FLEET, ROUND)
        report = RoundJob(record, self.clients, source, self._folder / "scratch").run()
        closed = record.model_copy(
            update={
                "phase": "closed",
                "outcome": report.outcome,
                "reason": report.reason,
                "aggregated_at": report.finished_at,
            }
        )
        self.clients.rounds.put_item(Item=closed.to_item())
        if report.outcome in {"released", "advanced"} and report.model is not None:
            base = self.first.model_copy(
                update={
                    "version": HELD,
                    "parameters_key": self.first.parameters_key.replace("1.0.0", HELD),
                    "parameters_sha256": report.model.parameters_sha256,
                }
            )
            tables.set_current_model(self.clients.rounds, FLEET, base)
        return closed

    @property
    def current(self) -> str:
        model = tables.load_state(self.clients.rounds, FLEET).model
        return model.version if model else ""

    @property
    def deployed(self) -> dict[str, Any]:
        components: dict[str, Any] = self.fleet.greengrass.latest["components"]
        return components


@pytest.fixture
def mill(digits: Bundle, tmp_path: Path) -> Iterator[Mill]:
    with fresh_fleet() as fleet:
        (tmp_path / "scratch").mkdir()
        yield Mill(fleet, digits, tmp_path)


def test_a_held_model_is_released_as_the_job_would_have_and_the_deployment_is_merged(mill: Mill) -> None:
    assert mill.run(release="never").outcome == "held"
    assert mill.current == "1.0.0"

    released = release(mill.account, HELD)

    assert mill.current == HELD
    assert mill.deployed == {GLOBAL_MODEL: {"componentVersion": HELD}, "com.acme.Vision": VISION}
    report = mill.account.s3.get_object(
        Bucket=mill.account.stack.bucket, Key=report_prefix(FLEET, ROUND) + "report.json"
    )["Body"].read()
    assert released.base.parameters_sha256.encode() in report
    record = tables.load_round(mill.clients.rounds, FLEET, ROUND)
    assert record.outcome == "released"
    assert "released by hand; it was held" in record.reason
    before = len(mill.fleet.greengrass.deployments)
    assert release(mill.account, HELD) == released
    assert len(mill.fleet.greengrass.deployments) == before
    assert tables.load_round(mill.clients.rounds, FLEET, ROUND) == record


def test_a_model_that_was_only_the_base_of_the_next_round_is_released_and_is_a_way_back(mill: Mill) -> None:
    assert mill.run(release_every=2).outcome == "advanced"
    assert mill.current == HELD
    assert mill.deployed[GLOBAL_MODEL] == {"componentVersion": "1.0.0"}
    roll_back(mill.account, "1.0.0")
    roll_back(mill.account, HELD)
    assert mill.current == HELD
    assert mill.deployed[GLOBAL_MODEL] == {"componentVersion": HELD}

    released = release(mill.account, HELD)

    assert released.base == tables.load_state(mill.clients.rounds, FLEET).model
    assert mill.deployed == {GLOBAL_MODEL: {"componentVersion": HELD}, "com.acme.Vision": VISION}
    record = tables.load_round(mill.clients.rounds, FLEET, ROUND)
    assert (record.outcome, "it was advanced" in record.reason) == ("released", True)


def test_the_server_s_state_goes_with_a_held_model(mill: Mill, tmp_path: Path) -> None:
    record = mill.run(release="never", strategy={"name": "fedavgm"})
    released = release(mill.account, HELD)
    assert released.base.state is not None
    assert released.base.state.strategy == "fedavgm"
    assert released.base == tables.load_state(mill.clients.rounds, FLEET).model
    assert load_state(mill.clients.bucket, released.base, record.settings.strategy.made(), tmp_path)


def test_a_model_that_is_released_by_hand_is_registered_once(mill: Mill) -> None:
    sagemaker, group = mill.account.session.client("sagemaker"), mill.account.stack.model_package_group
    sagemaker.create_model_package_group(ModelPackageGroupName=group)
    mill.run(release="never")
    released = release(mill.account, HELD)
    assert release(mill.account, HELD) == released
    packages = sagemaker.list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]
    assert [package["ModelPackageArn"] for package in packages] == [released.model_package_arn]


def test_canaries_get_it_first_unless_they_had_it_or_the_person_does_without(mill: Mill) -> None:
    mill.fleet.greengrass.core_devices[CANARIES] = ["a", "b"]
    record = mill.run(release="never", rollout={"canary_group": "canaries", "canary_seconds": 1})
    with pytest.raises(CanaryError, match="no canary made it active"):
        release(mill.account, HELD)
    assert mill.current == "1.0.0"
    assert {made["targetArn"] for made in mill.fleet.greengrass.deployments[1:]} == {CANARIES}

    mill.clients.rounds.put_item(Item=record.model_copy(update={"refused": 2}).to_item())
    release(mill.account, HELD)
    assert mill.current == HELD
    assert mill.deployed[GLOBAL_MODEL] == {"componentVersion": HELD}
    mill.clients.rounds.put_item(Item=record.to_item())
    roll_back(mill.account, "1.0.0")
    release(mill.account, HELD, canaries=False)
    assert mill.deployed[GLOBAL_MODEL] == {"componentVersion": HELD}


def test_parameters_that_are_not_those_of_the_report_are_not_released(mill: Mill) -> None:
    mill.run(release="never")
    other = mill.account.s3.get_object(Bucket=mill.account.stack.bucket, Key=mill.first.parameters_key)["Body"].read()
    key = report_prefix(FLEET, ROUND) + "parameters.safetensors"
    mill.account.s3.put_object(Bucket=mill.account.stack.bucket, Key=key, Body=other)
    with pytest.raises(ReleaseError, match="not the one that the report"):
        release(mill.account, HELD)
    assert mill.current == "1.0.0"


@pytest.mark.parametrize("version", ["1.0.0", "1.4.0", "2.3.0"])
def test_only_what_a_round_made_is_released(mill: Mill, version: str) -> None:
    mill.run(release="never")
    with pytest.raises(ReleaseError, match="no round of fleet"):
        release(mill.account, version)


def test_a_held_model_older_than_the_current_one_stays_out(mill: Mill, digits: Bundle) -> None:
    mill.run(release="never")
    newer = mill.first.model_copy(update={"version": "1.9.0"})
    tables.set_current_model(mill.clients.rounds, FLEET, newer)
    with pytest.raises(SupersededError, match=r"1\.9\.0"):
        release(mill.account, HELD)
    assert mill.deployed[GLOBAL_MODEL] == {"componentVersion": "1.0.0"}


def test_an_earlier_version_comes_back_for_devices_and_rounds_and_the_way_forth_stays_open(mill: Mill) -> None:
    assert mill.run().outcome == "released"
    assert mill.current == HELD

    back = roll_back(mill.account, "1.0.0")

    assert back.base == mill.first
    assert mill.current == "1.0.0"
    assert mill.deployed == {GLOBAL_MODEL: {"componentVersion": "1.0.0"}, "com.acme.Vision": VISION}
    before = len(mill.fleet.greengrass.deployments)
    assert roll_back(mill.account, "1.0.0").deployment_id == back.deployment_id
    assert len(mill.fleet.greengrass.deployments) == before
    roll_back(mill.account, HELD)
    assert mill.current == HELD
    assert mill.deployed[GLOBAL_MODEL] == {"componentVersion": HELD}


def test_a_version_that_the_fleet_never_had_is_no_way_back(mill: Mill) -> None:
    mill.run(release="never")
    with pytest.raises(ReleaseError, match="did not release it"):
        roll_back(mill.account, HELD)
    with pytest.raises(ReleaseError, match="never had it"):
        roll_back(mill.account, "1.2.0")


def test_nothing_changes_while_a_round_is_open(mill: Mill) -> None:
    record = mill.run(release="never")
    mill.fleet.open(record.model_copy(update={"round": ROUND + 1, "phase": "collecting"}))
    for action in (release, roll_back):
        with pytest.raises(RoundRefusedError, match="round 4"):
            action(mill.account, HELD)
    assert mill.current == "1.0.0"
    assert len(mill.fleet.greengrass.deployments) == 1


def test_a_round_that_opens_meanwhile_is_not_overtaken_by_a_roll_back(mill: Mill) -> None:
    seen = tables.load_state(mill.clients.rounds, FLEET)
    mill.fleet.open(mill.run().model_copy(update={"round": ROUND + 1, "phase": "collecting"}))
    assert not tables.return_to_model(mill.clients.rounds, FLEET, seen, mill.first)
    assert mill.current == HELD

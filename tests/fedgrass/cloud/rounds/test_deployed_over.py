"""A deployment made from an older one undoes a release, for CreateDeployment replaces everything: the close says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from fedgrass.cloud.ending.outcome import decide
from fedgrass.cloud.ending.reports import proposal_key
from fedgrass.cloud.rounds.close_round import CloseRequest, close_round
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.names import report_key
from fedgrass.protocol.report import ReleaseEntry
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet

GROUP_ARN = "arn:aws:iot:us-east-1:123456789012:thinggroup/digits"
MODEL = "com.fedgrass.GlobalModel"
VISION = {"componentVersion": "4.2.0"}


@pytest.fixture
def greengrass(fleet: Fleet) -> FakeGreengrass:
    """The fleet with a round's model proposed and decided, and nothing of it deployed."""
    found = FakeGreengrass()
    fleet.services.__dict__["greengrass"] = found
    found.deploy(
        {"targetArn": GROUP_ARN, "components": {MODEL: {"componentVersion": "1.0.0"}, "com.acme.Vision": VISION}}
    )
    fleet.services.__dict__["sagemaker"] = fleet.sagemaker
    fleet.open()
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    entry = ReleaseEntry(component_arn="arn", deployment_id="", target_arn=GROUP_ARN)
    report = fleet.write_report("released", release=entry)
    fleet.services.s3.delete_object(Bucket="fedgrass-digits", Key=report_key(FLEET, 1))
    fleet.services.s3.put_object(Bucket="fedgrass-digits", Key=proposal_key(FLEET, 1), Body=report.to_json())
    assert decide(fleet.rounds, fleet.round(), report) == "decided"
    return found


def with_model(components: dict[str, Any], version: str | None) -> dict[str, Any]:
    others = {name: given for name, given in components.items() if name != MODEL}
    return others if version is None else {**others, MODEL: {"componentVersion": version}}


@pytest.mark.parametrize("version", ["1.0.0", None])
def test_a_stale_deployment_over_a_release_is_said_at_the_close(
    fleet: Fleet, greengrass: FakeGreengrass, version: str | None
) -> None:
    stale = greengrass.latest["components"]
    record_report(fleet.services, RoundRequest(round=1))
    assert greengrass.latest["components"][MODEL] == {"componentVersion": "1.1.0"}
    greengrass.create_deployment(targetArn=GROUP_ARN, components=with_model(stale, version))

    closed = close_round(fleet.services, CloseRequest(round=1, rounds=1))["results"][0]

    assert closed["outcome"] == "released"
    assert f"has {version or 'no model'} and not 1.1.0: somebody deployed over it" in closed["reason"]
    assert "`fedgrass model roll-back 1.1.0`" in closed["reason"]
    assert fleet.round().reason == closed["reason"]
    assert len(greengrass.deployments) == 3, "a person's deployment is not undone"


def own_change(greengrass: FakeGreengrass) -> None:
    components = {**greengrass.latest["components"], "com.acme.Vision": {"componentVersion": "4.3.0"}}
    greengrass.create_deployment(targetArn=GROUP_ARN, components=components)


def other_group(greengrass: FakeGreengrass) -> None:
    greengrass.create_deployment(targetArn=f"{GROUP_ARN}-other", components={})


@pytest.mark.parametrize("act", [lambda _: None, own_change, other_group], ids=["nothing", "merged", "elsewhere"])
def test_nothing_is_said_of_what_left_the_model_alone(
    fleet: Fleet, greengrass: FakeGreengrass, act: Callable[[FakeGreengrass], None]
) -> None:
    record_report(fleet.services, RoundRequest(round=1))
    act(greengrass)
    assert "deployed over" not in close_round(fleet.services, CloseRequest(round=1, rounds=1))["results"][0]["reason"]


def test_a_comparison_that_cannot_be_made_ends_no_round(
    fleet: Fleet, greengrass: FakeGreengrass, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_report(fleet.services, RoundRequest(round=1))

    def fails(**_arguments: Any) -> Any:
        raise EndpointConnectionError(endpoint_url="https://greengrass")

    monkeypatch.setattr(greengrass, "get_deployment", fails)
    assert close_round(fleet.services, CloseRequest(round=1, rounds=1))["results"][0]["outcome"] == "released"
    assert fleet.round().phase == "closed"

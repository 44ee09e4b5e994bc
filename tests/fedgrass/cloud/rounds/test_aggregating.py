from __future__ import annotations

import re

import pytest

from fedgrass.cloud.rounds.aggregation_ended import JobEvent, aggregation_ended
from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import job_name, start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import AggregationError, OutOfMemoryError, RecordError
from fedgrass.protocol.names import report_key
from fedgrass.protocol.report import Hold, Outcome
from fedgrass.protocol.tables import load_state
from tests.fedgrass.cloud.rounds.harness import EXECUTION, FLEET, Fleet, FleetFactory

START = TokenRequest(round=1, token="job")


@pytest.fixture
def collected(fleet: Fleet) -> Fleet:
    """A round with all its updates."""
    fleet.open()
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    return fleet


def event(fleet: Fleet, status: str, **detail: str) -> JobEvent:
    name = fleet.round().job
    return JobEvent(detail={"ProcessingJobName": name, "ProcessingJobStatus": status, **detail})


def test_the_job_gets_the_round_and_nothing_secret(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    (job,) = collected.sagemaker.jobs.values()
    assert job["Environment"] == {
        "FEDGRASS_FLEET": "digits",
        "FEDGRASS_ROUND": "1",
        "FEDGRASS_BUCKET": "fedgrass-digits",
        "FEDGRASS_ROUNDS_TABLE": "rounds",
        "FEDGRASS_DEVICES_TABLE": "devices",
        "FEDGRASS_THING_GROUP_ARN": "arn:aws:iot:us-east-1:123456789012:thinggroup/digits",
        "FEDGRASS_MODEL_COMPONENT": "com.fedgrass.GlobalModel",
        "FEDGRASS_MODEL_PACKAGE_GROUP": "fedgrass-digits",
        "FEDGRASS_IMAGE": "aggregator",
        "FEDGRASS_INSTANCES": "1",
    }
    assert "NetworkConfig" not in job
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", job["ProcessingJobName"])
    assert job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 1
    assert collected.announcement is None
    assert collected.round().phase == "aggregating"


def test_the_job_runs_in_the_stack_s_network_and_on_the_round_s_own_machines(make_fleet: FleetFactory) -> None:
    fleet = make_fleet(subnets="subnet-1,subnet-2", groups="sg-1")
    fleet.heartbeats("a", "b", "c")
    fleet.open(aggregation={"instance_type": "ml.c5.xlarge", "instance_count": 2})
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, START)
    (job,) = fleet.sagemaker.jobs.values()
    assert job["NetworkConfig"] == {"VpcConfig": {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}}
    machines = job["ProcessingResources"]["ClusterConfig"]
    assert (machines["InstanceType"], machines["InstanceCount"]) == ("ml.c5.xlarge", 2)


@pytest.mark.parametrize(("strategy", "instances"), [("fedadam", 4), ("median", 1), ("flwr.server.strategy:FedAvg", 1)])
def test_instances_that_would_have_nothing_to_do_are_not_started(fleet: Fleet, strategy: str, instances: int) -> None:
    fleet.open(aggregation={"instance_count": 4}, strategy={"name": strategy})
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, START)
    (job,) = fleet.sagemaker.jobs.values()
    assert job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == instances


@pytest.mark.parametrize("fleet_name", ["d", "_-_", "x" * 64, "under_score", "-a-"])
def test_a_job_s_name_is_one_that_sagemaker_takes(collected: Fleet, fleet_name: str) -> None:
    name = job_name(collected.round().model_copy(update={"fleet": fleet_name, "round": 999_999}))
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name)


def test_too_few_updates_start_no_job(fleet: Fleet) -> None:
    fleet.open()
    record_update(fleet.services, fleet.update("a"))
    start_aggregation(fleet.services, START)
    assert fleet.sagemaker.jobs == {}
    assert fleet.step_functions.answers == {"job": ("success", {"job": "not_needed"})}
    record = fleet.round()
    assert record.outcome == "insufficient_updates"
    assert record.reason == "1 of 3 devices sent an update, 2 are needed"
    assert fleet.announcement is None


def test_a_function_that_runs_again_starts_one_job_and_the_last_token_counts(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    start_aggregation(collected.services, TokenRequest(round=1, token="again"))
    assert len(collected.sagemaker.jobs) == 1
    aggregation_ended(collected.services, event(collected, "Completed"))
    assert collected.step_functions.answers == {"again": ("success", {"job": "Completed"})}


def test_a_job_that_ended_before_its_token_was_known_is_settled(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    (job,) = collected.sagemaker.jobs.values()
    job["ProcessingJobStatus"] = "Completed"
    start_aggregation(collected.services, TokenRequest(round=1, token="again"))
    assert collected.step_functions.answers == {"again": ("success", {"job": "Completed"})}


@pytest.mark.parametrize("status", ["Failed", "Stopped"])
def test_a_job_that_fails_says_why(collected: Fleet, status: str) -> None:
    start_aggregation(collected.services, START)
    ended = event(collected, status, ExitMessage="no space left", FailureReason="AlgorithmError: exit code 1")
    aggregation_ended(collected.services, ended)
    kind, answer = collected.step_functions.answers["job"]
    assert (kind, answer["error"]) == ("failure", "AggregationError")
    assert f"{status.lower()}: no space left" in answer["cause"]


@pytest.mark.parametrize(
    "said",
    [
        {"FailureReason": "AlgorithmError: , exit code: 137"},
        {"FailureReason": "ClientError: Please use an instance type with more memory"},
        {"ExitMessage": "out_of_memory: cannot allocate 8 GB"},
    ],
)
def test_a_job_that_ran_out_of_memory_is_started_once_more_on_twice_the_machine(
    collected: Fleet, said: dict[str, str]
) -> None:
    start_aggregation(collected.services, START)
    first = collected.round().job
    aggregation_ended(collected.services, event(collected, "Failed", **said))
    assert collected.step_functions.answers["job"][1]["error"] == OutOfMemoryError.__name__
    larger = TokenRequest(round=1, token="larger", larger=True)
    start_aggregation(collected.services, larger)
    start_aggregation(collected.services, larger)  # a function may run twice
    assert len(collected.sagemaker.jobs) == 2
    second = collected.sagemaker.jobs[str(collected.round().job)]
    assert second["ProcessingJobName"] != first
    assert second["ProcessingResources"]["ClusterConfig"]["InstanceType"] == "ml.m5.xlarge"
    assert collected.round().outcome is None
    aggregation_ended(
        collected.services, JobEvent(detail={"ProcessingJobName": first, "ProcessingJobStatus": "Failed"})
    )
    aggregation_ended(collected.services, event(collected, "Completed"))
    assert collected.step_functions.answers["larger"] == ("success", {"job": "Completed"})


@pytest.mark.parametrize(
    ("aggregation", "why"),
    [
        ({"retry_larger": False}, "retry_larger is false"),
        ({"instance_type": "ml.m5.24xlarge"}, "no larger size to try"),
    ],
)
def test_a_job_is_not_started_on_a_larger_machine_where_that_is_not_wanted_or_there_is_none(
    fleet: Fleet, aggregation: dict[str, object], why: str
) -> None:
    fleet.open(aggregation=aggregation)
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, START)
    with pytest.raises(OutOfMemoryError, match=why):
        start_aggregation(fleet.services, TokenRequest(round=1, token="larger", larger=True))
    assert len(fleet.sagemaker.jobs) == 1


@pytest.mark.parametrize("reason", ["AlgorithmError: , exit code: 1", "exit code: 1370", "no space left"])
def test_a_job_that_failed_for_another_reason_is_not_started_again(collected: Fleet, reason: str) -> None:
    start_aggregation(collected.services, START)
    aggregation_ended(collected.services, event(collected, "Failed", FailureReason=reason))
    assert collected.step_functions.answers["job"][1]["error"] == "AggregationError"


def test_events_of_other_jobs_and_of_jobs_that_go_on_change_nothing(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    aggregation_ended(collected.services, event(collected, "InProgress"))
    other = {"ProcessingJobName": "fedgrass-other", "ProcessingJobStatus": "Failed"}
    aggregation_ended(collected.services, JobEvent(detail=other))
    assert collected.step_functions.answers == {}


def test_an_event_delivered_twice_or_after_the_timeout_is_no_error(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    aggregation_ended(collected.services, event(collected, "Completed"))
    aggregation_ended(collected.services, event(collected, "Completed"))
    assert len(collected.step_functions.answers) == 1


def test_an_event_without_an_open_round_is_ignored(fleet: Fleet) -> None:
    detail = {"ProcessingJobName": "fedgrass-digits-000001-x", "ProcessingJobStatus": "Completed"}
    aggregation_ended(fleet.services, JobEvent(detail=detail))


def test_a_closed_round_is_not_aggregated_again(collected: Fleet) -> None:
    collected.rounds.update_item(
        Key={"fleet": FLEET, "key": "round#000001"},
        UpdateExpression="SET phase = :phase",
        ExpressionAttributeValues={":phase": "closed"},
    )
    with pytest.raises(RecordError, match="past its aggregation"):
        start_aggregation(collected.services, START)
    assert collected.sagemaker.jobs == {}


@pytest.mark.parametrize("outcome", ["released", "advanced"])
def test_a_released_or_advanced_model_becomes_the_base_of_the_next_round(collected: Fleet, outcome: Outcome) -> None:
    start_aggregation(collected.services, START)
    collected.write_report(outcome)
    assert record_report(collected.services, RoundRequest(round=1)) == {"outcome": outcome}
    record = collected.round()
    assert (record.phase, record.outcome, record.participants, record.accuracy) == ("rolling_out", outcome, 1, 0.9)
    model = load_state(collected.rounds, FLEET).model
    assert model is not None
    assert (model.version, model.parameters_key) == ("1.1.0", "models/digits/1.1.0/parameters.safetensors")


@pytest.mark.parametrize("outcome", ["held", "insufficient_updates"])
def test_what_is_not_released_leaves_the_model_as_it_is(collected: Fleet, outcome: str) -> None:
    start_aggregation(collected.services, START)
    collected.write_report(outcome, reason="two points worse")  # type: ignore[arg-type]
    record_report(collected.services, RoundRequest(round=1))
    assert (collected.round().outcome, collected.round().reason) == (outcome, "two points worse")
    model = load_state(collected.rounds, FLEET).model
    assert model is not None
    assert model.version == "1.0.0"


def test_rounds_held_in_a_row_for_one_reason_are_told_loudly_with_what_to_do(fleet: Fleet) -> None:
    holds: list[tuple[Outcome, Hold | None]] = [
        ("held", "loss"),
        ("held", "not_finite"),
        ("insufficient_updates", None),
        ("held", "not_finite"),
        ("held", "not_finite"),
        ("released", None),
        ("held", "not_finite"),
    ]
    counts, alarms = [], []
    for number, (outcome, hold) in enumerate(holds, 1):
        fleet.open(f"{EXECUTION}-{number}")
        for thing in "abc":
            record_update(fleet.services, fleet.update(thing, number=number))
        start_aggregation(fleet.services, TokenRequest(round=number, token="job"))
        fleet.write_report(outcome, number=number, hold=hold)
        record_report(fleet.services, RoundRequest(round=number))
        record = close(fleet.services, number)
        counts.append(record.held_in_a_row)
        alarms.append(record.alarm)
    assert counts == [1, 1, 0, 2, 3, 0, 1]
    assert [bool(alarm) for alarm in alarms] == [False] * 4 + [True, False, False]
    assert "3 rounds in a row" in alarms[4]
    assert "lower fit.learning_rate" in alarms[4]


def test_a_job_without_a_report_is_an_error_that_names_the_place(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    with pytest.raises(AggregationError, match=r"no report at s3://fedgrass-digits/reports/digits/000001/report\.json"):
        record_report(collected.services, RoundRequest(round=1))


def test_a_report_of_another_round_or_base_is_not_taken_for_this_one_s(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    report = collected.write_report()
    stale = report.base.model_copy(update={"parameters_sha256": "f" * 64})
    collected.write_report(base=stale)
    with pytest.raises(AggregationError, match="expected round 1"):
        record_report(collected.services, RoundRequest(round=1))


def test_a_report_that_cannot_be_read_is_an_error(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    collected.services.s3.put_object(Bucket="fedgrass-digits", Key=report_key(FLEET, 1), Body=b"{}")
    with pytest.raises(AggregationError, match="Field required"):
        record_report(collected.services, RoundRequest(round=1))


def test_recording_the_report_twice_changes_nothing(collected: Fleet) -> None:
    start_aggregation(collected.services, START)
    collected.write_report()
    record_report(collected.services, RoundRequest(round=1))
    before = collected.round()
    collected.pass_time(60)
    assert record_report(collected.services, RoundRequest(round=1)) == {"outcome": "released"}
    assert collected.round() == before

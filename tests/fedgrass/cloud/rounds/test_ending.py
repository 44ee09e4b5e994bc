from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fedgrass.cloud.ending.outcome import decide
from fedgrass.cloud.rounds.abort_round import AbortRequest, ExecutionEnd, abort_round, execution_ended, in_words
from fedgrass.cloud.rounds.await_rollout import await_rollout
from fedgrass.cloud.rounds.changes import change_round
from fedgrass.cloud.rounds.close_round import CloseRequest, close_round
from fedgrass.cloud.rounds.open_round import OpenRequest, open_round
from fedgrass.cloud.rounds.record_model import record_model
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import AggregationError, RecordError, RoundRefusedError
from fedgrass.protocol.fleet_state import HandLock
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.tables import load_state, set_current_model, take_hand
from tests.fedgrass.cloud.rounds.harness import BASE, EXECUTION, FLEET, Fleet, client_error

ROLLOUT = TokenRequest(round=1, token="rollout")
CLOSE = CloseRequest(round=1, rounds=1)


def aggregate(fleet: Fleet, number: int = 1, **overrides: Any) -> Fleet:
    fleet.open(**overrides)
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing, number))
    start_aggregation(fleet.services, TokenRequest(round=number, token=f"job{number}"))
    return fleet


def release(fleet: Fleet, number: int = 1, **overrides: Any) -> Fleet:
    aggregate(fleet, number, **overrides)
    fleet.write_report(number=number)
    record_report(fleet.services, RoundRequest(round=number))
    return fleet


def failure(error: str = "AggregationError", cause: str = "the job failed") -> AbortRequest:
    return AbortRequest.model_validate({"execution": EXECUTION, "failure": {"Error": error, "Cause": cause}})


def test_the_last_device_s_word_ends_the_waiting_whatever_it_says(fleet: Fleet) -> None:
    release(fleet)
    await_rollout(fleet.services, ROLLOUT)
    record_model(fleet.services, fleet.model("a"))
    record_model(fleet.services, fleet.model("b", "refused", reason="ten points worse here"))
    assert "rollout" not in fleet.step_functions.answers
    record_model(fleet.services, fleet.model("c", "rolled_back"))
    assert fleet.step_functions.answers["rollout"] == ("success", {"active": 1})
    record = fleet.round()
    assert (record.active, record.refused, record.rolled_back) == (1, 1, 1)


def test_devices_that_report_before_the_token_are_not_missed(fleet: Fleet) -> None:
    aggregate(fleet)
    for thing in "abc":
        record_model(fleet.services, fleet.model(thing))  # the deployment is faster than the job's end
    fleet.write_report()
    record_report(fleet.services, RoundRequest(round=1))
    await_rollout(fleet.services, ROLLOUT)
    assert fleet.step_functions.answers["rollout"] == ("success", {"active": 3})


def test_a_device_s_word_counts_once_and_its_last_word_counts(fleet: Fleet) -> None:
    release(fleet)
    record_model(fleet.services, fleet.model("a", "refused"))
    record_model(fleet.services, fleet.model("a", "refused"))
    fleet.pass_time(1)
    record_model(fleet.services, fleet.model("a", "active"))
    assert (fleet.round().active, fleet.round().refused) == (1, 0)


def test_an_older_word_does_not_replace_a_newer_one(fleet: Fleet) -> None:
    release(fleet)
    older = fleet.model("a", "refused")
    fleet.pass_time(1)
    record_model(fleet.services, fleet.model("a", "active"))
    record_model(fleet.services, older)
    assert (fleet.round().active, fleet.round().refused) == (1, 0)
    (member,) = [member for member in fleet_members(fleet.services.devices, FLEET) if member.thing == "a"]
    assert member.model is not None
    assert member.model.outcome == "active"


def test_a_fleet_that_waits_for_nobody_goes_on_at_once(fleet: Fleet) -> None:
    release(fleet, rollout={"wait_seconds": 0})
    await_rollout(fleet.services, ROLLOUT)
    assert "rollout" in fleet.step_functions.answers


def test_the_operator_s_own_model_is_recorded_with_the_device_only(fleet: Fleet) -> None:
    record_model(fleet.services, fleet.model("a", version="1.0.0", active_version="1.0.0"))
    (member,) = [member for member in fleet_members(fleet.services.devices, FLEET) if member.model]
    assert (member.thing, member.model and member.model.active_version) == ("a", "1.0.0")
    assert member.heartbeat is not None


def test_a_model_of_another_line_does_not_count_for_the_round_of_that_number(fleet: Fleet) -> None:
    release(fleet)
    record_model(fleet.services, fleet.model("a", version="2.1.0"))
    assert fleet.round().active == 0


def test_a_malformed_model_notice_is_ignored(fleet: Fleet) -> None:
    record_model(fleet.services, fleet.delivery("a", "model", b"nonsense"))
    assert all(member.model is None for member in fleet_members(fleet.services.devices, FLEET))


def test_waiting_for_a_roll_out_that_is_none_is_an_error(fleet: Fleet) -> None:
    aggregate(fleet)
    with pytest.raises(RecordError, match="not rolling out"):
        await_rollout(fleet.services, ROLLOUT)


def test_a_closed_round_has_its_figures_and_frees_the_fleet(fleet: Fleet) -> None:
    release(fleet)
    fleet.pass_time(4)
    for thing in "abc":
        record_model(fleet.services, fleet.model(thing))
    closed = close_round(fleet.services, CLOSE)
    assert closed == {
        "results": [
            {
                "round": 1,
                "outcome": "released",
                "reason": "",
                "version": "1.1.0",
                "participants": 1,
                "quarantined": 0,
                "accuracy": 0.9,
                "active": 3,
            }
        ],
        "more": False,
        "ended": "",
        "next": "",
    }
    record = fleet.round()
    assert record.seconds_last_upload_to_active == 4.0
    assert record.closed_at == fleet.now
    assert (record.collect_token, record.job_token, record.rollout_token) == (None, None, None)
    assert fleet.open_round is None


def test_closing_twice_gives_the_same_answer(fleet: Fleet) -> None:
    release(fleet)
    first = close_round(fleet.services, CLOSE)
    fleet.pass_time(60)
    assert close_round(fleet.services, CLOSE) == first


def test_five_hundred_results_with_long_reasons_fit_into_what_an_execution_carries(fleet: Fleet) -> None:
    release(fleet)
    change_round(fleet.services.rounds, fleet.services.fleet, 1, put={"reason": "x" * 1000})
    [result] = close_round(fleet.services, CLOSE)["results"]
    whole = close_round(fleet.services, CloseRequest(round=1, rounds=500, results=[result] * 499))
    assert len(whole["results"]) == 500
    assert len(json.dumps(whole)) < 256 * 1024
    assert fleet.round().reason == "x" * 1000


def test_closing_again_does_not_touch_the_next_round(fleet: Fleet) -> None:
    release(fleet)
    close_round(fleet.services, CLOSE)
    fleet.open()
    announcement = fleet.announcement
    close_round(fleet.services, CLOSE)
    assert fleet.announcement == announcement is not None
    assert fleet.open_round == 2


def test_results_add_up_until_all_rounds_are_run(fleet: Fleet) -> None:
    release(fleet)
    first = close_round(fleet.services, CloseRequest(round=1, rounds=2))
    assert first["more"]
    release(fleet, 2)
    second = close_round(fleet.services, CloseRequest(round=2, rounds=2, results=first["results"]))
    assert [result["round"] for result in second["results"]] == [1, 2]
    assert not second["more"]
    assert fleet.round(2).base.version == "1.1.0"


def _rounds(fleet: Fleet, accuracies: list[float | None], **settings: Any) -> tuple[list[dict[str, Any]], str]:
    """Run rounds as the state machine does; without an accuracy the gate holds the round's model."""
    results: list[dict[str, Any]] = []
    for accuracy in accuracies:
        fleet.heartbeats("a", "b", "c")
        opened = open_round(
            fleet.services, OpenRequest(execution=EXECUTION, overrides={"rounds": 100, **settings}, results=results)
        )
        number = opened["round"]
        for thing in "abc":
            record_update(fleet.services, fleet.update(thing, number))
        start_aggregation(fleet.services, TokenRequest(round=number, token=f"job {number}"))
        outcome: Any = "held" if accuracy is None else "released"
        fleet.write_report(outcome, number, evaluation=Evaluation(loss=1.0, accuracy=accuracy or 0.99, examples=9))
        record_report(fleet.services, RoundRequest(round=number))
        fleet.pass_time(1800)
        closed = close_round(fleet.services, CloseRequest(round=number, rounds=100, results=results))
        # Asked once more, because its answer was lost: the same, however late.
        fleet.pass_time(7200)
        assert close_round(fleet.services, CloseRequest(round=number, rounds=100, results=results)) == closed
        fleet.pass_time(-7200)
        results = closed["results"]
        if not closed["more"]:
            return results, closed["ended"]
    return results, ""


@pytest.mark.parametrize(
    ("until", "accuracies", "rounds", "named"),
    [
        ({"target": 0.8}, [0.5, None, 0.8, 0.9], 3, "until.target"),
        ({"target": 0.8}, [0.5, None, 0.7], 3, ""),
        ({"patience": 2}, [0.5, 0.6, None, 0.55, 0.9], 4, "until.patience"),
        ({"hours": 1.4}, [0.5, 0.6, 0.7, 0.8], 3, "until.hours"),
    ],
)
def test_an_execution_ends_when_its_run_is_over_and_says_why(
    fleet: Fleet, until: dict[str, Any], accuracies: list[float | None], rounds: int, named: str
) -> None:
    results, ended = _rounds(fleet, accuracies, until=until)
    assert (len(results), named in ended if named else not ended) == (rounds, True)
    # What is over lets others open rounds; what is not holds the fleet for itself.
    assert load_state(fleet.rounds, FLEET).reserved == (None if named else EXECUTION)


def test_each_round_announces_the_values_of_its_schedule(fleet: Fleet) -> None:
    halves = {"kind": "step", "rounds": 1, "factor": 0.5}
    schedule = {"fit": {"learning_rate": 0.8, "epochs": 4}, "schedule": {"learning_rate": halves, "epochs": halves}}
    _rounds(fleet, [0.5, None, 0.6], **schedule)
    assert [(fleet.round(n).settings.fit.learning_rate, fleet.round(n).settings.fit.epochs) for n in (1, 2, 3)] == [
        (0.8, 4),
        (0.4, 2),
        (0.2, 1),
    ]
    announced = [Announcement.decode(payload).fit for _, payload in fleet.iot.published if payload]
    assert {(fit.learning_rate, fit.epochs) for fit in announced} == {(0.8, 4), (0.4, 2), (0.2, 1)}


def test_a_late_word_after_the_close_is_kept_and_does_not_change_how_long_it_took(fleet: Fleet) -> None:
    release(fleet)
    record_model(fleet.services, fleet.model("a"))
    close_round(fleet.services, CLOSE)
    before = fleet.round().seconds_last_upload_to_active
    fleet.pass_time(3600)
    record_model(fleet.services, fleet.model("b"))
    assert fleet.round().active == 2
    assert fleet.round().seconds_last_upload_to_active == before


def test_a_failure_frees_the_fleet_and_is_told_in_words(fleet: Fleet) -> None:
    fleet.open()
    cause = '{"errorMessage": "table is gone", "errorType": "RecordError", "stackTrace": []}'
    assert abort_round(fleet.services, failure("RecordError", cause)) == {
        "error": "RecordError",
        "cause": "table is gone",
    }
    record = fleet.round()
    assert (record.phase, record.outcome, record.reason) == ("closed", "failed", "RecordError: table is gone")
    assert fleet.open_round is None
    assert fleet.announcement is None


def test_a_refused_execution_does_not_end_the_round_of_another(fleet: Fleet) -> None:
    fleet.open(EXECUTION.replace("one", "other"))
    abort_round(fleet.services, failure("RoundRefusedError", "round 1 is open"))
    assert fleet.open_round == 1
    assert fleet.announcement is not None


def test_a_stopped_execution_cancels_its_round_and_stops_its_job(fleet: Fleet) -> None:
    aggregate(fleet)
    stopped = ExecutionEnd(executionArn=EXECUTION, status="ABORTED", cause="by hand")
    execution_ended(fleet.services, stopped)
    execution_ended(fleet.services, stopped)
    assert len(fleet.sagemaker.stopped) == 1
    assert (fleet.round().outcome, fleet.round().reason) == ("cancelled", "by hand")
    assert fleet.open_round is None


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT"])
def test_an_execution_that_fails_on_its_way_out_still_frees_the_fleet(fleet: Fleet, status: str) -> None:
    fleet.open()
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status=status, error="States.Runtime"))
    assert fleet.round().outcome == "failed"
    assert "States.Runtime" in fleet.round().reason
    assert fleet.open_round is None


def test_an_execution_that_succeeds_or_goes_on_changes_nothing(fleet: Fleet) -> None:
    fleet.open()
    for status in ("RUNNING", "SUCCEEDED"):
        execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status=status))
    assert fleet.open_round == 1


def test_a_job_that_has_ended_need_not_be_stopped(fleet: Fleet) -> None:
    aggregate(fleet)
    (job,) = fleet.sagemaker.jobs.values()
    job["ProcessingJobStatus"] = "Failed"
    abort_round(fleet.services, failure())
    assert fleet.open_round is None


def current(fleet: Fleet) -> str:
    model = load_state(fleet.rounds, FLEET).model
    return model.version if model else ""


def test_a_model_that_was_decided_on_before_the_cancellation_is_the_current_one(fleet: Fleet) -> None:
    aggregate(fleet)
    report = fleet.write_report()
    assert decide(fleet.rounds, fleet.round(), report) == "decided"
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status="ABORTED"))
    assert current(fleet) == "1.1.0"
    record = fleet.round()
    assert (record.phase, record.outcome, record.participants) == ("closed", "released", 1)


def test_a_report_alone_changes_nothing_once_the_round_is_cancelled(fleet: Fleet) -> None:
    aggregate(fleet)
    report = fleet.write_report()
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status="ABORTED"))
    assert decide(fleet.rounds, fleet.round(), report) == "ended"
    record_report(fleet.services, RoundRequest(round=1))
    assert (current(fleet), fleet.round().outcome) == ("1.0.0", "cancelled")


def test_a_model_made_from_another_base_than_the_fleet_s_is_not_adopted(fleet: Fleet) -> None:
    aggregate(fleet)
    report = fleet.write_report()
    set_current_model(fleet.rounds, FLEET, BASE.model_copy(update={"version": "2.0.0"}))
    assert decide(fleet.rounds, fleet.round(), report) == "superseded"
    assert (current(fleet), fleet.round().outcome) == ("2.0.0", None)


def test_an_execution_that_ended_before_its_opening_opens_no_round(fleet: Fleet) -> None:
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status="ABORTED"))
    with pytest.raises(RoundRefusedError, match="opens no round any more"):
        fleet.open()
    assert fleet.open_round is None


def test_an_execution_whose_end_was_heard_by_nobody_leaves_no_round_open(fleet: Fleet) -> None:
    fleet.step_functions.statuses[EXECUTION] = "ABORTED"
    fleet.open()
    assert (fleet.round().outcome, fleet.open_round, fleet.announcement) == ("cancelled", None, None)


def test_between_two_rounds_of_an_execution_no_other_opens_one(fleet: Fleet) -> None:
    other = EXECUTION.replace("one", "other")
    fleet.step_functions.statuses[other] = "RUNNING"
    release(fleet)
    assert close_round(fleet.services, CloseRequest(round=1, rounds=2))["more"]
    with pytest.raises(RoundRefusedError, match="has more rounds to run"):
        fleet.open(other)
    fleet.open()
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status="ABORTED"))
    assert fleet.open(other).round == 3


def test_an_execution_stopped_between_its_rounds_leaves_the_fleet_to_others(fleet: Fleet) -> None:
    other = EXECUTION.replace("one", "other")
    release(fleet)
    close_round(fleet.services, CloseRequest(round=1, rounds=2))
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status="ABORTED"))
    assert fleet.open(other).round == 2


def test_no_round_opens_while_a_person_has_a_model_in_hand_until_that_person_is_gone(fleet: Fleet) -> None:
    now = fleet.now.timestamp()
    lock = HandLock(action="roll-back", version="1.0.0", holder="x", until=int(now) + 60)
    assert take_hand(fleet.rounds, FLEET, lock, now)
    with pytest.raises(RoundRefusedError, match="in hand"):
        fleet.open()
    assert not take_hand(fleet.rounds, FLEET, lock.model_copy(update={"holder": "y"}), now)
    fleet.pass_time(61)
    fleet.open()
    assert not take_hand(fleet.rounds, FLEET, lock.model_copy(update={"holder": "y"}), fleet.now.timestamp())


def test_a_round_cancelled_while_it_rolls_out_stays_released(fleet: Fleet) -> None:
    release(fleet)
    execution_ended(fleet.services, ExecutionEnd(executionArn=EXECUTION, status="ABORTED"))
    record = fleet.round()
    assert (record.outcome, record.reason) == ("released", "the execution was stopped")


def test_an_unreadable_report_does_not_keep_the_fleet_locked(fleet: Fleet) -> None:
    aggregate(fleet)
    fleet.services.s3.put_object(Bucket="fedgrass-digits", Key="reports/digits/000001/report.json", Body=b"{}")
    abort_round(fleet.services, failure())
    assert fleet.open_round is None


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ('{"errorMessage": "no"}', "no"),
        ("plain", "plain"),
        ("", ""),
        ("[1]", "[1]"),
        ("3", "3"),
        ('{"a": 1}', '{"a": 1}'),
    ],
)
def test_a_cause_is_put_in_words(cause: str, words: str) -> None:
    assert in_words(cause) == words


def test_a_report_that_s3_denies_because_it_is_missing_counts_as_missing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregate(fleet)
    monkeypatch.setattr(fleet.services.s3, "get_object", denied)
    with pytest.raises(AggregationError, match="left no report"):
        record_report(fleet.services, RoundRequest(round=1))
    fleet.write_report()
    with pytest.raises(ClientError, match="AccessDenied"):  # there, and not to be read: a fault of the role
        record_report(fleet.services, RoundRequest(round=1))


def denied(**_arguments: Any) -> None:
    raise client_error("AccessDenied")

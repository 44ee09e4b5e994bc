"""The Jobs protocol as a device sees it, without a broker."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedgrass.local.aws.jobs import Execution, Job, Jobs


class Account:
    """Jobs with a group ``g`` whose members and messages a test can see."""

    def __init__(self, *things: str) -> None:
        self.members = list(things)
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.changes: list[tuple[str, str, str]] = []
        self.jobs = Jobs(self._publish, lambda target: self.members if target == "g" else [], self._changed)

    def ask(self, thing: str, job: str, verb: str, **body: Any) -> tuple[str, dict[str, Any]]:
        """Publish as ``thing`` and return how and with what it was answered."""
        topic = f"$aws/things/{thing}/jobs/{job}/{verb}"
        before = len(self.sent)
        self.jobs.handle(topic, json.dumps(body).encode())
        answers = [(name[len(topic) + 1 :], sent) for name, sent in self.sent[before:] if name.startswith(f"{topic}/")]
        assert len(answers) == 1
        return answers[0]

    def next(self, thing: str) -> str | None:
        """Return the job that ``thing`` is offered when it asks."""
        verdict, answer = self.ask(thing, "$next", "get")
        assert verdict == "accepted"
        job: str | None = answer["execution"].get("jobId")
        return job

    def notified(self, thing: str) -> list[str | None]:
        topic = f"$aws/things/{thing}/jobs/notify-next"
        return [sent["execution"].get("jobId") for name, sent in self.sent if name == topic]

    def _publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        self.sent.append((topic, json.loads(json.dumps(payload))))

    def _changed(self, job: Job, execution: Execution) -> None:
        self.changes.append((job.job_id, execution.thing, execution.status))


def test_a_job_is_offered_to_every_thing_of_its_target() -> None:
    account = Account("a", "b")
    account.jobs.create("1", "g", {"what": 1})
    topic, offer = account.sent[0]
    assert topic == "$aws/things/a/jobs/notify-next"
    assert offer["timestamp"] > 0
    assert offer["execution"]["jobDocument"] == {"what": 1}
    assert offer["execution"]["status"] == "QUEUED"
    assert account.notified("b") == ["1"]


def test_a_thing_that_asks_gets_its_pending_job_and_its_own_token_back() -> None:
    account = Account("a")
    account.jobs.create("1", "g", {"what": 1})
    verdict, answer = account.ask("a", "$next", "get", clientToken="t")
    assert (verdict, answer["clientToken"], answer["execution"]["jobId"]) == ("accepted", "t", "1")


def test_a_thing_with_nothing_to_do_gets_an_empty_execution() -> None:
    assert Account("a").ask("a", "$next", "get")[1]["execution"] == {}


def test_progress_and_success_are_recorded_and_told() -> None:
    account = Account("a")
    account.jobs.create("1", "g", {})
    assert account.ask("a", "1", "update", status="IN_PROGRESS")[0] == "accepted"
    details = {"detailed-deployment-status": "SUCCESSFUL"}
    assert account.ask("a", "1", "update", status="SUCCEEDED", statusDetails=details)[0] == "accepted"
    [execution] = account.jobs.executions(thing="a")
    assert (execution.status, execution.details) == ("SUCCEEDED", details)
    assert account.changes == [("1", "a", "QUEUED"), ("1", "a", "IN_PROGRESS"), ("1", "a", "SUCCEEDED")]
    assert account.notified("a") == ["1", None]


def test_a_new_job_takes_the_queued_one_of_its_target_back() -> None:
    account = Account("a")
    account.jobs.create("1", "g", {})
    account.jobs.create("2", "g", {}, supersedes="1")
    assert account.notified("a") == ["1", "2"]
    verdict, answer = account.ask("a", "1", "update", status="IN_PROGRESS")
    assert (verdict, answer["code"]) == ("rejected", "InvalidStateTransition")


def test_a_job_under_way_is_finished_before_its_successor_is_offered() -> None:
    account = Account("a")
    account.jobs.create("1", "g", {})
    account.ask("a", "1", "update", status="IN_PROGRESS")
    account.jobs.create("2", "g", {}, supersedes="1")
    assert account.next("a") == "1"
    assert account.notified("a") == ["1"]
    assert account.ask("a", "1", "update", status="FAILED")[0] == "accepted"
    assert account.notified("a") == ["1", "2"]


def test_a_thing_that_joins_later_is_offered_the_latest_job_only() -> None:
    account = Account("a")
    account.jobs.create("1", "g", {})
    account.jobs.create("2", "g", {}, supersedes="1")
    account.members.append("late")
    account.jobs.refresh()
    assert account.notified("late") == ["2"]


def test_a_thing_that_joined_unnoticed_finds_the_job_when_it_asks() -> None:
    account = Account()
    account.jobs.create("1", "g", {})
    account.members.append("late")
    assert account.next("late") == "1"


def test_a_cancelled_job_is_withdrawn_where_it_has_not_begun() -> None:
    account = Account("a", "b")
    account.jobs.create("1", "g", {})
    account.ask("a", "1", "update", status="IN_PROGRESS")
    account.jobs.cancel("1")
    assert {one.thing: one.status for one in account.jobs.executions()} == {"a": "IN_PROGRESS", "b": "CANCELED"}
    assert account.next("b") is None


@pytest.mark.parametrize(
    ("job", "payload", "code"),
    [
        ("1", b"not json", "InvalidJson"),
        ("1", b"[]", "InvalidJson"),
        ("1", b"{}", "InvalidRequest"),
        ("1", b'{"status": "DONE"}', "InvalidRequest"),
        ("1", b'{"status": "SUCCEEDED", "expectedVersion": 7}', "VersionMismatch"),
        ("2", b'{"status": "SUCCEEDED"}', "ResourceNotFound"),
    ],
)
def test_a_malformed_report_is_rejected_with_its_reason(job: str, payload: bytes, code: str) -> None:
    account = Account("a")
    account.jobs.create("1", "g", {})
    account.jobs.handle(f"$aws/things/a/jobs/{job}/update", payload)
    topic, answer = account.sent[-1]
    assert (topic, answer["code"]) == (f"$aws/things/a/jobs/{job}/update/rejected", code)
    assert account.next("a") == "1"


def test_other_topics_are_none_of_its_business() -> None:
    account = Account("a")
    account.jobs.handle("$aws/things/a/jobs/notify-next", b"{}")
    account.jobs.handle("fedgrass/f/round", b"{}")
    assert account.sent == []


class Deployments(RuleBasedStateMachine):
    """Whatever the order of events, a thing works on one job at a time and ends on the latest."""

    things = st.sampled_from(["a", "b", "c"])

    @initialize()
    def begin(self) -> None:
        self.account = Account("a")
        self.latest: str | None = None
        self.count = 0

    @rule()
    def deploy(self) -> None:
        self.count += 1
        self.account.jobs.create(str(self.count), "g", {}, supersedes=self.latest)
        self.latest = str(self.count)

    @rule(thing=things)
    def join(self, thing: str) -> None:
        if thing not in self.account.members:
            self.account.members.append(thing)
            self.account.jobs.refresh()

    @rule(thing=things, status=st.sampled_from(["IN_PROGRESS", "SUCCEEDED", "FAILED"]))
    def work(self, thing: str, status: str) -> None:
        job = self.account.next(thing)
        if job is not None:
            assert self.account.ask(thing, job, "update", status=status)[0] == "accepted"

    @invariant()
    def the_last_offer_is_what_the_thing_would_get(self) -> None:
        for thing in self.account.members:
            notified = self.account.notified(thing)
            assert (notified[-1] if notified else None) == self.account.next(thing)

    @invariant()
    def only_one_job_is_under_way(self) -> None:
        for thing in self.account.members:
            running = [one for one in self.account.jobs.executions(thing=thing) if one.status == "IN_PROGRESS"]
            assert len(running) <= 1

    def teardown(self) -> None:
        for thing in self.account.members:
            done = None
            while (job := self.account.next(thing)) is not None:
                self.account.ask(thing, job, "update", status="SUCCEEDED")
                done = job
            finished = [one.job_id for one in self.account.jobs.executions(thing=thing) if one.job_id == self.latest]
            assert done in {None, self.latest}
            assert finished == ([self.latest] if self.latest else [])


Deployments.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_any_order_of_events_ends_on_the_latest_deployment = Deployments.TestCase


def test_on_the_topics_of_greengrass_deployments_nothing_to_do_is_no_execution() -> None:
    account, space = Account("a"), "namespace-aws-gg-deployment"
    assert account.ask("a", "$next", f"{space}/get") == ("accepted", account.sent[-1][1])
    assert "execution" not in account.sent[-1][1]
    account.jobs.create("1", "g", {"what": 1})
    topic = f"$aws/things/a/jobs/notify-next-{space}"
    assert [sent["execution"]["jobId"] for name, sent in account.sent if name == topic] == ["1"]
    assert account.ask("a", "1", f"{space}/update", status="IN_PROGRESS")[0] == "accepted"
    account.jobs.cancel("1")
    assert account.ask("a", "1", f"{space}/update", status="SUCCEEDED")[0] == "accepted"
    assert [name for name, sent in account.sent if name == topic and "execution" not in sent] == [topic]


def test_a_thing_that_uses_the_namespace_is_answered_once_and_on_it_alone() -> None:
    account, space = Account("a"), "namespace-aws-gg-deployment"
    account.ask("a", "$next", f"{space}/get")
    before = len(account.sent)
    account.jobs.handle("$aws/things/a/jobs/$next/get", b"{}")
    account.jobs.create("1", "g", {})
    assert [name for name, _ in account.sent[before:]] == [
        f"$aws/things/a/jobs/notify-next-{space}",
        f"$aws/things/a/jobs/notify-{space}",
    ]


@pytest.mark.parametrize("space", ["", "-namespace-aws-gg-deployment"])
def test_the_list_of_pending_jobs_is_told_when_one_comes_or_goes(space: str) -> None:
    account, topic = Account("a"), f"$aws/things/a/jobs/notify{space}"

    def told() -> list[dict[str, list[str]]]:
        sent = [body["jobs"] for name, body in account.sent if name == topic]
        return [{status: [job["jobId"] for job in jobs] for status, jobs in one.items()} for one in sent]

    account.jobs.create("1", "g", {})
    account.ask("a", "1", "update", status="IN_PROGRESS")
    account.jobs.create("2", "g", {}, supersedes="1")
    account.jobs.create("3", "g", {}, supersedes="2")
    account.ask("a", "1", "update", status="SUCCEEDED")
    account.jobs.cancel("3")
    assert told() == [
        {"QUEUED": ["1"]},
        {"IN_PROGRESS": ["1"], "QUEUED": ["2"]},
        {"IN_PROGRESS": ["1"], "QUEUED": ["3"]},
        {"QUEUED": ["3"]},
        {},
    ]
    first = next(body["jobs"]["QUEUED"][0] for name, body in account.sent if name == topic)
    assert first.keys() == {"jobId", "queuedAt", "lastUpdatedAt", "executionNumber", "versionNumber"}

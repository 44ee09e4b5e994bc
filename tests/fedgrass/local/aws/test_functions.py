"""Lambda functions: the real handler, from its own archive, in its own process."""

import base64
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.functions import RECORDER, archive, function, table
from tests.fixtures.waiting import eventually


def invoke(account: LocalAwsProcess, name: str, event: Any = None, **options: str) -> tuple[Any, str | None]:
    answer = account.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event), **options)
    return json.loads(answer["Payload"].read()), answer.get("FunctionError")


def test_the_handler_gets_its_event_context_and_environment(local_aws: LocalAwsProcess, unique: str) -> None:
    source = """
        import os

        def handler(event, context):
            return {
                "event": event,
                "name": context.function_name,
                "arn": context.invoked_function_arn,
                "left": context.get_remaining_time_in_millis(),
                "request": context.aws_request_id,
                "variable": os.environ["SETTING"],
                "endpoint": os.environ["AWS_ENDPOINT_URL"],
                "region": os.environ["AWS_REGION"],
                "pid": os.getpid(),
            }
    """
    arn = function(local_aws, unique, source, Timeout=800, Environment={"Variables": {"SETTING": "x"}})
    answer, error = invoke(local_aws, unique, {"n": [1, None, "ä"]})
    assert error is None
    assert answer["event"] == {"n": [1, None, "ä"]}
    assert (answer["name"], answer["arn"], answer["variable"]) == (unique, arn, "x")
    assert 100_000 < answer["left"] <= 800_000
    assert (answer["endpoint"], answer["region"]) == (local_aws.endpoint_url, "us-east-1")
    again, _ = invoke(local_aws, arn)
    assert again["pid"] == answer["pid"], "the process stays warm"
    assert again["request"] != answer["request"]


def test_an_exception_is_reported_as_lambda_does(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "def handler(event, context):\n    raise KeyError('missing')")
    answer, error = invoke(local_aws, unique)
    assert error == "Unhandled"
    assert (answer["errorType"], answer["errorMessage"]) == ("KeyError", "'missing'")
    assert any("handler" in line for line in answer["stackTrace"])


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import nothing_of_that_name", "Runtime.ImportModuleError"),
        ("def other(event, context): pass", "AttributeError"),
        ("def handler(event, context): return object()", "Runtime.MarshalError"),
        ("import os\ndef handler(event, context): os._exit(3)", "Runtime.ExitError"),
        ("import sys\ndef handler(event, context): sys.exit(3)", "SystemExit"),
    ],
)
def test_a_function_that_cannot_answer_says_why(
    local_aws: LocalAwsProcess, unique: str, source: str, kind: str
) -> None:
    function(local_aws, unique, source)
    for _ in range(2):
        answer, error = invoke(local_aws, unique)
        assert (answer["errorType"], error) == (kind, "Unhandled")


def test_a_function_over_its_timeout_is_ended_and_works_again(local_aws: LocalAwsProcess, unique: str) -> None:
    source = """
        import time

        def handler(event, context):
            time.sleep(event["seconds"])
            return "done"
    """
    function(local_aws, unique, source, Timeout=1)
    answer, error = invoke(local_aws, unique, {"seconds": 100_000})
    assert (answer["errorType"], error) == ("Sandbox.Timedout", "Unhandled")
    assert "timed out after 1.00 seconds" in answer["errorMessage"]
    local_aws.client("lambda").update_function_configuration(FunctionName=unique, Timeout=900)
    assert invoke(local_aws, unique, {"seconds": 0}) == ("done", None)


def test_what_a_handler_prints_goes_to_its_log_and_not_into_the_answer(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "def handler(event, context):\n    print('{\"result\": 1}')\n    return 2")
    answer = local_aws.client("lambda").invoke(FunctionName=unique, LogType="Tail")
    assert json.loads(answer["Payload"].read()) == 2
    log = base64.b64decode(answer["LogResult"]).decode()
    assert '{"result": 1}' in log
    assert "REPORT RequestId" in log


def test_new_code_and_new_settings_take_effect_at_once(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "def handler(event, context): return 'old'")
    assert invoke(local_aws, unique)[0] == "old"
    client = local_aws.client("lambda")
    source = "import os\ndef handler(event, context): return os.environ.get('V', 'new')"
    client.update_function_code(FunctionName=unique, ZipFile=archive(app=source))
    assert invoke(local_aws, unique)[0] == "new"
    client.update_function_configuration(FunctionName=unique, Environment={"Variables": {"V": "newer"}})
    assert invoke(local_aws, unique)[0] == "newer"


def test_no_event_is_lost_while_the_code_changes(local_aws: LocalAwsProcess, unique: str) -> None:
    def source(version: int) -> str:
        return f"def handler(event, context): return {version}"

    function(local_aws, unique, source(0))
    client = local_aws.client("lambda")
    with ThreadPoolExecutor(4) as callers:
        answers = [callers.submit(invoke, local_aws, unique) for _ in range(40)]
        for version in (1, 2, 3):
            client.update_function_code(FunctionName=unique, ZipFile=archive(app=source(version)))
    assert {answer.result()[1] for answer in answers} == {None}
    assert {answer.result()[0] for answer in answers} <= {0, 1, 2, 3}
    assert invoke(local_aws, unique)[0] == 3


def test_a_package_in_the_archive_wins_over_the_installed_one(local_aws: LocalAwsProcess, unique: str) -> None:
    local_aws.client("lambda").create_function(
        FunctionName=unique,
        Role="arn:aws:iam::123456789012:role/functions",
        Runtime="python3.11",
        Handler="fedgrass/entry.handler",
        Code={
            "ZipFile": archive(
                **{
                    "fedgrass/__init__": "ORIGIN = 'archive'",
                    "fedgrass/entry": "import fedgrass, boto3\ndef handler(e, c): return [fedgrass.ORIGIN, boto3.__name__]",
                }
            )
        },
    )
    assert invoke(local_aws, unique)[0] == ["archive", "boto3"]


def test_an_event_is_delivered_in_the_background(local_aws: LocalAwsProcess, unique: str) -> None:
    rows = table(local_aws, unique)
    function(local_aws, unique, RECORDER, Environment={"Variables": {"TABLE": unique}})
    answer = local_aws.client("lambda").invoke(FunctionName=unique, InvocationType="Event", Payload=b'{"n": 1}')
    assert answer["StatusCode"] == 202
    assert [json.loads(row["event"]) for row in eventually(lambda: rows.scan()["Items"])] == [{"n": 1}]


def test_an_event_that_fails_is_tried_again_twice(local_aws: LocalAwsProcess, unique: str) -> None:
    source = f"{RECORDER}\n        raise ValueError('on purpose')"
    rows = table(local_aws, unique)
    function(local_aws, unique, source, Environment={"Variables": {"TABLE": unique}})
    local_aws.client("lambda").invoke(FunctionName=unique, InvocationType="Event", Payload=b"{}")
    eventually(lambda: rows.scan()["Count"] == 3)


def test_a_function_that_does_not_exist_is_not_found(local_aws: LocalAwsProcess, unique: str) -> None:
    client = local_aws.client("lambda")
    for kind in ("RequestResponse", "Event", "DryRun"):
        with pytest.raises(client.exceptions.ResourceNotFoundException, match=unique):
            client.invoke(FunctionName=unique, InvocationType=kind)


def test_an_event_that_is_no_json_is_refused(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "def handler(event, context): pass")
    client = local_aws.client("lambda")
    with pytest.raises(client.exceptions.InvalidRequestContentException):
        client.invoke(FunctionName=unique, Payload=b"{")


def test_code_that_is_no_archive_is_named(local_aws: LocalAwsProcess, unique: str) -> None:
    client = local_aws.client("lambda")
    function(local_aws, unique, "def handler(event, context): pass")
    client.update_function_code(FunctionName=unique, ZipFile=b"not a zip")
    with pytest.raises(client.exceptions.InvalidZipFileException, match=unique):
        client.invoke(FunctionName=unique)


def test_the_worker_of_a_deleted_function_ends(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "import os\ndef handler(event, context): return os.getpid()")
    pid, _ = invoke(local_aws, unique)
    local_aws.client("lambda").delete_function(FunctionName=unique)
    eventually(lambda: not _alive(pid))


def test_when_what_forks_workers_is_killed_so_are_they_and_the_next_event_has_new_ones(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    function(local_aws, unique, "import os\ndef handler(event, context): return [os.getpid(), os.getppid()]")
    (worker, forks), _ = invoke(local_aws, unique)
    assert local_aws.process.pid not in (worker, forks)
    os.kill(forks, signal.SIGKILL)
    eventually(lambda: not _alive(worker))
    answer = eventually(lambda: next(filter(lambda found: found[1] is None, [invoke(local_aws, unique)]), None))
    assert answer is not None
    (again, others), _ = answer
    assert {again, others} & {worker, forks} == set()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

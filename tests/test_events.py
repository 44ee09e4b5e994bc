"""Log events have one list: what is logged is in it, with its fields, and nothing is logged in another way."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fedgrass.events import CONTEXT, EVENTS, SECTIONS
from fedgrass.logs import JsonLines, Log
from tests.fixtures.places import ROOT

SOURCE = ("fedgrass", "components", "examples", "scripts", "benchmarks")
# They set up where lines go, and log nothing by themselves but through log_event.
SET_UP = {
    "fedgrass/events.py",
    "fedgrass/logs.py",
    "fedgrass/local/aws/__main__.py",
    "fedgrass/local/aws/functions/worker.py",
    "fedgrass/local/core_device/logs.py",
    "scripts/pages/events.py",
}
OTHER_WAYS = {"critical", "debug", "error", "exception", "fatal", "info", "log", "warn", "warning"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in SOURCE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "greengrass-build" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def calls() -> list[tuple[str, ast.Call]]:
    """Every call of ``log_event``, with where it is."""
    return [
        (f"{path}:{node.lineno}", node)
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name_of(node.func) == "log_event"
    ]


def names_in(argument: ast.expr) -> list[str]:
    """The names that a first argument can be; none if it is put together when the program runs."""
    choices = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
    found = [one.value for one in choices if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return found if len(found) == len(choices) else []


def test_names_are_snake_case_each_in_one_section_with_a_meaning() -> None:
    assert sum(map(len, SECTIONS.values())) == len(EVENTS)
    assert [name for name in EVENTS if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)] == []
    assert [name for name, event in EVENTS.items() if not event.meaning.endswith(".")] == []
    assert [
        name for name, event in EVENTS.items() if set(event.fields) & {*CONTEXT, "event", "level", "time", "logger"}
    ] == []


def test_every_event_that_is_logged_is_in_the_list_with_its_fields() -> None:
    wrong = []
    for where, call in calls():
        names = names_in(call.args[0]) if len(call.args) == 1 else []
        given = {keyword.arg for keyword in call.keywords}
        wrong += [f"{where}: its name is not written out"] * (not names)
        wrong += [f"{where}: {name} is not in fedgrass/events.py" for name in names if name not in EVENTS]
        wrong += [
            f"{where}: {name} has no field {field}"
            for name in names
            for field in given - {*CONTEXT, *(EVENTS[name].fields if name in EVENTS else given)}
        ]
    assert len(calls()) > 100
    assert wrong == []


def test_every_event_of_the_list_is_logged_somewhere() -> None:
    logged = {name for _, call in calls() for name in names_in(call.args[0])}
    assert EVENTS.keys() - logged == {"library_message"}


def test_nothing_logs_in_another_way() -> None:
    wrong = []
    for path, tree in sources():
        for node in ast.walk(tree):
            taken = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            taken += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if path not in SET_UP and any(module.split(".")[0] == "logging" for module in taken):
                wrong.append(f"{path} imports logging")
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            receiver = name_of(node.func.value.func if isinstance(node.func.value, ast.Call) else node.func.value)
            to_a_log = re.fullmatch(r"_*(.*log|.*logger|logging|getLogger|.*LOG|.*LOGGER)", receiver)
            if node.func.attr in OTHER_WAYS and to_a_log and path != "fedgrass/logs.py":
                wrong.append(f"{path}:{node.lineno} calls {receiver}.{node.func.attr}")
    assert wrong == []


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the loggers of these tests write."""
    stream, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines({"thing": "t"}))
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_lists_level_and_the_fields_that_have_a_value(written: io.StringIO) -> None:
    Log("name", fleet="f").log_event("update_notice", round=3, status="failed", counted=None, reason="no data")
    [line] = lines(written)
    assert line.pop("time")
    expected = {"level": "info", "event": "update_notice", "logger": "name", "thing": "t", "fleet": "f", "round": 3}
    assert line == {**expected, "status": "failed", "reason": "no data"}


def test_a_crash_carries_the_trace_of_its_error_whichever_way_it_is_known(written: io.StringIO) -> None:
    log = Log("name")
    try:
        raise ValueError("bad loader")
    except ValueError as caught:
        error = caught
        log.log_event("work_crashed")
    log.log_event("job_crashed", job="j", error=error)
    for line in lines(written):
        assert line["level"] == "error"
        assert "bad loader" in str(line["trace"])
        assert "test_events.py" in str(line["trace"])


def test_what_a_library_logs_is_an_event_too(written: io.StringIO) -> None:
    logging.getLogger("some.library").warning("it said %s", "\n{")
    [line] = lines(written)
    assert (line["event"], line["level"], line["message"]) == ("library_message", "warning", "it said \n{")


def test_an_event_of_somebody_elses_is_logged_and_no_trouble(written: io.StringIO) -> None:
    log = Log("name")
    log.log_event("my_camera_moved", degrees=3)
    [line] = lines(written)
    assert (line["event"], line["level"], line["degrees"], log.last_error) == ("my_camera_moved", "info", 3, "")


def test_the_last_error_is_in_words_with_its_reason() -> None:
    log = Log("name")
    log.bind(fleet="f").log_event("upload_failed", upload="u", seconds=3.0, reason="AccessDenied")
    assert log.last_error == "upload failed: AccessDenied"


def test_a_component_writes_information_to_standard_output_alone() -> None:
    # Standard error is a warning in the logs of both nuclei.
    code = "from fedgrass.logs import configure, log_event; configure(); log_event('trained'); log_event('component_failed')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["trained", "component_failed"]
    assert done.stderr == ""


def test_a_command_that_set_up_no_logs_says_in_words_what_is_wrong() -> None:
    code = "from fedgrass.logs import log_event; log_event('trained'); log_event('round_not_tracked', round=3, reason='no')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "error: round not tracked (round 3, reason no)\n")


# The lines as each place writes them, and the pattern that docs/operations.md has for CloudWatch's `parse`.
PREFIXES = {
    "the job, a function": ("", ""),
    "the classic nucleus": (
        "2026-11-30T05:00:00.000Z [INFO] (Copier) com.fedgrass.Trainer: stdout. ",
        ". {scriptName=services.com.fedgrass.Trainer.lifecycle.run.script, serviceName=com.fedgrass.Trainer}",
    ),
    "nucleus lite": ("Nov 30 05:00:00 device-1 ggl.com.fedgrass.Trainer[1234]: ", ""),
}


@pytest.mark.parametrize("place", PREFIXES)
def test_the_documented_patterns_find_the_fields_in_a_line_of_each_place(place: str, written: io.StringIO) -> None:
    Log("name").log_event("round_declined", fleet="f", round=12, reason='the owner said "no"')
    before, after = PREFIXES[place]
    line = before + written.getvalue().rstrip("\n") + after
    patterns = re.findall(r"parse @message /(.+?)/(?= |$)", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    found = [match for pattern in set(patterns) if (match := re.search(pattern.replace("(?<", "(?P<"), line))]
    named = {name: value for match in found for name, value in match.groupdict().items()}
    expected = {
        "saidEvent": "round_declined",
        "saidRound": "12",
        "saidReason": 'the owner said \\"no\\"',
        "saidThing": "t",
    }
    assert named.items() >= expected.items()

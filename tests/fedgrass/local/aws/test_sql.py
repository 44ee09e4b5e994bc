import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError, MessageError
from fedgrass.local.aws.sql import parse, substitute
from fedgrass.local.aws.sql_values import Message


def message(payload: Any = None, topic: str = "fedgrass/f/devices/t1/heartbeat") -> Message:
    return Message(topic, json.dumps(payload if payload is not None else {}).encode())


def select(items: str, payload: Any = None) -> dict[str, Any]:
    return parse(f"SELECT {items} FROM '#'").select(message(payload))


def fires(condition: str, payload: Any = None) -> bool:
    return parse(f"SELECT * FROM '#' WHERE {condition}").fires(message(payload))


def test_the_payload_and_named_values_are_selected() -> None:
    found = select("*, topic(2) AS fleet, topic() AS topic, 'x' AS kind, n + 1 AS next, a.b", {"n": 1, "a": {"b": 2}})
    assert found == {
        "n": 1,
        "a": {"b": 2},
        "fleet": "f",
        "topic": "fedgrass/f/devices/t1/heartbeat",
        "kind": "x",
        "next": 2,
        "b": 2,
    }


def test_a_named_value_replaces_the_payloads_own() -> None:
    assert select("*, topic(4) AS thing", {"thing": "somebody else"})["thing"] == "t1"


def test_what_a_message_does_not_have_is_left_out() -> None:
    assert select("a, topic(9) AS t, b.c AS d, a + 1 AS e", {"b": 1}) == {}


def test_timestamps_are_milliseconds() -> None:
    assert select("floor(timestamp() / 1000) AS s")["s"] > 1_700_000_000


def test_texts_are_joined_and_with_what_is_missing_nothing_is() -> None:
    assert select("concat('reply#', a, '#', b) AS k", {"a": "t", "b": "1"}) == {"k": "reply#t#1"}
    assert select("concat(a, b) AS k", {"a": "t"}) == {}


def test_the_payload_as_it_came_can_be_encoded_even_if_it_is_no_json() -> None:
    query = parse("SELECT encode(*, 'base64') AS p FROM 'a'")
    assert query.select(Message("a", b"\xff{")) == {"p": base64.b64encode(b"\xff{").decode()}


def test_selecting_all_of_a_payload_that_is_no_json_is_an_error() -> None:
    with pytest.raises(MessageError, match="not a JSON object"):
        parse("SELECT * FROM 'a'").select(Message("a", b"\xff"))


@pytest.mark.parametrize(
    "condition",
    [
        "n = 1",
        "n <> 2",
        "n >= 1 AND n < 2",
        "s = 'it''s'",
        "NOT n = 2",
        "(n = 2 OR s = 'it''s') AND t = true",
        "isUndefined(nothing)",
        "z = null",
        "n * 2 + 1 = 3",
        "-n < 0",
        "n != '1'",
        "startswith(s, 'it')",
        "o.p = 'q'",
    ],
)
def test_conditions_that_hold(condition: str) -> None:
    assert fires(condition, {"n": 1, "s": "it's", "t": True, "z": None, "o": {"p": "q"}})


@pytest.mark.parametrize(
    "condition",
    [
        "n = 2",
        "nothing = 1",
        "nothing <> 1",
        "s > 1",
        "t = 1",
        "n / 0 = 1",
        "NOT nothing = 1",
        "n",
        "startswith(s, nothing)",
    ],
)
def test_conditions_that_do_not_hold(condition: str) -> None:
    assert not fires(condition, {"n": 1, "s": "x", "t": True})


def test_a_rule_applies_only_to_its_topics() -> None:
    query = parse("SELECT * FROM 'fedgrass/+/devices/+/update'")
    assert query.fires(message(topic="fedgrass/f/devices/t/update"))
    assert not query.fires(message(topic="fedgrass/f/devices/t/heartbeat"))


def test_substitution_templates_are_evaluated_on_the_message() -> None:
    assert substitute("copy/${topic(4)}/${n}/${none}", message({"n": 2})) == "copy/t1/2/Undefined"


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "SELECT * FROM",
        "SELECT * FROM a",
        "SELECT 1 + 1 FROM 'a'",
        "SELECT aws_lambda('x') AS y FROM 'a'",
        "SELECT * FROM 'a' WHERE",
        "SELECT * FROM 'a' WHERE (n = 1",
        "SELECT * FROM 'a' nonsense",
        "SELECT ; FROM 'a'",
    ],
)
def test_what_is_not_supported_is_refused_with_the_statement(statement: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used here"):
        parse(statement)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        parse(f"SELECT * FROM 'a' WHERE {text}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.just(10**400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("nsa"), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, st.sampled_from(["n", "s", "n.a", "'x'", "1", "true"]), st.sampled_from(["=", "<>", "<", ">="]))
def test_no_payload_breaks_a_condition(payload: Any, value: str, sign: str) -> None:
    query = parse(f"SELECT n FROM '#' WHERE n {sign} {value} AND floor(n) + 1 > 0")
    assert query.fires(message(payload)) in {True, False}

"""The devices in brief: read in the background, in parts, and again when they are old."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from fedgrass.cloud.console.fleet_page import Counts
from fedgrass.cloud.console.index import FleetIndex
from tests.fixtures.doubles import double
from tests.fixtures.waiting import PATIENCE, eventually

NOW = 1_000_000.0


def heartbeat(thing: str, received_at: int = int(NOW * 1000)) -> dict[str, Any]:
    return {"thing": thing, "received_at": received_at, "interval_seconds": 10, "able": True, "model_version": "1.2.0"}


def word(thing: str, **more: Any) -> dict[str, Any]:
    return {"thing": f"{thing}#model", "received_at": 5, "active_version": "1.1.0", **more}


class Table:
    """Pages of items; ``gate`` holds back every page but the first."""

    def __init__(self, *pages: list[dict[str, Any]]) -> None:
        self.pages = pages
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()
        self.failure: EndpointConnectionError | None = None

    def query(self, **arguments: Any) -> dict[str, Any]:
        position = arguments.get("ExclusiveStartKey", 0)
        if position:
            assert self.gate.wait(PATIENCE)
        else:
            self.reads += 1
        if self.failure is not None:
            raise self.failure
        more = {"LastEvaluatedKey": position + 1} if position + 1 < len(self.pages) else {}
        return {"Items": self.pages[position], **more}


class Clock:
    def __init__(self) -> None:
        self.seconds = NOW

    def __call__(self) -> float:
        return self.seconds


def index_of(table: Table, clock: Clock | None = None) -> FleetIndex:
    return FleetIndex(lambda: double(table), "mill", clock=clock or Clock())


def test_a_devices_two_items_are_one_device_even_across_pages() -> None:
    table = Table([heartbeat("a"), word("a"), heartbeat("b")], [word("b"), word("c"), heartbeat("d")])
    look = index_of(table).look(60)
    assert look.complete
    assert [(brief.thing, brief.version, brief.alive(NOW * 1000)) for brief in look.devices] == [
        ("a", "1.2.0", True),
        ("b", "1.2.0", True),
        ("c", "1.1.0", False),
        ("d", "1.2.0", True),
    ]


def test_figures_of_devices_own_models_are_kept_of_those_that_told_some() -> None:
    told = {"accuracy": 0.5, "loss": 1, "tuned_accuracy": 0.75, "latency_ms": 3}
    look = index_of(Table([word("a", metrics=told), heartbeat("a"), word("b", metrics={"loss": 1}), word("c")])).look(
        60
    )
    kept = {"accuracy": 0.5, "loss": 1.0, "tuned_accuracy": 0.75}
    assert [brief.own for brief in look.devices] == [kept, None, None]


def test_what_expired_is_left_out() -> None:
    table = Table([heartbeat("a"), word("b", expires=int(NOW) - 1)])
    assert [brief.thing for brief in index_of(table).look(60).devices] == ["a"]


def test_a_device_is_silent_after_three_of_its_intervals() -> None:
    [brief] = index_of(Table([heartbeat("a")])).look(60).devices
    assert brief.is_("alive", NOW * 1000 + 30_000)
    assert brief.is_("silent", NOW * 1000 + 30_001)
    assert not brief.is_("able", NOW * 1000 + 30_001)


def test_the_beginning_is_shown_while_the_rest_is_being_read() -> None:
    table = Table([heartbeat("a"), heartbeat("b")], [heartbeat("c")])
    table.gate.clear()
    index = index_of(table)
    eventually(lambda: [brief.thing for brief in index.look(0).devices] == ["a"])  # b may have another item to come
    assert not index.look(0).complete
    table.gate.set()
    assert len(index.look(60).devices) == 3


def test_an_old_look_is_shown_until_the_new_one_is_there() -> None:
    table, clock = Table([heartbeat("a")], [heartbeat("b")]), Clock()
    index = index_of(table, clock)
    assert len(index.look(60).devices) == 2
    assert table.reads == 1
    index.look(60)
    assert table.reads == 1
    table.gate.clear()
    clock.seconds += 60
    old = index.look(0)
    assert (old.complete, old.at) == (True, NOW)
    table.gate.set()
    assert index.look(60).at == NOW + 60
    assert table.reads == 2


def test_who_was_alive_when_an_old_look_was_taken_is_not_shown_as_silent_now() -> None:
    table, clock = Table([heartbeat("a"), heartbeat("silent", 0)], [heartbeat("b")]), Clock()
    index = index_of(table, clock)
    index.look(60)
    table.gate.clear()
    clock.seconds += 600
    old = index.look(0)  # a page that is opened again after a while, before the table was read
    assert Counts.of(old).states == {"alive": 2, "able": 2, "unable": 0, "silent": 1}
    table.gate.set()
    assert Counts.of(index.look(60)).states == {"alive": 0, "able": 0, "unable": 0, "silent": 3}


def test_a_failure_is_told_once_and_the_next_look_tries_again() -> None:
    table = Table([heartbeat("a")])
    table.failure = EndpointConnectionError(endpoint_url="https://nowhere")
    index = index_of(table)
    with pytest.raises(EndpointConnectionError):
        index.look(60)
    table.failure = None
    assert index.look(60).complete

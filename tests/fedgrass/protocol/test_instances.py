"""Two devices of one name are found out, and one device is never taken for two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.protocol.instances import shared_names

HOUR = 3600.0
NOW = time.time() - 24 * HOUR


class Items:
    """A table that holds some items of one fleet."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self.items = items

    def query(self, **_arguments: Any) -> dict[str, Any]:
        return {"Items": list(self.items)}


def said(instance: str, *, up: float, sent: float, received: float, thing: str = "t", **more: Any) -> dict[str, Any]:
    """An item as the rule writes it: times in seconds, by the device's clock and by the cloud's."""
    return {
        "fleet": "f",
        "key": f"instance#{thing}#{instance}",
        "thing": thing,
        "instance": instance,
        "sent_at": datetime.fromtimestamp(sent, timezone.utc).isoformat(),
        "up_seconds": up,
        "received_at": int(received * 1000),
        "expires": int(time.time() + HOUR),
        **more,
    }


def shared(*items: dict[str, Any]) -> set[str]:
    return shared_names(Items(items), "f")  # type: ignore[arg-type]


def prompt(instance: str, began: float, last: float, **more: Any) -> dict[str, Any]:
    """A process with the right time and a link, of which was heard at ``last``."""
    return said(instance, up=last - began, sent=last, received=last + 0.2, **more)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_that_run_side_by_side_are_several_devices(count: int) -> None:
    items = [prompt(f"{number:08x}", NOW + 40 * number, NOW + 300 + number) for number in range(count)]
    assert shared(*items, prompt("0000000f", NOW, NOW + 300, thing="alone")) == {"t"}


def test_it_is_seen_once_each_is_heard_after_the_other_began() -> None:
    first, second = prompt("a", NOW, NOW + 115), prompt("b", NOW + 100, NOW + 115)
    assert shared(prompt("a", NOW, NOW + 90), second) == set()
    assert shared(first, prompt("b", NOW + 100, NOW + 100)) == set()
    assert shared(first, second) == {"t"}


def test_it_is_forgotten_when_one_of_them_is_gone() -> None:
    gone = prompt("a", NOW, NOW + 300, expires=int(time.time()) - 1)
    assert shared(gone, prompt("b", NOW + 100, NOW + 300)) == set()


def test_an_item_that_makes_no_sense_takes_nothing_from_the_others() -> None:
    bad = prompt("c", NOW, NOW + 300) | {"up_seconds": "long"}
    assert shared(bad, prompt("a", NOW, NOW + 300), prompt("b", NOW + 100, NOW + 300)) == {"t"}


lives = st.lists(
    st.tuples(
        st.floats(0, 600),  # it was off before it began
        st.floats(0, 5000),  # it ran
        st.floats(0, 1),  # when it named itself last, as a share of that
        st.floats(-6 * 365 * 24 * HOUR, 6 * 365 * 24 * HOUR),  # how wrong its clock was then
        st.floats(0, 5000),  # how long the message waited for a link
    ),
    min_size=1,
    max_size=6,
)


@given(lives, st.booleans())
def test_one_device_is_never_two_though_its_clock_jumps_or_its_link_fails(
    lives: list[tuple[float, float, float, float, float]], clock_is_right: bool
) -> None:
    at, arrived, items = NOW, 0.0, []
    for number, (off, ran, share, wrong, waited) in enumerate(lives):
        began = at + off
        sent, at = began + share * ran, began + ran
        arrived = max(arrived, sent + (waited if clock_is_right else 0.1))  # what waits for a link arrives in order
        clock = 0.0 if clock_is_right else wrong
        items.append(said(f"{number:08x}", up=sent - began, sent=sent + clock, received=arrived))
    assert shared(*items) == set()


@pytest.mark.parametrize("years", [-56, -1, 1, 12])
def test_a_clock_that_is_wrong_by_years_hides_no_second_device(years: int) -> None:
    ahead = timedelta(days=years * 365).total_seconds()
    first = said("a", up=300, sent=NOW + 300 + ahead, received=NOW + 300)
    assert shared(first, prompt("b", NOW + 100, NOW + 300)) == {"t"}

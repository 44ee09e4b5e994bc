"""Names are spelt alike on both sides and read back to what they were made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError, MessageError
from fedgrass.protocol import cohort, names

fleets = st.from_regex(r"\A[a-zA-Z0-9_-]{1,64}\Z")
things = st.from_regex(r"\A[a-zA-Z0-9:_-]{1,128}\Z")
rounds = st.integers(1, 999_999)


@given(fleet=fleets, thing=things)
def test_a_device_topic_reads_back_and_fits_iot_core(fleet: str, thing: str) -> None:
    topic = names.device_topic(fleet, thing, "update")
    assert names.parse_device_topic(topic) == names.DeviceTopic(fleet, thing, "update")
    assert len(topic) <= 256
    assert topic.count("/") <= 7


@given(fleet=fleets, number=rounds, thing=things)
def test_an_update_key_reads_back(fleet: str, number: int, thing: str) -> None:
    key = names.update_key(fleet, number, thing)
    assert names.parse_update_key(key) == names.UpdateKey(fleet, number, thing)


@pytest.mark.parametrize(
    "key",
    ["", "updates/f/000001/t/other", "updates/f/1/t/update.safetensors", "updates/f/000001/a/b/update.safetensors"],
)
def test_any_other_key_is_refused(key: str) -> None:
    with pytest.raises(MessageError):
        names.parse_update_key(key)


@pytest.mark.parametrize("fleet", ["", "a/b", "a+", "x" * 65, "a b"])
def test_a_fleet_that_would_break_topics_is_refused(fleet: str) -> None:
    with pytest.raises(ConfigurationError):
        names.check_fleet(fleet)


def test_a_version_keeps_the_graphs_major_and_takes_the_round_as_minor() -> None:
    assert names.next_version("3.4.1", 12) == "3.12.0"
    assert sorted(["1.10.0", "1.9.0"], key=names.version_order) == ["1.9.0", "1.10.0"]


@given(salt=st.text(min_size=1, max_size=20), fraction=st.floats(0.01, 1), thing=things)
def test_a_larger_fraction_never_drops_a_member(salt: str, fraction: float, thing: str) -> None:
    if cohort.is_member(salt, fraction, thing):
        assert cohort.is_member(salt, min(1.0, fraction * 1.5), thing)
    assert cohort.is_member(salt, 1.0, thing)


def test_the_cohort_is_about_its_fraction_and_changes_with_the_salt() -> None:
    fleet = [f"device-{number}" for number in range(10_000)]
    first = {thing for thing in fleet if cohort.is_member("salt-1", 0.3, thing)}
    second = {thing for thing in fleet if cohort.is_member("salt-2", 0.3, thing)}
    assert 2_800 < len(first) < 3_200
    assert 700 < len(first & second) < 1_100


@given(
    st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=60),
    st.lists(st.integers(1, 20), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
)
def test_pieces_that_follow_one_another_take_as_many_as_they_say_and_nobody_twice_in_a_turn(
    things: set[str], counts: list[int], begin: float
) -> None:
    lots = [cohort.draw("salt", thing) for thing in things]
    taken = dict.fromkeys(things, 0)
    for count in counts:
        piece = cohort.piece_of(lots, count, begin)
        asked = {thing for thing in things if cohort.is_member("salt", piece.fraction, thing, piece.begin)}
        assert len(asked) == piece.devices == min(count, len(things))
        for thing in asked:
            taken[thing] += 1
        begin = (piece.begin + piece.fraction) % 1.0
        assert max(taken.values()) - min(taken.values()) <= 1

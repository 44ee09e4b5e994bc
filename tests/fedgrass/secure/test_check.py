"""Boxes are looked at before a set is fixed, so that no device costs a round; and a look binds to nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedgrass.errors import HelpersMissingError, MessageError
from fedgrass.secure.check import BoxCheck, Checked, judged, most_bytes
from fedgrass.secure.helper import HelperLimits
from fedgrass.secure.masks import SEED_BYTES, commitment
from fedgrass.secure.request import Candidate, requests_for
from fedgrass.secure.sealing import seal
from fedgrass.secure.unmask import unmask
from tests.fedgrass.secure.fleets import (
    Device,
    asked,
    context_of,
    devices,
    helper,
    masked_sum,
    plain_sum,
    signer,
    task_of,
)


def spoilt(one: Device, how: str, helpers: tuple[int, ...]) -> Candidate:
    """A device's candidate, whose boxes for these helpers are not what they should be."""
    task, boxes = task_of(), list(one.candidate.boxes)
    for index in helpers:
        known = task.known_to(index)
        seeds = [one.seeds[mask] for mask in known]
        if how == "rubbish":
            boxes[index] = bytes(len(boxes[index]))
        elif how == "another round":
            boxes[index] = seal(seeds, context_of(task, 9), one.thing, task.helpers[index], signer(one.thing))
        elif how == "another key":
            boxes[index] = seal(seeds, context_of(task), one.thing, task.helpers[index], signer("another"))
        else:  # other seeds than the other helpers get
            others = [bytes(SEED_BYTES) for _ in known]
            boxes[index] = seal(others, context_of(task), one.thing, task.helpers[index], signer(one.thing))
    return replace(one.candidate, boxes=tuple(boxes))


@pytest.mark.parametrize("how", ["rubbish", "another round", "another key", "other seeds"])
@pytest.mark.parametrize("whom", [who for count in (1, 2, 3) for who in itertools.combinations(range(3), count)])
def test_one_bad_device_never_costs_a_round(how: str, whom: tuple[int, ...], tmp_path: Path) -> None:
    task = task_of()
    some = devices(5, 9, task)
    helpers = [helper(tmp_path, index) for index in range(3)]
    known = devices(5, 9, task, number=3)
    for index, request in enumerate(asked(known, task, 3)):
        helpers[index].answer(request, tmp_path / "before")
        (tmp_path / "before").unlink()
    named = [spoilt(some[0], how, whom), *(one.candidate for one in some[1:])]
    checks = requests_for(named, context_of(task), 9, task, check=True)
    found = judged(checks[0].accepted, {i: one.check(checks[i]) for i, one in enumerate(helpers)})
    assert set(found.unopened) == {"thing-0000"}
    assert f"helper-{whom[0]}: 'thing-0000'" in found.unopened["thing-0000"]
    good = some[1:]
    requests, given = asked(good, task), {index: tmp_path / f"{index}" for index in range(3)}
    for index, one in enumerate(helpers):
        one.answer(requests[index], given[index])
    for who in itertools.combinations(range(3), 2):
        total = masked_sum(good)
        unmask({0: total}, requests[0].accepted, {index: given[index] for index in who})
        assert np.array_equal(total, plain_sum(good))


def test_a_check_gives_no_sum_and_binds_to_nothing(tmp_path: Path) -> None:
    task = task_of()
    some, one = devices(6, 9, task), helper(tmp_path, 0)
    for count in (6, 5, 4):
        checks = requests_for([d.candidate for d in some[:count]], context_of(task), 9, task, check=True)
        assert one.check(checks[0]) == BoxCheck(digest=checks[0].digest)
    assert not (tmp_path / "helper-0" / "answered").exists()
    one.answer(asked(some, task)[0], tmp_path / "a")
    with pytest.raises(MessageError, match="answered for another set"):  # one sum in a round, as ever
        one.answer(asked(some[1:], task)[0], tmp_path / "b")


def test_what_a_helper_would_not_sum_it_says_when_it_is_asked_to_check(tmp_path: Path) -> None:
    task, now = task_of(), [1000.0]
    some = devices(4, 9, task)
    careful = helper(tmp_path, 0, HelperLimits(3, known_seconds=60), clock=lambda: now[0])
    checks = requests_for([one.candidate for one in some], context_of(task), 9, task, check=True)
    assert "has known 0 for 60 s" in careful.check(checks[0]).refused
    now[0] += 60
    assert careful.check(checks[0]).refused == ""
    few = requests_for([one.candidate for one in some[:1]], context_of(task), 9, task, check=True)
    assert "this helper sums 3 or more" in careful.check(few[0]).refused
    assert "for another helper's key" in careful.check(checks[1]).refused


def found_by(bad: dict[int, list[int]], count: int = 4, *, refused: str = "") -> Checked:
    task = task_of()
    accepted = asked(devices(count, 9, task), task)[0].accepted
    things = [one.thing for one in accepted.members]
    found = {
        index: BoxCheck(
            digest="ab" * 32, unopened={things[one]: "why" for one in which}, refused=refused if index == 2 else ""
        )
        for index, which in bad.items()
    }
    return judged(accepted, found)


def test_who_is_left_out() -> None:
    assert found_by({0: [], 1: []}) == Checked(helpers=(0, 1))
    assert found_by({0: [1], 1: [], 2: [2]}).unopened.keys() == {"thing-0001", "thing-0002"}
    # A helper that opens fewer than half of them is the odd one, and cannot leave the fleet out.
    assert found_by({0: [0, 1, 2], 1: [], 2: []}) == Checked(helpers=(1, 2))
    assert found_by({0: [], 1: [], 2: []}, refused="no").helpers == (0, 1)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({0: []}, "1 of 3 helpers can sum, 2 are needed; helper-1 is silent; helper-2 is silent"),
        ({0: [0, 1, 2], 1: []}, "helper-0 opens 1 of 4 boxes"),
        ({0: [], 2: []}, "helper-2: no such thing"),
    ],
)
def test_too_few_helpers_that_can_sum_are_named(bad: dict[int, list[int]], said: str) -> None:
    with pytest.raises(HelpersMissingError, match=said):
        found_by(bad, refused="no such thing")


def test_of_what_a_helper_sends_nothing_is_trusted() -> None:
    things = frozenset({"a", "b"})
    whole = BoxCheck(digest="ab" * 32, unopened={"a": "\0" * 300, "b": "x"})
    assert BoxCheck.decode(whole.encode(), "ab" * 32, things) == whole
    assert len(whole.encode()) <= most_bytes(2)
    for content, digest, known in (
        (whole.encode(), "cd" * 32, things),
        (whole.encode(), "ab" * 32, frozenset({"a"})),
        (b"{}", "ab" * 32, things),
        (b"\xff", "ab" * 32, things),
        (whole.encode()[:-1] + b',"more":1}', "ab" * 32, things),
    ):
        with pytest.raises(MessageError, match="check"):
            BoxCheck.decode(content, digest, known)


def test_commitments_differ_with_the_seed_and_are_no_mask() -> None:
    assert commitment(bytes(32)) != commitment(bytes(31) + b"\1")
    assert len(commitment(bytes(32))) == 16

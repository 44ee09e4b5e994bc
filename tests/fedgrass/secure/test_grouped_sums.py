"""A cohort in groups: each sum opens by itself, of no fewer than were told, and in one partition that the cloud has no say in."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedgrass.errors import MessageError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.check import BoxCheck, judged
from fedgrass.secure.helper import Helper, HelperLimits
from fedgrass.secure.request import Candidate, SumRequest, requests_for
from fedgrass.secure.unmask import unmask
from tests.fedgrass.secure.fleets import Device, asked, context_of, devices, helper, masked_sum, plain_sum, task_of


def by_group(some: list[Device]) -> dict[int, list[Device]]:
    return {g: [d for d in some if d.candidate.group == g] for g in sorted({d.candidate.group for d in some})}


def requests(some: list[Candidate], task: SecureTask, *, check: bool = False) -> list[SumRequest]:
    return requests_for(some, context_of(task), 9, task, check=check)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_groups_are_opened_each_by_itself_and_one_may_be_left_out(noise: float, tmp_path: Path) -> None:
    task = task_of(groups=4, noise=noise, most=64)
    groups = by_group(devices(40, 9, task))
    del groups[1]  # numbers may be missing
    some = [one for group in groups.values() for one in group]
    adding = (0, 1) if noise else ()
    asked_for = requests_for([d.candidate for d in some], context_of(task), 9, task, adding=adding)
    given = {one.helper: tmp_path / f"{one.helper}" for one in asked_for[:2]}
    for one in asked_for[:2]:
        helper(tmp_path, one.helper).answer(SumRequest.decode(one.encode()), given[one.helper])
    totals = {number: masked_sum(group) for number, group in groups.items()}
    unmask(totals, asked_for[0].accepted, given)
    for number, group in groups.items():
        off = (totals[number] - plain_sum(group)).view("<i4")
        assert np.abs(off).max() <= (8 * task.share_steps(2) * 2 if noise else 0)
        assert noise == 0 or np.any(off[: 9 - task.count_coordinates])
        assert not np.any(off[9 - task.count_coordinates :])  # no noise on the count


def test_who_is_with_whom_is_for_everybody_to_compute() -> None:
    # By another road than the code's: the digest's digits, in base 16, modulo the number of groups.
    task = task_of(groups=7)
    for salt, thing in (("a", "press-1"), ("a", "press-2"), ("b", "press-1")):
        digits = hashlib.sha256(f"fedgrass group 1|{salt}|{thing}".encode()).hexdigest()
        left = 0
        for digit in digits:
            left = (left * 16 + int(digit, 16)) % 7
        assert task.group_of(salt, thing) == left
    sizes = Counter(task.group_of("salt", f"thing-{i}") for i in range(7000))
    assert all(850 < sizes[group] < 1150 for group in range(7))  # five standard deviations


def test_a_set_in_groups_of_the_clouds_choice_is_refused(tmp_path: Path) -> None:
    task = task_of(groups=2)
    some = [one.candidate for one in devices(12, 9, task)]
    victim = some[0]
    # The victim moved beside devices that the cloud made up.
    moved = [replace(one, group=1 - one.group) if one is victim else one for one in some]
    with pytest.raises(MessageError, match=r"'thing-0000' in another group"):
        helper(tmp_path, 0).answer(requests(moved, task)[0], tmp_path / "a")


@pytest.mark.parametrize(("groups", "group_min"), [(1, 3), (3, 3), (2, 2)])
def test_other_groups_or_smaller_ones_than_devices_were_told_of_open_no_box(
    groups: int, group_min: int, tmp_path: Path
) -> None:
    some = devices(30, 9, task_of(groups=2))
    other = task_of(groups=groups).model_copy(update={"group_min": group_min})
    shown = [replace(one.candidate, group=other.group_of("salt", one.thing)) for one in some]
    with pytest.raises(MessageError, match="do not open"):
        helper(tmp_path, 0).answer(requests(shown, other)[0], tmp_path / "a")


def test_of_two_partitions_or_two_sets_of_groups_in_a_round_one_is_answered(tmp_path: Path) -> None:
    """What two would give: the difference of a group's two sums, or with another salt the sums of other groups."""
    task = task_of(groups=2)
    some = devices(20, 9, task)
    groups = by_group(some)
    one = helper(tmp_path, 0)
    one.answer(asked(some, task)[0], tmp_path / "a")
    with pytest.raises(MessageError, match="answered for another set"):
        one.answer(asked(groups[1], task)[0], tmp_path / "b")
    with pytest.raises(MessageError, match="answered for another set"):
        one.answer(asked([*groups[0], *groups[1][1:]], task)[0], tmp_path / "b")
    # Another partition needs another salt, and under that no device of this round has sealed anything.
    salted = replace(context_of(task), session="pepper")
    shown = [replace(d.candidate, group=task.group_of("pepper", d.thing)) for d in some]
    with pytest.raises(MessageError, match="do not open"):
        one.answer(requests_for(shown, salted, 9, task)[0], tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_group_below_the_minimum_is_not_summed_whatever_the_helper_allows(tmp_path: Path) -> None:
    task = task_of(groups=2)
    groups = by_group(devices(20, 9, task))
    few = [*groups[0], *groups[1][:2]]
    with pytest.raises(MessageError, match="a group has 2 devices; this helper sums 3 or more"):
        helper(tmp_path, 0, HelperLimits(min_devices=1)).answer(asked(few, task)[0], tmp_path / "a")
    assert not (tmp_path / "a").exists()
    strict = helper(tmp_path, 1, HelperLimits(min_devices=5))
    with pytest.raises(MessageError, match="a group has 4 devices; this helper sums 5 or more"):
        strict.answer(asked([*groups[0], *groups[1][:4]], task)[1], tmp_path / "b")


def test_a_helper_must_have_known_enough_devices_of_each_group(tmp_path: Path) -> None:
    task, now = task_of(groups=2), [0.0]
    groups = by_group(devices(20, 9, task))
    one = helper(tmp_path, 0, HelperLimits(min_devices=3, known_seconds=60), clock=lambda: now[0])
    known = [*groups[0], *groups[1][:2]]
    one.check(requests([d.candidate for d in known], task, check=True)[0])
    now[0] += 60
    # The rest of group 1 are made up just now: with them the set is large, and two devices would be alone with them.
    everyone = [*groups[0], *groups[1]]
    with pytest.raises(MessageError, match="in 2 groups, of one of these it has known 2 for 60 s; 3 are needed"):
        one.answer(asked(everyone, task)[0], tmp_path / "a")
    found = judged(asked(everyone, task)[0].accepted, {i: _checked(one, everyone, task, i, tmp_path) for i in range(3)})
    assert list(found.small) == [1]
    assert "helper helper-0 may know 2 of its devices, 3 are needed" in found.small[1]


def _checked(first: Helper, some: list[Device], task: SecureTask, index: int, folder: Path) -> BoxCheck:
    one = first if index == 0 else helper(folder, index)
    return one.check(requests([d.candidate for d in some], task, check=True)[index])


def test_a_group_that_bad_boxes_make_too_small_is_left_out_and_costs_no_round(tmp_path: Path) -> None:
    task = task_of(groups=2)
    groups = by_group(devices(20, 9, task))
    some = [*groups[0], *groups[1][:4]]
    # Two of the four seal rubbish, each for another helper: no helper by itself sees the group fall below three.
    bad = {groups[1][0].thing: 0, groups[1][1].thing: 1}
    shown = []
    for one in some:
        boxes = list(one.candidate.boxes)
        if one.thing in bad:
            boxes[bad[one.thing]] = bytes(len(boxes[0]))
        shown.append(replace(one.candidate, boxes=tuple(boxes)))
    checks = requests(shown, task, check=True)
    strict = [helper(tmp_path, index, HelperLimits(min_devices=3)) for index in range(3)]
    found = judged(checks[0].accepted, {index: one.check(checks[index]) for index, one in enumerate(strict)})
    assert found.helpers == (0, 1, 2)
    assert set(found.unopened) == set(bad)
    assert list(found.small) == [1]
    left = groups[0]
    for index, summing in enumerate(strict[:2]):
        summing.answer(asked(left, task)[index], tmp_path / f"{index}")
    total = {0: masked_sum(left)}
    unmask(total, asked(left, task)[0].accepted, {0: tmp_path / "0", 1: tmp_path / "1"})
    assert np.array_equal(total[0], plain_sum(left))

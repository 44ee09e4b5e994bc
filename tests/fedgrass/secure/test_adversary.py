"""The threat model by enumeration: an adversary with so many helpers' keys wins, and with one fewer does not.

The adversary is the cloud: it has all masked updates and boxes, shows helpers what it likes, has bad helpers' keys and seeds,
and makes a bad helper answer any number of sets. It plays against the real code; each honest helper answers once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedgrass.errors import HelpersMissingError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.masks import Expander, Masked, add_mask
from fedgrass.secure.request import SumRequest
from fedgrass.secure.sealing import opened
from fedgrass.secure.unmask import unmask
from tests.fedgrass.secure.fleets import (
    Device,
    asked,
    context_of,
    devices,
    helper,
    masked_sum,
    plain_sum,
    private_key,
    task_of,
)

ALL = [(m, p) for m in range(2, 6) for p in range(1, m)]
Sets = dict[str, list[Device]]


def seeds_of(bad: Sequence[int], one: Device, task: SecureTask) -> dict[int, bytes]:
    """What bad helpers know of a device: the seeds in their boxes, by the mask."""
    found: dict[int, bytes] = {}
    for index in bad:
        known = task.known_to(index)
        box = one.candidate.boxes[index]
        seeds = opened(box, len(known), context_of(task), one.thing, task.helpers[index], private_key(index))
        found |= dict(zip(known, seeds, strict=True))
    return found


def opened_by(bad: Sequence[int], one: Device, task: SecureTask) -> bool:
    """Whether what these helpers know is a device's update."""
    known = seeds_of(bad, one, task)
    stripped = one.masked.copy()
    for seed in known.values():
        mask = np.zeros_like(stripped)
        add_mask(mask, seed, Expander(task.bits))
        np.subtract(stripped, mask, out=stripped)
    won = bool(np.array_equal(stripped, one.plain))
    assert won == (len(known) == len(task.masks))
    return won


@pytest.mark.parametrize(("m", "p"), ALL)
def test_so_many_helpers_as_may_collude_lack_a_mask_and_one_more_lack_none(m: int, p: int) -> None:
    task = task_of(m, p)
    (one, *_) = devices(2, 8, task)
    for count in range(m + 1):
        for bad in itertools.combinations(range(m), count):
            assert opened_by(bad, one, task) == (count > p)


class Cloud:
    """An adversary, with what each helper would answer for each of its sets."""

    def __init__(self, task: SecureTask, sets: Sets, folder: Path) -> None:
        self.task, self.sets = task, sets
        self.requests = {name: asked(some, task) for name, some in sets.items()}
        self.answers: dict[tuple[str, int], Path] = {}
        for name, index in itertools.product(sets, range(len(task.helpers))):
            path = folder / f"{name}-{index}"
            # A folder for each set: an honest helper has one, which the assignments below keep to.
            helper(folder / name, index).answer(SumRequest.decode(self.requests[name][index].encode()), path)
            self.answers[name, index] = path
        self.known: dict[tuple[str, frozenset[int]], bool] = {}

    def opens(self, name: str, by: frozenset[int]) -> bool:
        """Whether the answers of these helpers open the set."""
        if (name, by) not in self.known:
            total = masked_sum(self.sets[name])
            try:
                unmask({0: total}, self.requests[name][0].accepted, {i: self.answers[name, i] for i in by})
            except HelpersMissingError:
                self.known[name, by] = False
            else:
                assert np.array_equal(total, plain_sum(self.sets[name]))
                self.known[name, by] = True
        return self.known[name, by]

    def most_opened(self, bad: int) -> int:
        """Most sets that it opens, whatever it shows to whom, with so many bad helpers that answer each of them."""
        names, honest = list(self.sets), range(bad, len(self.task.helpers))
        best = 0
        for shown in itertools.product([*names, None], repeat=len(honest)):
            by = {name: frozenset(range(bad)) for name in names}
            for index, name in zip(honest, shown, strict=True):
                if name is not None:
                    by[name] |= {index}
            best = max(best, sum(self.opens(name, by[name]) for name in names))
        return best


@pytest.mark.parametrize(("m", "p"), ALL)
@pytest.mark.parametrize(
    "split",
    [lambda d: {"all": d, "without-one": d[1:]}, lambda d: {"all": d, "left": d[:3], "right": d[3:]}],
    ids=["two-sets", "three-sets"],
)
def test_two_sets_open_where_the_bound_says_and_not_before(
    m: int, p: int, split: Callable[[list[Device]], Sets], tmp_path: Path
) -> None:
    task = task_of(m, p)
    cloud = Cloud(task, split(devices(6, 5, task)), tmp_path)
    for bad in range(p + 1):
        assert (cloud.most_opened(bad) >= 2) == (2 * p + 2 - bad <= m), f"{bad} bad helpers"
        # What a device's own account takes for it.
        assert cloud.most_opened(bad) == min(len(cloud.sets), task.sums_that_open(bad)), f"{bad} bad helpers"


def test_two_sets_that_open_give_a_single_device(tmp_path: Path) -> None:
    """What is lost where the bound is passed: the update of the device in which two sets differ."""
    task = task_of(3, 1)
    everyone = devices(4, 5, task)
    cloud = Cloud(task, {"all": everyone, "without": everyone[1:]}, tmp_path)
    assert cloud.most_opened(bad=0) == 1
    totals = {}
    for name, by in (("all", (0, 1)), ("without", (0, 2))):  # helper 0 is bad, and answers both
        totals[name] = masked_sum(cloud.sets[name])
        unmask({0: totals[name]}, cloud.requests[name][0].accepted, {i: cloud.answers[name, i] for i in by})
    assert np.array_equal(totals["all"] - totals["without"], everyone[0].plain)


def sum_of_mask(some: list[Device], mask: int, task: SecureTask) -> Masked:
    """What an honest helper sums, without the lock."""
    total = np.zeros_like(some[0].plain)
    for one in some:
        add_mask(total, one.seeds[mask], Expander(task.bits))
    return total


def test_without_locks_three_sets_would_give_two_sums_though_no_helper_is_bad(tmp_path: Path) -> None:
    """Why sums are locked: 2p + 2 - c <= m is not enough by itself. Left, right and both: one set for each helper."""
    task = task_of(3, 1)
    everyone = devices(6, 5, task)
    left, right = everyone[:3], everyone[3:]
    assert task.masks == ((0,), (1,), (2,))
    # Helper 0 is shown the left, helper 1 the right, helper 2 both.
    sums = {
        0: sum_of_mask(everyone, 0, task) - sum_of_mask(right, 0, task),  # helpers 2 and 1 know mask 0
        1: sum_of_mask(left, 1, task),
        2: sum_of_mask(left, 2, task),
    }
    stolen = masked_sum(left) - sum(sums.values())
    assert np.array_equal(stolen, plain_sum(left))
    cloud = Cloud(task, {"left": left, "right": right, "both": everyone}, tmp_path)
    assert not any(cloud.opens(name, frozenset({index})) for index, name in enumerate(cloud.sets))

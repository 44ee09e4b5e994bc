"""Campaigns that are run in parts."""

from __future__ import annotations

from collections import Counter

from tests.faults.campaign import Findings, merged


def test_the_lines_of_several_campaigns_add_up() -> None:
    one = Findings({"kill": Counter({"running again": 2})}, 10.0, 3, 4, [(1, "a")], 0, 50, 0, [])
    two = Findings({"cut": Counter({"healed": 1}), "kill": Counter({"hung": 1})}, 5.5, 2, 3, [], 1, 20, 2, ["kill"])
    total = merged([one.line, two.line])
    assert total.outcomes == {"kill": Counter({"running again": 2, "hung": 1}), "cut": Counter({"healed": 1})}
    assert (total.seconds, total.rounds, total.accepted, total.lost) == (15.5, 5, 7, [(1, "a")])
    assert (total.counted_twice, total.looks, total.without_model, total.hung) == (1, 70, 2, ["kill"])
    assert not total.clean
    assert merged([]).clean

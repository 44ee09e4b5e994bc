"""The unmasked sum is the plain integer sum, to the bit; what is wrong is named and opens nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedgrass.errors import AggregationError, HelpersMissingError, MessageError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.helper import HelperLimits
from fedgrass.secure.masks import PIECE
from fedgrass.secure.request import SumRequest, requests_for
from fedgrass.secure.summing import write_sums
from fedgrass.secure.unmask import unmask
from tests.fedgrass.secure.fleets import (
    Device,
    asked,
    context_of,
    device,
    devices,
    helper,
    masked_sum,
    plain_sum,
    private_key,
    task_of,
)
from tests.secure_campaign import campaign

ALL = [(m, p) for m in range(2, 6) for p in range(1, m)]


def answers(folder: Path, requests: list[SumRequest], who: tuple[int, ...]) -> dict[int, Path]:
    found = {}
    for index in who:
        found[index] = folder / f"answer-{index}"
        helper(folder, index).answer(SumRequest.decode(requests[index].encode()), found[index])
    return found


@pytest.mark.parametrize(("m", "p"), ALL)
@pytest.mark.parametrize("bits", [16, 32])
def test_any_helpers_but_one_more_than_may_collude_give_the_plain_sum(
    m: int, p: int, bits: int, tmp_path: Path
) -> None:
    task = task_of(m, p, bits=bits)
    some = devices(5, 70, task)
    requests = asked(some, task)
    given = answers(tmp_path, requests, tuple(range(m)))
    for count in range(1, m + 1):
        for who in itertools.combinations(range(m), count):
            total = masked_sum(some)
            if count >= p + 1:
                used = unmask({0: total}, requests[0].accepted, {index: given[index] for index in who})
                assert used.used == tuple(f"helper-{index}" for index in who)
                assert np.array_equal(total, plain_sum(some))
            else:
                with pytest.raises(HelpersMissingError, match=f"{p + 1} are needed") as found:
                    unmask({0: total}, requests[0].accepted, {index: given[index] for index in who})
                silent = sorted(set(range(m)) - set(who))
                assert all(f"helper-{index} is silent" in str(found.value) for index in silent)
                assert np.array_equal(total, masked_sum(some))


@pytest.mark.parametrize("length", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3])
@pytest.mark.parametrize("bits", [16, 32])
def test_vectors_that_end_at_a_pieces_edge(length: int, bits: int, tmp_path: Path) -> None:
    task = task_of(bits=bits)
    some = devices(3, length, task)
    requests = asked(some, task)
    total = masked_sum(some)
    unmask({0: total}, requests[0].accepted, answers(tmp_path, requests, (0, 2)))
    assert np.array_equal(total, plain_sum(some))


@pytest.mark.parametrize(("count", "dropped"), [(2, 0.0), (2, 0.5), (17, 0.0), (17, 0.3), (17, 0.5), (1000, 0.3)])
def test_devices_may_vanish_after_their_upload_or_before(count: int, dropped: float, tmp_path: Path) -> None:
    task = task_of()
    everyone = devices(count, 9, task)
    some = everyone[int(count * dropped) :]
    requests = asked(some, task)
    total = masked_sum(some)
    kept = helper(tmp_path, 0, HelperLimits(min_devices=1))
    given = {0: tmp_path / "0", 1: tmp_path / "1"}
    kept.answer(requests[0], given[0])
    helper(tmp_path, 1, HelperLimits(min_devices=1)).answer(requests[1], given[1])
    unmask({0: total}, requests[0].accepted, given)
    assert np.array_equal(total, plain_sum(some))


def test_rounds_of_any_kind_give_the_plain_sum_by_enough_helpers_and_nothing_by_fewer() -> None:
    found = campaign(20, seed=1, most=6, kills=False)
    assert found["rounds"] == 6
    assert found["sums"] > 20
    assert found["wrong"] == 0


def test_a_helper_answers_one_set_in_a_round_and_the_same_set_with_the_same_bytes(tmp_path: Path) -> None:
    task = task_of()
    some = devices(6, 9, task)
    first = helper(tmp_path, 0).answer(asked(some, task)[0], tmp_path / "a")
    assert helper(tmp_path, 0).answer(asked(some, task)[0], tmp_path / "b") == first
    with pytest.raises(MessageError, match="answered for another set"):
        helper(tmp_path, 0).answer(asked(some[1:], task)[0], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    following = devices(5, 9, task, number=2)
    helper(tmp_path, 0).answer(asked(following, task, 2)[0], tmp_path / "c")


def test_a_helper_that_is_killed_between_any_two_pieces_goes_on(tmp_path: Path) -> None:
    task = task_of()
    some = devices(3, PIECE + 7, task)
    request = asked(some, task)[0]
    whole = helper(tmp_path, 0).answer(request, tmp_path / "whole")
    computed = 0

    class KilledError(Exception):
        pass

    def dies() -> None:
        nonlocal computed
        computed += 1
        raise KilledError

    for _ in range(4):  # two masks of two pieces each
        with pytest.raises(KilledError):
            helper(tmp_path, 0).answer(request, tmp_path / "again", after_piece=dies)
    assert helper(tmp_path, 0).answer(request, tmp_path / "again", after_piece=dies) == whole
    assert computed == 4  # no piece was summed twice


@pytest.mark.parametrize("kept", [0, 1, 100, 9000])
def test_a_file_that_was_cut_anywhere_is_completed(kept: int, tmp_path: Path) -> None:
    task = task_of()
    request = asked(devices(3, PIECE + 7, task), task)[0]
    whole = helper(tmp_path, 0).answer(request, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:kept] if kept != 9000 else content[:-5])
    assert helper(tmp_path, 0).answer(request, tmp_path / "a") == whole
    (tmp_path / "a.boot").write_text("another")  # after a power cut nothing that is there is believed
    (tmp_path / "a").write_bytes(content[:200] + bytes(len(content) - 200))
    assert helper(tmp_path, 0).answer(request, tmp_path / "a") == whole


def test_a_set_that_is_too_small_or_of_unknown_devices_is_not_summed(tmp_path: Path) -> None:
    task, now = task_of(), [1000.0]
    some = devices(4, 9, task)
    with pytest.raises(MessageError, match="has 1 devices; this helper sums 2"):
        helper(tmp_path, 0).answer(asked(some[:1], task)[0], tmp_path / "a")
    careful = helper(tmp_path, 1, HelperLimits(3, known_seconds=60), clock=lambda: now[0])
    with pytest.raises(MessageError, match="has known 0 for 60 s; 3 are needed"):
        careful.answer(asked(some, task)[1], tmp_path / "a")
    now[0] += 60
    careful.answer(asked(some, task)[1], tmp_path / "a")  # what was refused was not its one answer


def test_a_device_that_signs_with_another_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of()
    some = devices(3, 9, task)
    helper(tmp_path, 0).answer(asked(some, task)[0], tmp_path / "a")
    from tests.fedgrass.secure import fleets

    other = fleets.signer("another")
    monkeypatch.setattr(fleets, "signer", lambda thing: other)
    again = devices(3, 9, task, number=2)
    with pytest.raises(MessageError, match="'thing-0000' signs with another key"):
        helper(tmp_path, 0).answer(asked(again, task, 2)[0], tmp_path / "a")


@pytest.mark.parametrize("what", ["round", "thing", "helper", "bit"])
def test_a_box_opens_only_where_it_belongs(what: str, tmp_path: Path) -> None:
    task = task_of()
    some = devices(3, 9, task)
    requests = asked(some, task)
    if what == "round":
        moved = devices(3, 9, task, number=2)
        requests = requests_for([one.candidate for one in moved], context_of(task), 9, task)
    elif what == "thing":
        swapped = [
            Device(b.thing, a.plain, a.seeds, a.masked, replace(a.candidate, thing=b.thing))
            for a, b in zip(some, [*some[1:], some[0]], strict=True)
        ]
        requests = asked(swapped, task)
    elif what == "helper":
        turned = [replace(one.candidate, boxes=one.candidate.boxes[::-1]) for one in some]
        requests = requests_for(turned, context_of(task), 9, task)
    else:
        boxes = [bytes([one.candidate.boxes[0][0] ^ 1]) + one.candidate.boxes[0][1:] for one in some]
        spoilt = [
            replace(one.candidate, boxes=(box, *one.candidate.boxes[1:])) for one, box in zip(some, boxes, strict=True)
        ]
        requests = requests_for(spoilt, context_of(task), 9, task)
    with pytest.raises(MessageError, match=r"'thing-000\d': its seeds for 'helper-0' do not open"):
        helper(tmp_path, 0).answer(requests[0], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_answers_that_are_changed_cut_or_of_another_set_are_refused_by_name(tmp_path: Path) -> None:
    task = task_of()
    some = devices(4, 9, task)
    requests = asked(some, task)
    given = answers(tmp_path, requests, (0, 1, 2))
    content = given[0].read_bytes()
    sums = 8 + int.from_bytes(content[:8], "little")
    for position in (9, 40, sums, sums + 2 * 9 * 4 - 1, len(content) - 100, len(content) - 1):
        given[0].write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        total = masked_sum(some)
        helped = unmask({0: total}, requests[0].accepted, given)
        assert np.array_equal(total, plain_sum(some))
        assert set(helped.used) >= {"helper-1", "helper-2"}
        # Of a lock, and of the tokens behind it, one whole part for each helper is enough.
        assert ("helper-0" in helped.refused) == (position < sums + 2 * 9 * 4)
    given[0].write_bytes(content[:-1])
    with pytest.raises(HelpersMissingError, match=r"helper-0: .*cannot be read"):
        unmask({0: masked_sum(some)}, requests[0].accepted, {0: given[0], 1: given[1]})
    with pytest.raises(HelpersMissingError, match="is for another set"):
        unmask({0: masked_sum(some)}, asked(some[1:], task)[0].accepted, given)


def test_helpers_that_disagree_are_named_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    task = task_of()
    some = devices(4, 9, task)
    requests = asked(some, task)
    given = answers(tmp_path, requests, (0, 1))
    # A helper that sums other seeds than those that it was given, with a lock that opens.
    lying = [device(one.thing, one.plain, task, number=9) for one in some]
    write_sums(
        tmp_path / "lie",
        requests[2].accepted,
        2,
        [[one.seeds[mask] for mask in task.known_to(2)] for one in lying],
        private_key(2),
        lambda: None,
    )
    with pytest.raises(AggregationError, match="'helper-1' and 'helper-2' gave different sums"):
        unmask({0: masked_sum(some)}, requests[0].accepted, {**given, 2: tmp_path / "lie"})


def test_a_task_that_cannot_protect_or_hold_the_sum_is_refused() -> None:
    task = task_of()
    for change, said in (
        ({"collude": 3}, "all together open everything"),
        ({"bits": 16, "most": 40_000}, "too narrow for the sum of 40000"),
        ({"helpers": [task.helpers[0], task.helpers[0]]}, "two have the same name"),
        ({"helpers": [{"name": "a", "key": "AAAA"}, task.helpers[0]]}, "not a public key"),
    ):
        with pytest.raises(ValueError, match=said):
            SecureTask.model_validate({**task.model_dump(), **change})

"""Noise by the helpers: as much as the formula says, enough when as many as may collude take theirs off, and in one piece."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.errors import HelpersMissingError, MessageError
from fedgrass.noise import BLOCK, discrete_gaussian
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.answer import read_answer
from fedgrass.secure.lock import own_key
from fedgrass.secure.masks import PIECE, Expander, Masked, add_mask, encrypted, pieces, span
from fedgrass.secure.request import SumRequest, requests_for
from fedgrass.secure.shares import noise_seed
from fedgrass.secure.unmask import unmask
from tests.fedgrass.secure.fleets import (
    Device,
    context_of,
    devices,
    helper,
    masked_sum,
    plain_sum,
    private_key,
    task_of,
)

LENGTH = 20_000
CASES = [(2, 1, (0, 1)), (3, 1, (0, 1)), (3, 1, (1, 2)), (3, 1, (0, 1, 2)), (5, 2, (0, 2, 4)), (5, 2, (0, 1, 2, 3, 4))]


def asked(some: list[Device], task: SecureTask, adding: tuple[int, ...]) -> dict[int, SumRequest]:
    length = len(some[0].plain)
    requests = requests_for([one.candidate for one in some], context_of(task), length, task, adding=adding)
    return {request.helper: request for request in requests}


def answered(folder: Path, requests: dict[int, SumRequest]) -> dict[int, Path]:
    for index, request in requests.items():
        helper(folder, index).answer(SumRequest.decode(request.encode()), folder / f"{index}")
    return {index: folder / f"{index}" for index in requests}


def signed(values: Masked) -> Any:
    return values.view(f"<i{values.dtype.itemsize}").astype(np.float64)


def within(noise: Any, deviation: float) -> None:
    """Hold a sample against a normal distribution of this deviation, by its moments and its whole curve."""
    count = len(noise)
    assert np.std(noise) == pytest.approx(deviation, rel=4.5 / math.sqrt(2 * count))
    assert abs(np.mean(noise)) < 4.5 * deviation / math.sqrt(count)
    ordered = np.sort(noise) / deviation
    curve = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in ordered])
    # Kolmogorov: a right sample is farther off once in a million.
    assert np.abs(curve - (np.arange(count) + 0.5) / count).max() < 2.7 / math.sqrt(count)


@pytest.mark.parametrize(("m", "p", "adding"), CASES)
@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_has_the_noise_of_all_and_without_the_colluders_no_less_than_the_target(
    m: int, p: int, adding: tuple[int, ...], bits: int, tmp_path: Path
) -> None:
    task = task_of(m, p, bits=bits, most=4, noise=0.03)
    some = devices(3, LENGTH, task)
    requests = asked(some, task, adding)
    total = masked_sum(some)
    unmask({0: total}, requests[adding[0]].accepted, answered(tmp_path, requests))
    values = LENGTH - task.count_coordinates
    left = total - plain_sum(some)
    assert not left[values:].any()  # the count is exact
    noise = signed(left)[:values]
    share = task.share_steps(len(adding))
    assert share == pytest.approx(task.noise_steps / math.sqrt(len(adding) - p), abs=1)
    within(noise, share * math.sqrt(len(adding)))
    for index in adding[:p]:  # what these helpers know
        seed = noise_seed(private_key(index), requests[index].accepted.digest, 0)
        noise += np.concatenate(list(discrete_gaussian(seed, values, share)))
    within(noise, share * math.sqrt(len(adding) - p))
    assert share * math.sqrt(len(adding) - p) >= task.noise_steps


def test_one_that_was_to_add_noise_and_is_silent_keeps_the_sum_shut(tmp_path: Path) -> None:
    task = task_of(noise=0.5)
    some = devices(4, 50, task)
    requests = asked(some, task, (0, 1, 2))
    given = answered(tmp_path, requests)
    del given[1]
    with pytest.raises(HelpersMissingError, match="2 of 3 helpers gave their sums, 3 are needed; helper-1 is silent"):
        unmask({0: masked_sum(some)}, requests[0].accepted, given)


def plain_answer(folder: Path, request: SumRequest) -> Masked:
    """A helper's sum as who has its key sees it: the lock is no part of what is shown here."""
    answer = read_answer(folder / f"{request.helper}", request.accepted, request.helper)
    content, position, secret = b"", 0, own_key(private_key(request.helper), request.accepted.digest)
    with answer.open_sums() as stream:
        for index in pieces(request.accepted.length):
            part = span(index, request.accepted.length)
            piece = stream.read((part.stop - part.start) * request.accepted.task.bits // 8)
            content += encrypted(piece, secret, position)
            position += len(piece)
    found: Masked = np.frombuffer(content, f"<u{request.accepted.task.bits // 8}").copy()
    return found


def test_two_honest_helpers_that_are_shown_different_sets_tell_nothing(tmp_path: Path) -> None:
    task = task_of(noise=0.5)
    some = devices(5, LENGTH, task)
    first, second = asked(some, task, (0, 1, 2))[0], asked(some[1:], task, (0, 1, 2))[1]
    answered(tmp_path, {0: first, 1: second})
    for request, members in ((first, some), (second, some[1:])):
        total = plain_answer(tmp_path, request)
        # Take off even all masks, of which p colluders do not know all: the pad with the other honest one stays.
        masks: Masked = np.zeros_like(total)
        for one in members:
            for number in request.accepted.assigned_to(request.helper):
                add_mask(masks, one.seeds[number], Expander(32))
        spread = np.std(signed(total - masks))
        assert spread == pytest.approx(2**32 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("length", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 1])
def test_a_helper_that_is_killed_goes_on_with_the_same_noise(length: int, tmp_path: Path) -> None:
    task = task_of(noise=0.5)
    some = devices(2, length, task)
    request = asked(some, task, (0, 1))[0]
    whole = helper(tmp_path, 0).answer(request, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def dies() -> None:
        raise KilledError

    for _ in pieces(length):
        with pytest.raises(KilledError):
            helper(tmp_path, 0).answer(request, tmp_path / "again", after_piece=dies)
    assert helper(tmp_path, 0).answer(request, tmp_path / "again", after_piece=dies) == whole
    assert BLOCK == PIECE


@pytest.mark.parametrize(
    ("adding", "said"),
    [
        ((), "are to add noise, or not, and it does not say so"),
        ((0,), "1 helpers add noise; 2 or more must"),
        ((0, 0, 1), "add noise; this one is 0"),
        ((1, 0), "add noise; this one is 0"),
        ((1, 2), "add noise; this one is 0"),
        ((0, 7), "add noise; this one is 0"),
    ],
)
def test_a_helper_sums_nothing_where_too_few_add_noise(adding: tuple[int, ...], said: str, tmp_path: Path) -> None:
    task = task_of(noise=0.5)
    request = asked(devices(3, 50, task), task, (0, 1))[0]
    accepted = request.accepted.model_copy(update={"adding": adding})
    with pytest.raises(MessageError, match=said):
        helper(tmp_path, 0).answer(request.model_copy(update={"accepted": accepted}), tmp_path / "a")
    assert not (tmp_path / "helper-0" / "answered").exists()


@pytest.mark.parametrize("changes", [{"noise": 0.25}, {"value_range": 8.0}, {"most": 2000}, {"shared_noise": False}])
def test_less_noise_than_devices_were_told_of_opens_no_box(changes: dict[str, Any], tmp_path: Path) -> None:
    task = task_of(noise=0.5)
    adding = () if "shared_noise" in changes else (0, 1)
    request = asked(devices(3, 50, task), task, (0, 1))[0]
    less = SecureTask.model_validate({**task.model_dump(), **changes})
    assert less.noise_steps < task.noise_steps or adding == ()
    accepted = request.accepted.model_copy(update={"task": less, "adding": adding})
    with pytest.raises(MessageError, match="do not open"):
        helper(tmp_path, 0).answer(request.model_copy(update={"accepted": accepted}), tmp_path / "a")

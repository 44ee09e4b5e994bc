"""Secure aggregation on a device: masked updates, a helper's sums, and what the device's owner asks for."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.files import sha256_of
from fedgrass.protocol import secure
from fedgrass.protocol.messages import Announcement, SumTask
from fedgrass.protocol.names import command_key, sum_command, update_key
from fedgrass.secure.check import BoxCheck
from fedgrass.secure.device import context_of
from fedgrass.secure.keys import helper_key, public_text
from fedgrass.secure.masked import MaskedUpdate, read_masked
from fedgrass.secure.masks import Expander, add_mask, commitment
from fedgrass.secure.quantize import examples_in, mean_of
from fedgrass.secure.request import Candidate, SumRequest, requests_for
from fedgrass.secure.sealing import opened, seal
from fedgrass.secure.unmask import unmask
from tests.components.trainer.place import FLEET, THING, TOPIC, Place
from tests.components.trainer.test_trainer_commands import answer, command
from tests.fedgrass.secure.fleets import private_key, task_of


def announced(place: Place, **changes: Any) -> Announcement:
    return place.announcement(secure=task_of(3, 1, most=10), **changes)


def uploaded(place: Place, announcement: Announcement) -> MaskedUpdate:
    content = place.streams.s3[update_key(FLEET, announcement.round, THING)]
    (place.folder / "found").write_bytes(content)
    assert announcement.secure is not None
    size = sum(value.size for value in place.bundle.parameters().values())
    with (place.folder / "found").open("rb") as stream:
        return read_masked(stream, len(content), size, announcement.secure)


def test_a_device_uploads_a_masked_update_whose_seeds_the_helpers_open(place: Place) -> None:
    place.start()
    announcement = announced(place, epochs=2)
    place.ipc.from_cloud(TOPIC, announcement.encode())
    place.settle()
    place.until(lambda: place.notices, "told")
    notice = place.notices[-1]
    assert (notice.status, notice.num_examples, notice.metrics) == ("uploaded", 1, {})
    update, task = uploaded(place, announcement), announcement.secure
    assert task is not None
    assert (update.header.num_examples, update.header.metrics) == (1, {})
    seeds: dict[int, bytes] = {}
    for index in range(2):  # one more than may collude know all
        known = task.known_to(index)
        found = opened(
            update.boxes[index], len(known), context_of(announcement), THING, task.helpers[index], private_key(index)
        )
        seeds |= dict(zip(known, found, strict=True))
    for seed in seeds.values():
        mask = np.zeros_like(update.values)
        add_mask(mask, seed, Expander(task.bits))
        np.subtract(update.values, mask, out=update.values)
    assert examples_in(update.values, task) == 40
    assert np.allclose(mean_of(update.values, 1, task), 2, atol=1e-4)  # the quick engine adds one in each epoch


def request_of(place: Place, key: str, number: int = 1) -> tuple[SumRequest, bytes]:
    """A set of three devices, asked of this device as the first of three helpers."""
    from tests.fedgrass.secure import fleets

    own = secure.Helper(name=THING, key=key)
    task = task_of().model_copy(update={"helpers": (own, *task_of().helpers[1:])})
    context = fleets.context_of(task, number)
    context = context.__class__(FLEET, number, "salt", context.base_sha256, task.bits, task.collude)
    draws, named = np.random.default_rng(0), []
    for thing in ("a", "b", "c"):
        seeds = [draws.bytes(32) for _ in task.masks]
        boxes = tuple(
            seal([seeds[mask] for mask in task.known_to(i)], context, thing, helper, fleets.signer(thing))
            for i, helper in enumerate(task.helpers)
        )
        named.append(Candidate(thing, boxes, b"".join(map(commitment, seeds))))
    request = requests_for(named, context, 9, task)[0]
    return request, request.encode()


def helper_place(folder: Path, **trainer: Any) -> Place:
    place = Place(folder, helper="true", **trainer)
    place.have_model()
    place.s3.hold(place.bundle)
    return place


def test_the_rounds_announcement_wakes_a_helper_and_closes_the_round_for_its_training(tmp_path: Path) -> None:
    place = helper_place(tmp_path)
    place.start()
    request, content = request_of(place, place.statuses[-1].helper_key)
    place.s3.objects[f"secure/{FLEET}/000001/{THING}.json"] = content
    asked = {THING: hashlib.sha256(content).hexdigest()}
    sums = SumTask(digest=request.accepted.digest, requests=asked)
    for _ in range(2):  # a retained message comes again
        place.open(place.announcement(task="sum", sums=sums))
    reply = answer(place)
    assert (reply.status, reply.id) == ("done", sum_command(1, request.accepted.digest))
    assert place.notices == []  # it is no round to train in
    place.stop()


def test_to_other_devices_an_announcement_to_helpers_is_a_round_that_is_closed(place: Place) -> None:
    place.start()
    sums = SumTask(digest="ab" * 32, requests={"another": "cd" * 32})
    place.open(place.announcement(task="sum", sums=sums))
    place.open(place.announcement(2))
    place.until(lambda: place.notices, "answered")
    assert [notice.round for notice in place.notices] == [2]


def ask(place: Place, number: str, content: bytes, key: str = f"secure/{FLEET}/000001/{THING}.json") -> None:
    place.s3.objects[key] = content
    command(place, number, "sum", key=key, sha256=hashlib.sha256(content).hexdigest())


def test_a_helper_makes_its_key_tells_it_and_sums_when_it_is_asked(tmp_path: Path) -> None:
    place = helper_place(tmp_path)
    place.start()
    key = public_text(helper_key(tmp_path / "work" / "helper"))
    assert place.statuses[-1].helper_key == key
    assert (tmp_path / "work" / "helper" / "helper.key").stat().st_mode & 0o777 == 0o600
    request, content = request_of(place, key)
    ask(place, "sum-1", content)
    reply = answer(place)
    assert (reply.status, reply.key) == ("done", command_key(FLEET, THING, "sum-1"))
    file = tmp_path / "answer"
    file.write_bytes(place.streams.s3[reply.key or ""])
    assert sha256_of(file) == reply.sha256
    with pytest.raises(Exception, match="1 of 3 helpers gave their sums, 2 are needed"):
        unmask({0: np.zeros(9, "<u4")}, request.accepted, {0: file})
    place.stop()


def test_a_helper_that_is_asked_to_check_says_which_boxes_open_and_may_still_sum(tmp_path: Path) -> None:
    place = helper_place(tmp_path)
    place.start()
    request, _ = request_of(place, place.statuses[-1].helper_key)
    spoilt = base64.b64encode(bytes(len(base64.b64decode(request.boxes[1])))).decode()
    check = request.model_copy(update={"check": True, "boxes": (request.boxes[0], spoilt, request.boxes[2])})
    ask(place, "check-1", check.encode())
    reply = answer(place)
    assert (reply.status, reply.key) == ("done", command_key(FLEET, THING, "check-1"))
    found = BoxCheck.decode(place.streams.s3[reply.key or ""], check.digest, frozenset("abc"))
    assert found.refused == ""
    assert found.unopened == {"b": "'b': its box is not the one that the set names"}
    ask(place, "sum-1", request.encode())
    assert answer(place, 2).status == "done"
    place.stop()


def test_a_second_set_in_a_round_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    place = helper_place(tmp_path)
    place.start()
    request, content = request_of(place, place.statuses[-1].helper_key)
    ask(place, "sum-1", content)
    answer(place)
    place.stop()
    place.start()
    members = request.accepted.members[:2]
    accepted = request.accepted.model_copy(update={"members": members})
    other = request.model_copy(update={"accepted": accepted, "boxes": request.boxes[:2]}).encode()
    ask(place, "sum-2", other)
    reply = answer(place, 2)
    assert reply.status == "refused"
    assert "answered for another set" in reply.reason
    place.stop()


def test_a_device_that_is_no_helper_sums_nothing(place: Place) -> None:
    place.start()
    _, content = request_of(place, task_of().helpers[0].key)
    ask(place, "sum-1", content)
    reply = answer(place)
    assert (reply.status, reply.reason) == ("refused", "sum: this device is no helper (helper)")


@pytest.mark.parametrize("key", ["models/f/x", "secure/other/000001/x.json"])
def test_a_helper_reads_nothing_but_requests_of_its_fleet(key: str, tmp_path: Path) -> None:
    place = helper_place(tmp_path)
    place.start()
    _, content = request_of(place, place.statuses[-1].helper_key)
    ask(place, "sum-1", content, key)
    reply = answer(place)
    assert reply.status == "refused"
    assert "expected key, under secure/f/" in reply.reason
    place.stop()


def test_a_device_whose_owner_pins_helpers_declines_what_is_not_masked_for_them(tmp_path: Path) -> None:
    pinned = [one.key for one in task_of().helpers]
    place = Place(tmp_path, secureHelpers=pinned)
    place.have_model()
    place.s3.hold(place.bundle)
    place.start()
    place.ipc.from_cloud(TOPIC, place.announcement(1).encode())
    place.until(lambda: place.notices, "told")
    assert place.notices[-1].reason == "the round has no secure aggregation, and secureHelpers asks for it"
    other = task_of(4, 1)
    place.ipc.from_cloud(TOPIC, place.announcement(2, secure=other).encode())
    place.until(lambda: len(place.notices) == 2, "told")
    assert "the round's helper 'helper-3' has a key that is not one of secureHelpers" in place.notices[-1].reason
    place.ipc.from_cloud(TOPIC, announced(place, number=3).encode())
    place.until(lambda: len(place.notices) == 3, "told")
    assert place.notices[-1].status == "uploaded"
    command(place, "one", "fit")
    assert "secureHelpers is set; fit would tell" in answer(place).reason
    place.stop()

"""A round's job with secure aggregation: real masked updates, requests, commands, and helpers that answer as they are asked."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.cloud.aggregator import helpers as module
from fedgrass.cloud.ending.announcement import task_of
from fedgrass.files import sha256_of
from fedgrass.protocol.exposure import against_round
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import command_key, sum_command, sum_request_key, update_key
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round
from fedgrass.secure.device import context_of, masked
from fedgrass.secure.helper import Helper
from fedgrass.secure.request import SumRequest
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet, header, make_record, trained
from tests.fedgrass.cloud.aggregator.test_job import published
from tests.fedgrass.secure.fleets import signer

NAMES = ("helper-a", "helper-b", "helper-c")


class HelperDevices:
    """The fleet's helpers behind its MQTT: each does its command when it hears it, unless it is off."""

    def __init__(self, fleet: Fleet, folder: Path, *, off: tuple[str, ...] = ()) -> None:
        self._fleet = fleet
        self._folder = folder
        self.helpers = {name: Helper(folder / name, FLEET) for name in NAMES}
        self.off = off
        self.spoil: Callable[[bytes], bytes] = lambda content: content
        self.spoil_check: Callable[[bytes], bytes] = lambda content: content

    def publish(self, *, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        assert (topic, retain) == (f"fedgrass/{FLEET}/round", True)
        if not payload:
            return
        announcement = Announcement.decode(payload)
        assert announcement.task == "sum"
        assert announcement.sums is not None
        bucket = self._fleet.clients.bucket.name
        for name, sha256 in announcement.sums.requests.items():
            if name in self.off:
                continue
            key = sum_request_key(FLEET, announcement.round, name)
            content = self._fleet.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            assert hashlib.sha256(content).hexdigest() == sha256
            file = self._folder / f"{name}.answer"
            request = SumRequest.decode(content)
            if request.check:
                file.write_bytes(self.helpers[name].check(request).encode())
            else:
                self.helpers[name].answer(request, file)
            key = command_key(FLEET, name, sum_command(announcement.round, announcement.sums.digest))
            spoil = self.spoil_check if request.check else self.spoil
            self._fleet.s3.put_object(Bucket=bucket, Key=key, Body=spoil(file.read_bytes()))


@pytest.fixture
def devices(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HelperDevices:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    found = HelperDevices(fleet, tmp_path)
    pinned = [{"name": name, "key": helper.public_key} for name, helper in found.helpers.items()]
    fleet.settings = FleetSettings().overridden({"secure": {"helpers": pinned, "helper_seconds": 1}})
    publisher: Any = found
    fleet.clients = replace(fleet.clients, iot_data=publisher)
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=100 * (number + 1))
    return found


def put_masked(
    fleet: Fleet,
    thing: str,
    seed: int,
    examples: int,
    clip_norm: float = 0.0,
    *,
    local: Any = None,
    max_examples: int = 0,
    **changes: Any,
) -> bytes:
    announced = task_of(make_record(FLEET, fleet.current, fleet.settings), "fedgrass-test")
    assert announced.secure is not None
    base = fleet.base.parameters()
    told = header(fleet.base, thing, num_examples=1, metrics={}, **changes)
    update = masked(
        base,
        trained(base, seed) if local is None else local,
        told,
        examples,
        announced.secure.model_copy(update={"max_examples": max_examples or announced.secure.max_examples}),
        context_of(announced),
        signer(thing),
        clip_norm=clip_norm,
    )
    content = update.to_bytes()
    fleet.put(thing, content)
    return content


def assert_is_the_mean(fleet: Fleet, report: RoundReport, folder: Path) -> None:
    assert report.outcome == "released"
    base, found = fleet.base.parameters(), published(fleet, folder).parameters()
    for name, before in base.items():
        deltas = [np.float64(trained(base, seed)[name] - before) * (seed + 1) / 6 for seed in range(3)]
        np.testing.assert_allclose(found[name], before + sum(deltas), atol=1e-6)


def test_a_round_releases_the_weighted_mean_of_updates_that_nobody_saw(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    report = fleet.run()
    assert_is_the_mean(fleet, report, tmp_path / "model")
    assert [(u.thing, u.num_examples, u.metrics) for u in report.updates] == [
        (f"press-{letter}", 1, {}) for letter in "abc"
    ]


@pytest.mark.parametrize("equal", [False, True])
def test_a_device_s_false_number_of_examples_costs_the_round_nothing_but_length(
    equal: bool, fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    fleet.settings = fleet.settings.overridden({"secure": {"equal": equal}})
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=1024)
    # Its values keep to what was announced, its number does not; with equal it should be 1.
    content = fleet.s3.get_object(Bucket=fleet.clients.bucket.name, Key=update_key(FLEET, ROUND, "press-c"))[
        "Body"
    ].read()
    lie = (int.from_bytes(content[-4:], "little") + 900_000).to_bytes(5, "little")[:4]
    fleet.put("press-c", content[:-4] + lie)
    report = fleet.run()
    assert (report.outcome, report.quarantined) == ("released", ())
    told = "all count alike, so it changes nothing" if equal else "the step is shorter than it should be"
    assert "examples, expected 3 to" in report.reason
    assert told in report.reason
    # All have as many as count at most, so that the shortest step is the right one.
    np.testing.assert_allclose(moved(fleet, tmp_path / "model"), delta_of(fleet, [0, 1, 2]), atol=1e-6)


@pytest.mark.parametrize("missing", NAMES)
def test_any_one_of_three_helpers_may_be_off(
    missing: str, fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    devices.off = (missing,)
    assert_is_the_mean(fleet, fleet.run(), tmp_path / "model")


def test_with_too_few_helpers_the_round_ends_so_and_names_the_silent(fleet: Fleet, devices: HelperDevices) -> None:
    devices.off = ("helper-a", "helper-c")
    report = fleet.run()
    assert report.outcome == "helpers_missing"
    assert "1 of 3 helpers can sum, 2 are needed" in report.reason
    assert "helper-a is silent; helper-c is silent" in report.reason
    assert report.model is None
    assert load_round(fleet.clients.rounds, FLEET, ROUND).sums is None  # and nobody is asked any more


def test_helpers_that_fall_silent_after_the_check_are_named_too(fleet: Fleet, devices: HelperDevices) -> None:
    def goes_off(content: bytes) -> bytes:
        devices.off = ("helper-b", "helper-c")
        return content

    devices.spoil = goes_off
    report = fleet.run()
    assert report.outcome == "helpers_missing"
    assert "1 of 3 helpers gave their sums, 2 are needed; helper-b is silent; helper-c is silent" in report.reason


def test_a_job_that_runs_again_asks_for_the_very_same_set(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedgrass.cloud.aggregator import masked_sum

    class KilledError(Exception):
        pass

    def dies(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(masked_sum, "unmask", dies)
        with pytest.raises(KilledError):
            fleet.run()
    put_masked(fleet, "press-d", seed=9, examples=10)  # too late: the list was pinned, and the helpers have answered
    assert_is_the_mean(fleet, fleet.run(), tmp_path / "model")


def respoilt(content: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """A masked update with other boxes."""
    header = json.loads(content[8 : 8 + (size := int.from_bytes(content[:8], "little"))])
    boxes = [base64.b64decode(one) for one in header["__metadata__"]["boxes"].split(",")]
    header["__metadata__"]["boxes"] = ",".join(base64.b64encode(one).decode() for one in change(boxes))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def test_devices_whose_seeds_do_not_open_are_left_out_and_named(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    good = put_masked(fleet, "press-d", seed=7, examples=50)
    fleet.put("press-d", respoilt(good, lambda boxes: [bytes(len(boxes[0])), *boxes[1:]]))
    good = put_masked(fleet, "press-e", seed=8, examples=50)
    fleet.put("press-e", respoilt(good, lambda boxes: [*boxes[:2], boxes[2][:9] + b"x" + boxes[2][10:]]))
    report = fleet.run()
    assert_is_the_mean(fleet, report, tmp_path / "model")
    assert {entry.thing: (entry.reason, entry.detail[:24]) for entry in report.quarantined} == {
        "press-d": ("unopened_seeds", "helper helper-a: 'press-"),
        "press-e": ("unopened_seeds", "helper helper-c: 'press-"),
    }


def test_devices_that_all_seal_rubbish_leave_too_few_updates(fleet: Fleet, devices: HelperDevices) -> None:
    for number, thing in enumerate(("press-a", "press-b")):
        good = put_masked(fleet, thing, seed=number, examples=1)
        fleet.put(thing, respoilt(good, lambda boxes: [bytes(len(one)) for one in boxes]))
    report = fleet.run()
    assert report.outcome == "helpers_missing"
    assert "0 of 3 helpers can sum" in report.reason
    assert "helper-a opens 1 of 3 boxes (press-a: 'press-a': its seeds for 'helper-a' do not open" in report.reason


def test_a_helper_whose_check_makes_no_sense_is_done_without(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    calls = itertools.count()
    devices.spoil_check = lambda content: b"{}" if next(calls) == 0 else content
    assert_is_the_mean(fleet, fleet.run(), tmp_path / "model")


def test_a_job_that_runs_again_keeps_to_what_was_left_out(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedgrass.cloud.aggregator import masked_sum

    good = put_masked(fleet, "press-d", seed=7, examples=50)
    fleet.put("press-d", respoilt(good, lambda boxes: [bytes(len(boxes[0])), *boxes[1:]]))

    class KilledError(Exception):
        pass

    def dies(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(masked_sum, "unmask", dies)
        with pytest.raises(KilledError):
            fleet.run()
    devices.off = ("helper-a",)  # the one that knew
    report = fleet.run()
    assert_is_the_mean(fleet, report, tmp_path / "model")
    assert [entry.thing for entry in report.quarantined] == ["press-d"]


@pytest.mark.parametrize("off", [(), ("helper-b",)])
def test_with_distributed_privacy_the_job_gets_a_sum_that_has_the_helpers_noise(
    off: tuple[str, ...], fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    multiplier, clip = 3.0, 0.5
    fleet.settings = fleet.settings.overridden(
        {"privacy": {"mode": "distributed", "noise_multiplier": multiplier, "clip_norm": clip}}
    )
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=100 * (number + 1), clip_norm=clip)
    devices.off = off
    assert fleet.run().outcome == "released"
    base, found = fleet.base.parameters(), published(fleet, tmp_path / "model").parameters()

    def flat(parameters: Any) -> Any:
        return np.concatenate([np.float64(parameters[name] - before).ravel() for name, before in base.items()])

    clipped = [delta * min(1, clip / np.linalg.norm(delta)) for delta in (flat(trained(base, s)) for s in range(3))]
    noise = (flat(found) - sum(clipped) / 3) * 3
    adding = 3 - len(off)  # of whom one may collude, and then has no part in it
    expected = multiplier * clip * np.sqrt(adding / (adding - 1))
    assert np.std(noise) == pytest.approx(expected, rel=4 / np.sqrt(2 * len(noise)))


def test_a_helper_that_is_lost_after_it_was_to_add_noise_ends_the_round(fleet: Fleet, devices: HelperDevices) -> None:
    fleet.settings = fleet.settings.overridden({"privacy": {"mode": "distributed"}})
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=1, clip_norm=1.0)

    def goes_off(content: bytes) -> bytes:
        devices.off = ("helper-c",)
        return content

    devices.spoil = goes_off
    report = fleet.run()
    assert report.outcome == "helpers_missing"
    assert "2 of 3 helpers gave their sums, 3 are needed; helper-c is silent" in report.reason


def test_central_privacy_adds_its_noise_to_the_sum_that_the_helpers_open(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    multiplier, clip = 3.0, 0.5
    fleet.settings = fleet.settings.overridden(
        {"privacy": {"mode": "central", "noise_multiplier": multiplier, "clip_norm": clip}}
    )
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=100 * (number + 1), clip_norm=clip)
    assert fleet.run().outcome == "released"
    base, found = fleet.base.parameters(), published(fleet, tmp_path / "model").parameters()

    def flat(parameters: Any) -> Any:
        return np.concatenate([np.float64(parameters[name] - before).ravel() for name, before in base.items()])

    clipped = [
        delta * min(1, clip / np.linalg.norm(delta)) for delta in (flat(trained(base, seed)) for seed in range(3))
    ]
    noise = (flat(found) - sum(clipped) / 3) * 3
    # 99.99 % of samples of so many values deviate by less, and without noise nothing would.
    assert np.std(noise) == pytest.approx(multiplier * clip, rel=4 / np.sqrt(2 * len(noise)))
    assert abs(np.mean(noise)) < 4 * multiplier * clip / np.sqrt(len(noise))


def test_bad_updates_are_no_part_of_the_set(fleet: Fleet, devices: HelperDevices, tmp_path: Path) -> None:
    good = put_masked(fleet, "press-d", seed=7, examples=50)
    fleet.put("press-e", good)  # another's
    fleet.put("press-f", good[:-1])
    fleet.put_update("press-g", 3)  # a plain one
    put_masked(fleet, "press-h", seed=7, examples=50, round=ROUND + 1)
    fleet.put("press-d", good[: len(good) // 2])
    report = fleet.run()
    assert_is_the_mean(fleet, report, tmp_path / "model")
    assert {entry.thing: entry.reason for entry in report.quarantined} == {
        "press-d": "truncated",
        "press-e": "foreign_thing",
        "press-f": "truncated",
        "press-g": "unknown_codec",
        "press-h": "wrong_round",
    }


def test_an_answer_of_another_size_is_none_and_is_told_once(
    fleet: Fleet, devices: HelperDevices, caplog: pytest.LogCaptureFixture
) -> None:
    devices.spoil = lambda content: content + b"x"
    with caplog.at_level("INFO"):
        assert fleet.run().outcome == "helpers_missing"
    told = [one for one in caplog.records if "helper_answer_refused" in one.getMessage()]
    assert len(told) == 3  # one of each helper, though the job looked for a second, twenty times a second


def test_the_bucket_never_holds_a_plain_update(fleet: Fleet, devices: HelperDevices) -> None:
    fleet.run()
    base = fleet.base.parameters()
    plain = [
        np.concatenate([(trained(base, seed)[name] - before).ravel() for name, before in base.items()])
        for seed in range(3)
    ]
    bucket = fleet.clients.bucket.name
    for key in fleet.keys("updates/"):
        content = fleet.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        for width in (1, 2, 4):
            values = np.frombuffer(content[len(content) % width :], f"<i{width}").astype(np.float64)[-len(plain[0]) :]
            for one in plain:
                if len(values) == len(one):
                    assert abs(np.corrcoef(values, one)[0, 1]) < 0.1


def test_a_helpers_answer_is_the_same_file_when_it_is_asked_again(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    fleet.run()
    before = {name: sha256_of(tmp_path / f"{name}.answer") for name in NAMES}
    request = fleet.s3.get_object(Bucket=fleet.clients.bucket.name, Key=f"secure/{FLEET}/{ROUND:06d}/helper-a.json")[
        "Body"
    ].read()
    assert devices.helpers["helper-a"].answer(SumRequest.decode(request), tmp_path / "again") == before["helper-a"]


def put_groups(fleet: Fleet, sizes: tuple[int, ...], **settings: Any) -> dict[int, list[tuple[str, int]]]:
    """Have so many devices of each group send an update; returns their names and seeds by group."""
    fleet.settings = fleet.settings.overridden({"secure": {"groups": len(sizes), "most": 64}, **settings})
    announced = task_of(make_record(FLEET, fleet.current, fleet.settings), "fedgrass-test")
    assert announced.secure is not None
    found: dict[int, list[tuple[str, int]]] = {group: [] for group in range(len(sizes))}
    for name in ("press-a", "press-b", "press-c"):
        fleet.s3.delete_object(Bucket=fleet.clients.bucket.name, Key=update_key(FLEET, ROUND, name))
    for number in itertools.count():
        members = found[announced.secure.group_of(announced.cohort.salt, thing := f"drill-{number}")]
        if len(members) < sizes[announced.secure.group_of(announced.cohort.salt, thing)]:
            members.append((thing, number))
            fleet.know(thing)
            put_masked(fleet, thing, seed=number, examples=100)
        if [len(one) for one in found.values()] == list(sizes):
            return found
    raise AssertionError


def delta_of(fleet: Fleet, seeds: list[int]) -> Any:
    base = fleet.base.parameters()
    return np.mean(
        [
            np.concatenate([np.float64(trained(base, s)[name] - before).ravel() for name, before in base.items()])
            for s in seeds
        ],
        axis=0,
    )


def moved(fleet: Fleet, folder: Path) -> Any:
    base, found = fleet.base.parameters(), published(fleet, folder).parameters()
    return np.concatenate([np.float64(found[name] - before).ravel() for name, before in base.items()])


def poisoned(fleet: Fleet) -> Any:
    return {name: before + np.float32(4.0) for name, before in fleet.base.parameters().items()}


def test_a_median_of_groups_withstands_a_device_that_one_sum_does_not(
    fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    groups = put_groups(fleet, (4, 3, 5), strategy={"name": "median"}, checks={"clip_norm_over_median": 0})
    put_masked(fleet, groups[1][0][0], seed=0, examples=100, local=poisoned(fleet))
    report = fleet.run()
    assert (report.outcome, len(report.updates), report.quarantined) == ("released", 12, ())
    rows = [delta_of(fleet, [seed for _, seed in groups[g]]) for g in (0, 2)]
    others = delta_of(fleet, [seed for _, seed in groups[1][1:]])
    rows.append((2 * others + 4.0) / 3)
    found = moved(fleet, tmp_path / "model")
    np.testing.assert_allclose(found, np.median(rows, axis=0), atol=1e-6)
    honest = np.mean(rows[:2], axis=0)
    # One sum would have moved every parameter by a twelfth of what the poisoned device sent.
    assert np.abs(found - honest).max() < 4.0 / 12 < np.abs(np.mean(rows, axis=0) - honest).max()
    assert sum(entry.weight for entry in report.updates) == pytest.approx(1)


@pytest.mark.parametrize("how", ["count", "norm"])
def test_a_group_whose_mean_cannot_be_right_is_quarantined_whole(
    how: str, fleet: Fleet, devices: HelperDevices, tmp_path: Path
) -> None:
    checks = {"max_norm_over_median": 3.0} if how == "norm" else {}
    groups = put_groups(fleet, (3, 4, 3), checks=checks)
    liar = groups[2][1][0]
    if how == "count":
        put_masked(fleet, liar, seed=0, examples=1_000_000, max_examples=1_000_000)
    else:
        put_masked(fleet, liar, seed=0, examples=100, local=poisoned(fleet))
    report = fleet.run()
    assert report.outcome == "released"
    assert [(entry.thing, entry.reason) for entry in report.quarantined] == sorted(
        (thing, "implausible_group") for thing, _ in groups[2]
    )
    assert ("claims 1000200 examples" if how == "count" else "3 times the cohort's median") in report.quarantined[
        0
    ].detail
    # What is left is the mean of the good groups' devices, as all have as many examples.
    expected = delta_of(fleet, [seed for g in (0, 1) for _, seed in groups[g]])
    np.testing.assert_allclose(moved(fleet, tmp_path / "model"), expected, atol=1e-6)


def test_a_group_below_the_minimum_is_never_asked_for(fleet: Fleet, devices: HelperDevices, tmp_path: Path) -> None:
    groups = put_groups(fleet, (2, 3, 4))
    # With a box that does not open the second group falls below the minimum too, once the helpers have looked.
    thing, seed = groups[1][0]
    good = put_masked(fleet, thing, seed=seed, examples=100)
    fleet.put(thing, respoilt(good, lambda boxes: [bytes(len(boxes[0])), *boxes[1:]]))
    report = fleet.run()
    assert report.outcome == "released"
    out = {entry.thing: entry.reason for entry in report.quarantined}
    # The group went as a whole, the device with the bad box as one of it.
    assert out == {name: "small_group" for g in (0, 1) for name, _ in groups[g]}
    key = sum_request_key(FLEET, ROUND, "helper-a")
    content = fleet.s3.get_object(Bucket=fleet.clients.bucket.name, Key=key)["Body"].read()
    asked = [member.thing for member in SumRequest.decode(content).accepted.members]
    assert asked == sorted(name for name, _ in groups[2])
    np.testing.assert_allclose(
        moved(fleet, tmp_path / "model"), delta_of(fleet, [seed for _, seed in groups[2]]), atol=1e-6
    )


def test_groups_with_the_helpers_noise_have_it_each(fleet: Fleet, devices: HelperDevices, tmp_path: Path) -> None:
    multiplier, clip = 3.0, 0.5
    privacy = {"mode": "distributed", "noise_multiplier": multiplier, "clip_norm": clip}
    groups = put_groups(fleet, (3, 3), privacy=privacy)
    for some in groups.values():
        for thing, seed in some:
            put_masked(fleet, thing, seed=seed, examples=100, clip_norm=clip)
    assert fleet.run().outcome == "released"
    base = fleet.base.parameters()

    def clipped(seed: int) -> Any:
        delta = delta_of(fleet, [seed])
        return delta * min(1, clip / np.linalg.norm(delta))

    exact = np.mean([clipped(seed) for some in groups.values() for _, seed in some], axis=0)
    noise = moved(fleet, tmp_path / "model") - exact
    # Three helpers add noise, of whom one may collude; both groups' sums have it: the mean of six, twice.
    expected = multiplier * clip * np.sqrt(3 / 2) * np.sqrt(2) / 6
    assert len(base) > 0
    assert np.std(noise) == pytest.approx(expected, rel=4 / np.sqrt(2 * len(noise)))


def test_an_owner_who_asks_for_noise_counts_that_of_the_helpers_that_he_named(
    fleet: Fleet, devices: HelperDevices
) -> None:
    keys = [one.public_key for one in devices.helpers.values()]
    privacy = {"noise_multiplier": 2.0, "clip_norm": 0.3}

    def asked(mode: str, **changes: Any) -> Announcement:
        settings = fleet.settings.overridden({"privacy": {"mode": mode, **privacy}, **changes})
        return task_of(make_record(FLEET, fleet.current, settings), "fedgrass-test")

    assert against_round(asked("distributed"), least=2.0, helpers=keys) == ""
    # The device clips to the least of both norms, and the noise is more in units of that.
    assert against_round(asked("distributed", update={"clip_norm": 0.1}), least=6.0, helpers=keys) == ""
    assert "noise_multiplier is 2, minNoise" in against_round(asked("distributed"), least=2.01, helpers=keys)
    # Helpers that the owner did not name could all be the cloud's, and what the aggregator adds shows no device.
    assert "noise_multiplier is 0" in against_round(asked("distributed"), least=0.5)
    assert "not one of secureHelpers" in against_round(asked("distributed"), least=2.0, helpers=keys[:2])
    assert "noise_multiplier is 0" in against_round(asked("central"), least=0.5, helpers=keys)

"""Whose updates a round's job takes, and what somebody gains who fills the bucket: nothing, at a bounded price."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.cloud.aggregator.listed import listed_updates
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.protocol.names import update_key, update_prefix
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet

PREFIX = update_prefix(FLEET, ROUND)
CLINIC = "210987654321-clinic"


class Objects:
    """S3's ListObjectVersions over keys, each with a number of versions, the newest first; counts its requests."""

    def __init__(self, versions: dict[str, int], page: int = 1000) -> None:
        self._entries: list[dict[str, Any]] = [
            {"Key": key, "Size": 1, "ETag": '"e"', "VersionId": str(number), "IsLatest": number == 0}
            for key in sorted(versions, key=str.encode)
            for number in range(versions[key])
        ]
        self._page = page
        self.requests = 0

    def list_object_versions(
        self,
        *,
        Bucket: str,  # noqa: N803 - boto3's names
        Prefix: str,  # noqa: N803
        KeyMarker: str = "",  # noqa: N803
        MaxKeys: int = 1000,  # noqa: N803
    ) -> dict[str, Any]:
        self.requests += 1
        found = [entry for entry in self._entries if entry["Key"].startswith(Prefix) and entry["Key"] > KeyMarker]
        page = found[: min(MaxKeys, self._page)]
        truncated = len(found) > len(page)
        # As its reference page has it: the first key that is not returned.
        marker = {"NextKeyMarker": found[len(page)]["Key"]} if truncated else {}
        return {"Versions": page, "IsTruncated": truncated, **marker}


def source(objects: Objects) -> RoundUpdates:
    return RoundUpdates(objects, "b", FLEET, ROUND)  # type: ignore[arg-type]


def key(thing: str, name: str = "update.safetensors") -> str:
    return f"{PREFIX}{thing}/{name}"


def test_an_update_of_an_unknown_thing_is_quarantined_with_its_reason_and_the_round_is_as_without_it(
    fleet: Fleet,
) -> None:
    fleet.settings = FleetSettings(silos=(CLINIC,))
    for seed, thing in enumerate(("press-a", "press-b", CLINIC)):
        fleet.put_update(thing, seed)
    fleet.clients.devices.delete_item(Key={"fleet": FLEET, "thing": CLINIC})  # type: ignore[union-attr]
    strangers = ("210987654321-x", "210987654321-y", "mallory")
    for seed, thing in enumerate(strangers):
        fleet.put_update(thing, 100 + seed)
        if thing.startswith("2"):
            continue  # heard of by its heartbeat, and not listed
        fleet.clients.devices.delete_item(Key={"fleet": FLEET, "thing": thing})  # type: ignore[union-attr]
    report = fleet.run()
    assert [entry.thing for entry in report.updates] == [CLINIC, "press-a", "press-b"]
    assert [(entry.thing, entry.reason) for entry in report.quarantined] == [
        (thing, "unknown_thing") for thing in strangers
    ]


def test_three_invented_names_are_no_round(fleet: Fleet) -> None:
    for seed, thing in enumerate(("210987654321-x", "210987654321-y", "210987654321-z")):
        fleet.put_update(thing, seed)
    report = fleet.run()
    assert (report.outcome, len(report.updates)) == ("insufficient_updates", 0)


def test_a_job_that_runs_again_counts_those_that_the_first_one_saw(fleet: Fleet) -> None:
    for seed, thing in enumerate(("press-a", "press-b", "press-c")):
        fleet.put_update(thing, seed)
    first = fleet.run()
    fleet.s3.delete_object(Bucket="fedgrass-test", Key=f"reports/{FLEET}/{ROUND:06d}/report.json")
    fleet.clients.devices.delete_item(Key={"fleet": FLEET, "thing": "press-c"})  # type: ignore[union-attr]
    fleet.put_update("press-d", 4)
    again = fleet.run()
    assert again.updates == first.updates
    assert (again.model, again.quarantined) == (first.model, first.quarantined)


@pytest.mark.parametrize("junk", ["a{:06d}", "update.safetensor{:06d}", "z{:06d}", "deep/er/{:06d}"])
def test_a_thing_that_fills_its_folder_costs_three_entries_and_a_request_or_two(junk: str) -> None:
    folder = {key("press-b", junk.format(number)): 1 for number in range(30_000)}
    updates = {key(thing): 1 for thing in ("press-a", "press-b", "press-c")}
    objects = Objects({**folder, **updates})
    found = listed_updates(source(objects), {"press-a", "press-b", "press-c"})
    assert [reference.thing for reference in found.updates] == ["press-a", "press-b", "press-c"]
    assert [entry.thing for entry in found.refused] == ["press-b"] * 3
    assert found.more > 0
    assert objects.requests <= 4


def test_a_thing_that_writes_its_update_over_and_over_costs_a_request() -> None:
    objects = Objects({key("press-a"): 1, key("press-b"): 30_000, key("press-c"): 1})
    found = listed_updates(source(objects), {"press-a", "press-b", "press-c"})
    assert [(reference.thing, reference.version_id) for reference in found.updates] == [
        ("press-a", "0"),
        ("press-b", "0"),
        ("press-c", "0"),
    ]
    assert objects.requests <= 3


def test_300_000_objects_under_invented_names_leave_a_small_report_in_a_few_requests() -> None:
    members = {f"press-{number:03d}" for number in range(20)}
    invented = {key(f"inv{number:06d}"): 1 for number in range(100_000)} | {
        key(f"press-{number:06d}x"): 1 for number in range(100_000)
    }
    objects = Objects({**invented, **{key(thing): 1 for thing in members}})
    found = listed_updates(source(objects), members)
    assert {reference.thing for reference in found.updates} == members
    assert len(found.refused) == 100
    assert objects.requests <= 2 * len(members) + 2
    assert sum(len(entry.model_dump_json()) for entry in found.refused) < 100_000


_NAMES = st.sampled_from(["a", "a-", "a0", "a:", "ab", "b", "B", "_", "9", "210987654321-x"])


@given(
    members=st.sets(_NAMES, min_size=1),
    keys=st.dictionaries(
        st.tuples(
            _NAMES, st.sampled_from(["update.safetensors", "a", "update.safetensor", "update.safetensorsx", "z/z", ""])
        ),
        st.integers(1, 4),
        max_size=25,
    ),
    loose=st.sets(st.sampled_from(["a", "b/", "readme", "a0"])),
    page=st.integers(1, 6),
)
def test_however_pages_fall_each_member_s_update_is_found_once_and_nothing_else(
    members: set[str], keys: dict[tuple[str, str], int], loose: set[str], page: int
) -> None:
    stored = {key(thing, name): count for (thing, name), count in keys.items()} | {PREFIX + name: 1 for name in loose}
    found = listed_updates(source(Objects(stored, page)), members)
    assert sorted(reference.key for reference in found.updates) == sorted(
        update_key(FLEET, ROUND, thing) for thing in members if key(thing) in stored
    )
    assert not {entry.key for entry in found.refused} & {reference.key for reference in found.updates}
    everything = listed_updates(source(Objects(stored, page)), None)
    assert {reference.key for reference in everything.updates} == {
        k for k in stored if k.endswith("/update.safetensors")
    }

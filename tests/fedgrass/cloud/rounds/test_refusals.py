"""What was refused of each device, counted over all rounds."""

from __future__ import annotations

from rich.console import Console

from fedgrass.cli.render import fleet_table
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.refusals import count_refusals, refusals, refusals_before
from fedgrass.protocol.report import QuarantinedEntry
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet


def refused(thing: str, reason: str, key: str = "k") -> QuarantinedEntry:
    return QuarantinedEntry(thing=thing, key=key, bytes=10, reason=reason, detail="")


def test_refusals_are_counted_over_rounds_each_report_once(fleet: Fleet) -> None:
    fleet.open(min_updates=1)
    record_update(fleet.services, fleet.update("a"))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    entries = (refused("b", "not_finite"), refused("c", "replayed", "k1"), refused("c", "truncated", "k2"))
    report = fleet.write_report(quarantined=(*entries, refused("", "unexpected_key")))
    for _ in range(2):  # the function may run twice
        record_report(fleet.services, RoundRequest(round=1))
    assert {one.thing: one.count for one in refusals(fleet.rounds, FLEET).values()} == {"b": 1, "c": 2}
    count_refusals(fleet.rounds, report.model_copy(update={"round": 7, "quarantined": (refused("b", "wrong_base"),)}))
    found = refusals(fleet.rounds, FLEET)
    assert (found["b"].count, found["b"].round, found["b"].reason) == (2, 7, "wrong_base")
    assert (found["c"].count, found["c"].round) == (2, 1)
    assert refusals_before(fleet.rounds, FLEET, 8, ["b", "c", "d"]) == {"b": 2, "c": 2}
    assert refusals_before(fleet.rounds, FLEET, 7, ["b", "c"]) == {"c": 2}, "what is counted already is not before"


def test_the_list_of_devices_shows_who_is_refused_and_why(fleet: Fleet) -> None:
    report = fleet.write_report(quarantined=(refused("b", "norm_exceeded"),), number=fleet.open().round)
    count_refusals(fleet.rounds, report)
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as shown:
        members = fleet_members(fleet.services.devices, FLEET)
        console.print(fleet_table(members, refusals(fleet.rounds, FLEET), now_ms=fleet.now_ms))
    lines = {line.split()[0]: line for line in shown.get().splitlines() if line.strip()}
    assert "1, last norm_exceeded in round 1" in lines["b"]
    assert "norm_exceeded" not in lines["a"]

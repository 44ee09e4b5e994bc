"""What must hold when everything has come to rest, whatever happened before; each under the name that it is counted by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

from fedgrass.bundle import MANIFEST, Manifest
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.names import (
    GLOBAL_MODEL,
    model_prefix,
    parse_update_key,
    report_key,
    round_topic,
    version_order,
)
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import ADOPTED, RoundReport
from tests.explorer.scenario import CANARIES_ARN, FIRST, FLEET, GROUP_ARN
from tests.explorer.world import World

_HARMLESS = {"conflict", "throttle"}
"""Disturbances that no execution may fail of."""


def violations(world: World, *, at_the_end: bool) -> Iterator[tuple[str, str]]:
    """Yield the name of each invariant that is broken, and how.

    Parameters
    ----------
    at_the_end
        After the undisturbed round that follows; before it otherwise.
    """
    records = world.records()
    yield from ((_name(said), said) for said in world.seen)
    yield from _closed(world, records)
    yield from _base(world, records)
    yield from _devices(world, records)
    yield from _reports(world, records)
    yield from _registry(world, records)
    yield from _updates(world, records)
    if at_the_end:
        yield from _stream(world, records)
    yield from _runs(world, records)
    if at_the_end and world.schedule.scenario.resumes:
        yield from _resumed(world, records)
    yield from _executions(world, at_the_end=at_the_end)


def _name(said: str) -> str:
    return said.split(":", 1)[0]


def _closed(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """No round is open, nothing holds the fleet, and nothing is announced."""
    lock = world.state().open
    if lock is not None:
        yield "round stays open", f"{lock}"
    for record in records:
        if record.phase != "closed":
            yield "round stays open", f"round {record.round}: {record.phase}"
        if record.phase == "closed" and record.outcome is None:
            yield "round without outcome", f"round {record.round}"
    if world.retained.message:
        yield "announcement stays", f"{round_topic(FLEET)}: {json.loads(world.retained.message).get('round')}"


def _base(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """The base of the next round is the newest adopted model, or what a person went back to; all of it is there."""
    base = world.state().model
    adopted = [record.version for record in records if record.adopted]
    if base.version not in {FIRST, *adopted}:
        yield "unadopted model is the base", f"{base.version}: {_told(records)}"
    newest = max([FIRST, *adopted], key=version_order)
    if not world.operated and base.version != newest:
        yield "adopted model is not the base", f"base {base.version}, adopted {newest}: {_told(records)}"
    prefix = model_prefix(FLEET, base.version)
    found = world.objects.objects.get(prefix + MANIFEST)
    if found is None:
        yield "base is not there", base.version
        return
    manifest = Manifest.model_validate_json(found[0])
    if manifest.parameters_sha256 != base.parameters_sha256:
        yield "base is another model", base.version
    for name in manifest.files:
        if prefix + name not in world.objects.objects:
            yield "base is not there", prefix + name


def _devices(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """No device ever had a model that was not released, and the fleet has the newest released one; other components stay."""
    released = {FIRST, *(record.version for record in records if record.outcome == "released")}
    refused = {record.version for record in records if record.outcome == "refused"}
    for version in world.ever_deployed() - released - refused:
        yield "unreleased model on the fleet", f"{version}: {_told(records)}"
    fleet = world.version_on(GROUP_ARN)
    if not world.operated and fleet != max(released, key=version_order):
        yield "fleet lacks the released model", f"{fleet}: {_told(records)}"
    if "deploy" not in world.operated and fleet in released and fleet != world.state().model.version:
        last = records[-1] if records else None
        if last is None or last.outcome != "advanced":
            yield "fleet and base differ", f"fleet {fleet}, base {world.state().model.version}: {_told(records)}"
    for record in records:
        enough = record.settings.rollout.refusals_to_take_back(record.alive)
        if record.outcome == "released" and enough is not None and record.refused >= enough:
            yield "refused model stands", f"{record.version}: {_told(records)}"
    canaries = world.version_on(GROUP_ARN, CANARIES_ARN)
    if canaries not in released:
        yield "canaries keep an unreleased model", f"{canaries}: {_told(records)}"
    for made in world.greengrass.deployments:
        if "com.acme.Vision" not in made["components"] or GLOBAL_MODEL not in made["components"]:
            yield "operator's component lost", made["deploymentId"]


def _reports(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """A round that its job ended has a report of that end; one that ended otherwise has none that says more."""
    for record in records:
        found = world.objects.objects.get(report_key(FLEET, record.round))
        report = RoundReport.model_validate_json(found[0]) if found else None
        if report is None:
            if record.adopted or record.outcome == "held":
                yield "round without report", f"round {record.round} is {record.outcome}"
            continue
        by_hand = record.outcome == "released" and "by hand" in record.reason
        taken_back = (report.outcome, record.outcome) == ("released", "refused")
        if report.outcome != record.outcome and not by_hand and not taken_back:
            yield "report and record differ", f"round {record.round}: {report.outcome}, {record.outcome}"
        model = world.objects.objects.get(model_prefix(FLEET, record.version) + MANIFEST)
        if record.adopted and model is not None and report.model is not None:
            made = Manifest.model_validate_json(model[0])
            if made.parameters_sha256 != report.model.parameters_sha256:
                yield "report of another model", f"round {record.round}"
        if record.adopted and record.participants != len(report.updates) and not by_hand:
            yield "record lacks the report's figures", f"round {record.round}: {record.participants}"
        if report.outcome == "released" and report.release is None:
            yield "report without deployment", f"round {record.round}"


def _registry(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """The registry has each released model once, and no other."""
    found = [str(package["CustomerMetadataProperties"]["version"]) for package in world.jobs.packages.values()]
    released = {record.version for record in records if record.outcome == "released"}
    refused = {record.version for record in records if record.outcome == "refused"}
    for version in set(found) - released - refused:
        yield "unreleased model registered", f"{version}: {_told(records)}"
    for version in released - set(found):
        yield "released model not registered", f"{version}: {_told(records)}"
    if len(found) != len(set(found)):
        yield "model registered twice", f"{found}"


def _updates(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """No update is in two models, what is recorded as late is in none of its own round, and counts are those of the parts."""
    used: list[tuple[str, str]] = []
    for record in records:
        parts = list(participations(world.rounds_table, FLEET, record.round))
        counted = (record.contributed, record.late)
        found_so = (sum(one.status == "uploaded" and not one.late for one in parts), sum(one.late for one in parts))
        if counted != found_so:
            yield "counts are not those of the parts", f"round {record.round}: {counted}, {found_so}"
        found = world.objects.objects.get(report_key(FLEET, record.round))
        if found is None:
            continue
        report = RoundReport.model_validate_json(found[0])
        if report.outcome in ADOPTED:
            used += [(entry.key, entry.etag) for entry in report.updates]
        own = {entry.thing for entry in report.updates if entry.late_for is None}
        for part in parts:
            if part.late and part.thing in own and report.outcome in ADOPTED:
                yield "used update recorded as late", f"round {record.round}: {part.thing}"
    for first, second in pairwise(sorted(used)):
        if first == second:
            yield "update in two models", f"{first}"


def _stream(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """Of rounds that never wait, each update that came before the last one's job counts, or is refused, in exactly one round."""
    last = records[-1]
    if not last.settings.is_asynchronous or not last.adopted:
        return
    disposed: list[str] = []
    for record in records:
        found = world.objects.objects.get(report_key(FLEET, record.round))
        if found is not None and record.outcome not in {"insufficient_updates", "failed", "cancelled"}:
            report = RoundReport.model_validate_json(found[0])
            disposed += [entry.key for entry in report.updates] + [entry.key for entry in report.quarantined]
    sent = [key for key in world.objects.objects if key.startswith(f"updates/{FLEET}/")]
    for key in sent:
        number = parse_update_key(key).round
        if last.round - last.settings.max_age <= number < last.round and disposed.count(key) != 1:
            yield "update of a stream is lost or counts twice", f"{key}: {disposed.count(key)}, {_told(records)}"
    if (found_at_hand := updates_at_hand(world.rounds_table, _after(last))) != 0:
        yield "updates at hand are not those that wait", f"{found_at_hand}: {_told(records)}"


def _after(record: RoundRecord) -> RoundRecord:
    """Return a round that would open now."""
    return record.model_copy(update={"round": record.round + 1, "uploaded": 0, "joined": 0})


def _executions(world: World, *, at_the_end: bool) -> Iterator[tuple[str, str]]:
    """What only met contention succeeds, and after every end a round can run."""
    harmless = set(world.did) <= _HARMLESS and set(world.schedule.events.values()) <= {1, 2}
    for one in world.run_of_main():
        if one.status == "RUNNING":
            yield "execution does not end", one.state
        if harmless and one.status == "FAILED" and "Refused" not in (one.error or ""):
            yield "execution failed of contention", f"{one.error}: {one.cause}"
    if at_the_end:
        last = world.records()[-1]
        if world.next.status != "SUCCEEDED" or last.execution != world.next.arn:
            yield "next round cannot run", f"{world.next.status} {world.next.error}: {world.next.cause}"
        elif not last.adopted and last.version != world.schedule.scenario.refused:
            yield "next round cannot run", f"{last.outcome}: {last.reason}"


def _runs(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """A run counts each whole round once, no execution runs too many, and none goes on with a run that was stopped before it."""
    limit = world.schedule.scenario.of_an_execution
    rounds: dict[str, list[RoundRecord]] = {}
    for record in records:
        rounds.setdefault(record.execution, []).append(record)
    for arn, of_it in rounds.items():
        given = world.machine.executions[arn].input.get("run", {})
        first = given.get("standing", {}).get("done", 0)
        counted = [-1 if record.run is None else record.run.standing.done for record in of_it]
        if counted != list(range(first, first + len(of_it))) or len(of_it) > limit:
            yield "run counts its rounds wrongly", f"{arn}: {counted}, {first} before it"
        previous = given.get("previous")
        if previous is not None and world.machine.executions[previous].status != "SUCCEEDED":
            yield "stopped run goes on", f"{arn} after {world.machine.executions[previous].status}"
    run = world.run_of_main()
    if world.cancelled and not any(one.status == "ABORTED" for one in run):
        yield "cancelled run was not stopped", f"{[one.status for one in run]}"
    wanted = world.schedule.scenario.input.get("rounds", 1)
    had = sum(len(rounds.get(one.arn, ())) for one in run)
    if run and {one.status for one in run} == {"SUCCEEDED"} and had != wanted:
        yield "run has another number of rounds", f"{had}, not {wanted}"


def _resumed(world: World, records: list[RoundRecord]) -> Iterator[tuple[str, str]]:
    """A run that somebody goes on with has all of its rounds in the end."""
    wanted = world.schedule.scenario.input["rounds"]
    mains = [record for record in records if world.main is not None and record.execution == world.main.arn]
    if not mains or mains[0].run is None:
        return
    of_run = [one for one in records if one.run and one.run.started_at == mains[0].run.started_at]
    last = of_run[-1].run
    if last is None or last.standing.done + 1 != wanted or of_run[-1].outcome in {"cancelled", "failed"}:
        yield "resumed run lacks rounds", f"{_told(of_run)}: {world.operator_errors}"


def _told(records: list[RoundRecord]) -> str:
    return ", ".join(f"{record.version} {record.outcome}" for record in records)

"""Late updates, over several rounds of the whole job: each counts once, by the age of its base."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import aggregate
from fedgrass.cloud.aggregator.instances import Instance
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import EarlierRound, Expected
from fedgrass.cloud.ending.outcome import Decision, decide, end
from fedgrass.cloud.ending.reports import proposal_key
from fedgrass.errors import ConfigurationError, TransferError
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import model_prefix, next_version, parameters_key, report_key, report_prefix, update_key
from fedgrass.protocol.records import RoundOutcome, RoundRecord
from fedgrass.protocol.refusals import count_refusals
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings
from fedgrass.strategies import strategy_named
from tests.fedgrass.cloud.aggregator.conftest import FLEET, NOW, Fleet, make_record
from tests.fedgrass.cloud.aggregator.updates import UNBOUNDED, Memory, flat, tiny_model, update_of

EXPONENT = 0.7
FEDBUFF = {"name": "fedbuff", "options": {"exponent": EXPONENT, "staleness": 2}}


@dataclass
class Rounds:
    """A fleet's rounds, one after the other; the base of each is the last model that was released."""

    fleet: Fleet
    bases: dict[int, Bundle] = field(default_factory=dict)
    currents: dict[int, Base] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bases[1], self.currents[1] = self.fleet.base, self.fleet.current

    def put(self, number: int, thing: str, seed: int, **changes: Any) -> NDArray[np.float64]:
        """Upload a device's update for a round, and return its difference."""
        base = self.bases[number]
        delta = np.random.default_rng(seed).normal(scale=1e-3, size=base.manifest.parameter_count).astype(np.float32)
        self.put_bytes(number, thing, update_of(base, thing, delta, **{"round": number, **changes}))
        return delta.astype(np.float64)

    def put_bytes(self, number: int, thing: str, content: bytes) -> None:
        self.fleet.know(thing)
        self.fleet.s3.put_object(Bucket="fedgrass-test", Key=update_key(FLEET, number, thing), Body=content)

    def job(self, number: int, scratch: Path, *, instance: int = 0, instances: int = 1, **settings: Any) -> RoundJob:
        changed = FleetSettings.model_validate({"strategy": FEDBUFF, **settings})
        record = make_record(FLEET, self.currents[number], changed)
        record = record.model_copy(
            update={"round": number, "version": next_version(self.currents[number].version, number)}
        )
        self.fleet.clients.rounds.put_item(Item=record.to_item())
        source = RoundUpdates(self.fleet.s3, "fedgrass-test", FLEET, number)
        return RoundJob(
            record,
            self.fleet.clients,
            source,
            scratch,
            clock=lambda: NOW,
            instance=Instance(instance, instances),
        )

    def contribute(self, number: int) -> None:
        """Do the part of the second of two instances."""
        self.job(number, Path(tempfile.mkdtemp(dir=self.fleet.folder)), instance=1, instances=2).contribute()

    def run(self, number: int, *, instances: int = 1, **settings: Any) -> RoundReport:
        scratch = Path(tempfile.mkdtemp(dir=self.fleet.folder))
        report = self.job(number, scratch, instances=instances, **settings).run()
        self.bases[number + 1], self.currents[number + 1] = self.bases[number], self.currents[number]
        if report.outcome == "released" and report.model is not None:
            folder = self.fleet.folder / f"model-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            (scratch / "new").rename(folder)
            self.bases[number + 1] = Bundle.open(folder)
            self.currents[number + 1] = Base(
                version=report.model.version,
                parameters_key=parameters_key(FLEET, report.model.version),
                parameters_sha256=report.model.parameters_sha256,
                graph_sha256=report.model.graph_sha256,
            )
        return report

    def step(self, number: int) -> NDArray[np.float64]:
        """What a round added to its base."""
        after, before = (flat(self.bases[n].parameters()).astype(np.float64) for n in (number + 1, number))
        return np.asarray(after - before)

    def forget(self, number: int) -> None:
        """As if the round's job had never run."""
        for key in self.fleet.keys(report_prefix(FLEET, number)) | self.fleet.keys(
            model_prefix(FLEET, f"1.{number}.0")
        ):
            self.fleet.s3.delete_object(Bucket="fedgrass-test", Key=key)
        for arn in [arn for arn in self.fleet.greengrass.components if arn.endswith(f":1.{number}.0")]:
            del self.fleet.greengrass.components[arn]


@pytest.fixture
def rounds(fleet: Fleet) -> Rounds:
    return Rounds(fleet)


def used(report: RoundReport) -> dict[str, tuple[int | None, int]]:
    return {f"{u.thing}": (u.late_for, u.age) for u in report.updates}


def refused(report: RoundReport) -> list[tuple[str, str, int | None]]:
    return [(q.thing, q.reason, q.late_for) for q in report.quarantined]


def weighted(deltas: Mapping[str, NDArray[np.float64]], ages: Mapping[str, int]) -> NDArray[np.float64]:
    """FedBuff in NumPy: all updates here claim 100 examples."""
    return np.asarray(sum(delta / (1 + ages.get(name, 0)) ** EXPONENT for name, delta in deltas.items()) / len(deltas))


def test_a_late_update_counts_in_the_next_round_by_its_age_and_never_again(rounds: Rounds) -> None:
    for seed, thing in enumerate("ab"):
        rounds.put(1, thing, seed)
    assert used(rounds.run(1)) == {"a": (None, 0), "b": (None, 0)}
    deltas = {"late": rounds.put(1, "c", 10)}
    deltas |= {thing: rounds.put(2, thing, 20 + seed) for seed, thing in enumerate("ab")}
    second = rounds.run(2)
    assert used(second) == {"a": (None, 0), "b": (None, 0), "c": (1, 1)}
    assert second.quarantined == ()
    np.testing.assert_allclose(rounds.step(2), weighted(deltas, {"late": 1}), atol=1e-7)
    for seed, thing in enumerate("abc"):
        rounds.put(3, thing, 30 + seed)
    assert used(rounds.run(3)) == {"a": (None, 0), "b": (None, 0), "c": (None, 0)}
    rounds.put(1, "d", 40)  # two rounds back are taken at the fourth, and this one is three back
    rounds.put(2, "d", 41)
    for seed, thing in enumerate("ab"):
        rounds.put(4, thing, 50 + seed)
    assert used(rounds.run(4)) == {"a": (None, 0), "b": (None, 0), "d": (2, 2)}


def test_a_devices_late_and_new_updates_together_weigh_no_more_than_one_fresh_update(rounds: Rounds) -> None:
    for thing in "ab":
        rounds.put(1, thing, ord(thing))
    rounds.run(1)
    deltas = {"late": rounds.put(1, "c", 1), "c": rounds.put(2, "c", 2), "a": rounds.put(2, "a", 3)}
    report = rounds.run(2)
    assert [(u.thing, u.late_for) for u in report.updates] == [("a", None), ("c", 1), ("c", None)]
    discount = 1 / 2**EXPONENT
    of_c = (deltas["c"] + discount * deltas["late"]) / (1 + discount)
    np.testing.assert_allclose(rounds.step(2), (deltas["a"] + of_c) / 2, atol=1e-7)
    weights = [u.weight for u in report.updates]
    assert weights[1] + weights[2] == pytest.approx(weights[0])


def test_what_had_its_turn_and_is_sent_again_is_refused_once_and_then_passed_over(rounds: Rounds) -> None:
    for thing in "ab":
        rounds.put(1, thing, ord(thing))
    rounds.put_bytes(1, "e", b"no update, but long enough for a header")
    assert refused(rounds.run(1)) == [("e", "corrupt_header", None)]
    for thing in "ab":
        rounds.put(2, thing, ord(thing))
    rounds.put(1, "a", 7)  # another update for the round in which it counted
    rounds.put(1, "e", 8)  # a good one after a bad one
    second = rounds.run(2)
    assert refused(second) == [("a", "replayed", 1), ("e", "replayed", 1)]
    assert used(second) == {"a": (None, 0), "b": (None, 0)}
    for thing in "ab":
        rounds.put(3, thing, ord(thing))
    assert rounds.run(3).quarantined == ()


def test_a_report_says_how_often_a_device_was_refused_by_then(rounds: Rounds) -> None:
    for number in (1, 2, 3):
        for thing in "ab":
            rounds.put(number, thing, ord(thing))
        rounds.put_bytes(number, "e", b"no update, but long enough for a header")
        report = rounds.run(number)
        assert [(q.thing, q.times) for q in report.quarantined] == [("e", number)]
        count_refusals(rounds.fleet.clients.rounds, report)  # as the state machine does with each report


def test_an_old_file_under_a_new_key_and_a_late_one_in_anothers_name_are_refused(rounds: Rounds) -> None:
    for thing in "ab":
        rounds.put(1, thing, ord(thing))
    rounds.run(1)
    for thing in "ab":
        rounds.put(2, thing, ord(thing))
    old = rounds.fleet.object(update_key(FLEET, 1, "a")) or b""
    rounds.put_bytes(2, "a", old)
    rounds.put_bytes(2, "x", old)
    rounds.put_bytes(1, "y", old)
    rounds.put(2, "c", 3)
    assert refused(rounds.run(2)) == [
        ("a", "wrong_round", None),
        ("x", "foreign_thing", None),
        ("y", "foreign_thing", 1),
    ]


def test_updates_of_a_round_that_made_nothing_count_in_the_next_at_full_weight(rounds: Rounds) -> None:
    deltas = {"a": rounds.put(1, "a", 1)}
    assert rounds.run(1).outcome == "insufficient_updates"
    deltas["b"] = rounds.put(2, "b", 2)
    report = rounds.run(2)
    assert used(report) == {"a": (1, 0), "b": (None, 0)}
    np.testing.assert_allclose(rounds.step(2), weighted(deltas, {}), atol=1e-7)
    rounds.put(3, "b", 3)
    rounds.put(3, "c", 4)
    assert used(rounds.run(3)) == {"b": (None, 0), "c": (None, 0)}


def test_updates_of_a_model_that_was_held_had_their_turn(rounds: Rounds) -> None:
    for number in (1, 2):
        for thing in "ab":
            rounds.put(number, thing, ord(thing), base_sha256=rounds.bases[1].manifest.parameters_sha256)
        if number == 1:
            assert rounds.run(1, release="never").outcome == "held"
    assert used(rounds.run(2)) == {"a": (None, 0), "b": (None, 0)}


def test_a_job_that_is_run_again_counts_the_same_late_updates_on_any_number_of_instances(rounds: Rounds) -> None:
    for thing in "ab":
        rounds.put(1, thing, ord(thing))
    rounds.run(1)
    for thing in "cdef":
        rounds.put(1, thing, ord(thing))
    for thing in "ab":
        rounds.put(2, thing, ord(thing))
    first = rounds.run(2)
    assert len(first.updates) == 6
    for key in (report_key(FLEET, 2), proposal_key(FLEET, 2)):
        rounds.fleet.s3.delete_object(Bucket="fedgrass-test", Key=key)
    rounds.put(1, "g", 9)  # came after the list was pinned
    again = rounds.run(2)
    assert (again.updates, again.model) == (first.updates, first.model)
    rounds.forget(2)
    rounds.fleet.s3.delete_object(Bucket="fedgrass-test", Key=update_key(FLEET, 1, "g"))
    with ThreadPoolExecutor() as pool:  # the two wait for each other's word
        other = pool.submit(rounds.contribute, 2)
        again = rounds.run(2, instances=2)
        other.result()
    assert (again.updates, again.model) == (first.updates, first.model)


def test_other_strategies_leave_late_updates_where_they_are(rounds: Rounds) -> None:
    for thing in "ab":
        rounds.put(1, thing, ord(thing))
    rounds.run(1)
    rounds.put(1, "c", 1)
    for thing in "ab":
        rounds.put(2, thing, ord(thing))
    assert used(rounds.run(2, strategy={"name": "fedavg"})) == {"a": (None, 0), "b": (None, 0)}


def test_without_a_readable_account_nothing_is_counted(rounds: Rounds) -> None:
    for thing in "ab":
        rounds.put(1, thing, ord(thing))
    rounds.run(1)
    rounds.fleet.s3.put_object(Bucket="fedgrass-test", Key=report_key(FLEET, 1), Body=b"{}")
    for thing in "ab":
        rounds.put(2, thing, ord(thing))
    with pytest.raises(TransferError, match="which updates were counted"):
        rounds.run(2)


def test_the_strategy_with_ages_equals_its_plain_numpy_reference(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 30, 10)
    generator = np.random.default_rng(3)
    examples, ages = generator.integers(1, 50, 12), [0, 0, 1, 2, 5, 0, 1, 1, 3, 0, 0, 4]
    deltas = generator.normal(size=(12, 40)).astype(np.float32)
    earlier = {90 - age: EarlierRound(f"{age:064x}", age) for age in set(ages) - {0}}
    contents: dict[str, bytes] = {}
    references = []
    for i, (age, delta) in enumerate(zip(ages, deltas, strict=True)):
        number, thing = 90 - age, f"t{i:02d}"
        own = base.manifest.parameters_sha256
        sha256 = earlier[number].base_sha256 if age else own
        contents[thing] = update_of(base, thing, delta, num_examples=int(examples[i]), round=number, base_sha256=sha256)
        references.append(
            UpdateReference(thing=thing, key=thing, bytes=len(contents[thing]), round=number if age else None)
        )
    expected = Expected(
        base.manifest.parameters_sha256, base.manifest.graph_sha256, FLEET, 90, checks=UNBOUNDED, earlier=earlier
    )
    strategy = strategy_named("fedbuff", exponent=EXPONENT)
    found = aggregate(base, Memory(contents), references, strategy, expected)
    assert found.parameters is not None
    assert [u.age for u in found.updates] == ages
    discounted = examples / (1 + np.array(ages)) ** EXPONENT
    wanted = (discounted[:, None] * deltas.astype(np.float64)).sum(axis=0) / examples.sum()
    np.testing.assert_allclose(flat(found.parameters), wanted, rtol=2e-5, atol=2e-6)


def test_settings_do_not_take_late_updates_where_a_device_may_count_but_once() -> None:
    central = {"privacy": {"mode": "central"}}
    with pytest.raises(ConfigurationError, match="staleness"):
        FleetSettings().overridden({**central, "strategy": {"name": "fedbuff"}})
    FleetSettings().overridden({**central, "strategy": {"name": "fedbuff", "options": {"staleness": 0}}})
    with pytest.raises(ConfigurationError, match="metric"):
        FleetSettings().overridden({"privacy": {"mode": "local"}, "strategy": {"name": "fednova"}})


@pytest.mark.parametrize("ended", ["cancelled", "failed"])
def test_a_round_that_was_stopped_spends_nothing_whatever_its_job_had_done_by_then(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, ended: RoundOutcome
) -> None:
    deltas = {thing: rounds.put(1, thing, seed) for seed, thing in enumerate("ab")}
    rounds.put_bytes(1, "e", b"no update, but long enough for a header")

    def too_late(table: Any, record: RoundRecord, report: RoundReport) -> Decision:
        end(table, record, ended, "stopped when all was proposed")
        return decide(table, record, report)

    with monkeypatch.context() as patch:
        patch.setattr("fedgrass.cloud.aggregator.conclusion.decide", too_late)
        assert rounds.run(1).outcome == "held"
    assert rounds.fleet.object(proposal_key(FLEET, 1)) is not None
    assert rounds.fleet.object(report_key(FLEET, 1)) is None
    deltas |= {thing: rounds.put(2, thing, 20 + seed) for seed, thing in enumerate("cd")}
    second = rounds.run(2)
    assert used(second) == {"a": (1, 0), "b": (1, 0), "c": (None, 0), "d": (None, 0)}
    assert refused(second) == [("e", "corrupt_header", 1)]
    np.testing.assert_allclose(rounds.step(2), weighted(deltas, {}), atol=1e-7)
    for seed, thing in enumerate("cd"):
        rounds.put(3, thing, 30 + seed)
    third = rounds.run(3)
    assert used(third) == {"c": (None, 0), "d": (None, 0)}
    assert refused(third) == []

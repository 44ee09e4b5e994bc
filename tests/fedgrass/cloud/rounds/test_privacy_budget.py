"""The privacy budget: counted when a round opens, judged by the aggregator, and never passed."""

from __future__ import annotations

import math
import random
from datetime import datetime, timezone
from statistics import NormalDist
from typing import Any

import pytest

from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import ConfigurationError, RoundRefusedError
from fedgrass.protocol.budget import beyond_budget, beyond_budget_next, tree_of_next
from fedgrass.protocol.fleet_state import STATE_KEY, FleetState
from fedgrass.protocol.messages import Announcement, Cohort
from fedgrass.protocol.privacy import MOST_SPENDS, PrivacyLedger, Spend, Tree, _at_most, gaussian_epsilon
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.settings import FleetSettings, Privacy
from fedgrass.protocol.tables import load_state
from tests.fedgrass.cloud.rounds.harness import BASE, EXECUTION, FLEET, Fleet, FleetFactory
from tests.fedgrass.cloud.rounds.test_open_round import asked_of

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
CENTRAL = {"mode": "central", "clip_norm": 0.5, "noise_multiplier": 2.0}


def spent(fleet: Fleet) -> PrivacyLedger:
    return load_state(fleet.rounds, FLEET).privacy


def ended(fleet: Fleet, number: int) -> None:
    close(fleet.services, number, "failed", "for this test")


def test_a_round_with_noise_counts_when_it_opens_whatever_becomes_of_it(fleet: Fleet) -> None:
    assert fleet.open().privacy is None
    ended(fleet, 1)
    record = fleet.open(EXECUTION + "2", privacy=CENTRAL)
    expected = PrivacyLedger(spends=(Spend(noise_multiplier=2.0),), bare=1, last_bare=1)
    assert record.privacy == expected == spent(fleet)
    assert fleet.open(EXECUTION + "2", privacy=CENTRAL).round == 2  # the function runs again: nothing is spent twice
    ended(fleet, 2)
    fleet.open(EXECUTION + "3", privacy=CENTRAL)
    ended(fleet, 3)
    fleet.open(EXECUTION + "4", privacy={**CENTRAL, "noise_multiplier": 4.0})
    assert spent(fleet).spends == (Spend(noise_multiplier=2.0, rounds=2), Spend(noise_multiplier=4.0))


def test_the_accountant_s_word_is_kept_and_the_next_round_is_held_against_it(fleet: Fleet) -> None:
    privacy = {**CENTRAL, "epsilon_budget": 10.0}
    record = fleet.open(privacy=privacy)
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    assert record.privacy is not None
    judged = record.privacy.model_copy(update={"judged": 1, "epsilon": 2.0, "next_epsilon": 10.1})
    fleet.write_report(privacy=judged)
    record_report(fleet.services, RoundRequest(round=1))
    assert spent(fleet) == fleet.round().privacy == judged
    close(fleet.services, 1)
    with pytest.raises(RoundRefusedError, match=r"ε would be 10\.1 at δ = 1e-05, of 10 "):
        fleet.open(EXECUTION + "2", privacy=privacy)
    assert spent(fleet) == judged
    assert fleet.open(EXECUTION + "2", privacy={**privacy, "epsilon_budget": 11}).round == 2


def test_local_noise_is_refused_before_a_device_is_asked(fleet: Fleet) -> None:
    with pytest.raises(RoundRefusedError, match="budget"):
        fleet.open(privacy={"mode": "local", "noise_multiplier": 1.0, "epsilon_budget": 3.0})
    assert fleet.announcement is None
    assert spent(fleet).rounds == 0


def test_devices_are_told_to_clip_and_to_add_noise_only_where_it_is_theirs_to_add(fleet: Fleet) -> None:
    fleet.open(privacy=CENTRAL, update={"clip_norm": 3.0})
    update = Announcement.decode(fleet.announcement or b"").update
    assert (update.clip_norm, update.noise_multiplier) == (0.5, 0.0)
    ended(fleet, 1)
    fleet.open(EXECUTION + "2", privacy={**CENTRAL, "mode": "local"})
    update = Announcement.decode(fleet.announcement or b"").update
    assert (update.clip_norm, update.noise_multiplier) == (0.5, 2.0)


def test_noise_that_nobody_counts_cannot_be_set() -> None:
    with pytest.raises(ConfigurationError, match=r"privacy\.mode"):
        FleetSettings().overridden({"update": {"clip_norm": 1.0, "noise_multiplier": 1.0}})


def test_without_the_accountant_s_word_a_bound_is_used_that_is_never_too_low() -> None:
    accountant = pytest.importorskip("fedgrass.cloud.aggregator.privacy")
    pytest.importorskip("dp_accounting")
    for multiplier in (0.5, 1.0, 4.0, 30.0):
        privacy = Privacy(mode="central", noise_multiplier=multiplier)
        ledger = PrivacyLedger()
        for rounds in (1, 10, 100):
            while ledger.rounds < rounds - 1:
                ledger = ledger.charged(privacy, 1.0)
            bound = ledger.projected(privacy, 1.0)
            exact = accountant.epsilon(ledger.charged(privacy, 1.0).spends, privacy.delta)
            assert bound is not None
            assert exact <= bound <= 1.5 * exact


def test_a_changed_setting_is_not_judged_by_the_last_one_s_projection() -> None:
    quiet = Privacy(mode="central", noise_multiplier=10.0)
    ledger = PrivacyLedger().charged(quiet, 1.0).model_copy(update={"judged": 1, "epsilon": 0.4, "next_epsilon": 0.6})
    assert ledger.projected(quiet, 1.0) == 0.6
    loud = ledger.projected(quiet.model_copy(update={"noise_multiplier": 0.5}), 1.0)
    assert loud is not None
    assert loud > 10
    assert ledger.projected(quiet.model_copy(update={"delta": 1e-9}), 1.0) != 0.6
    unjudged = ledger.charged(quiet, 1.0)  # a round that failed before the accountant saw it
    assert unjudged.projected(quiet, 1.0) not in (0.6, None)


def test_sampling_counts_only_where_the_operator_says_that_the_cohort_is_secret() -> None:
    ledger = PrivacyLedger()
    open_cohort = Privacy(mode="central")
    assert ledger.charged(open_cohort, 0.1).spends == (Spend(noise_multiplier=1.0),)
    secret = Privacy(mode="central", secret_cohort=True)
    assert ledger.charged(secret, 0.1).spends == (Spend(noise_multiplier=1.0, fraction=0.1),)
    assert ledger.projected(secret, 0.1) is None  # the aggregator judges before anything is published
    local = Privacy(mode="local", secret_cohort=True)
    assert ledger.charged(local, 0.1).spends == (Spend(noise_multiplier=1.0, sensitivity=2.0),)
    rho = 2.0
    assert ledger.projected(local, 0.1) == pytest.approx(gaussian_epsilon(rho, 1e-5)) == pytest.approx(9.997, abs=1e-3)


def test_a_model_that_learnt_without_noise_between_rounds_with_it_has_no_finite_epsilon(fleet: Fleet) -> None:
    """Central, none, none, central: Rényi accounting of the two with noise alone gives 7.08, which the model does not have."""
    accountant = pytest.importorskip("fedgrass.cloud.aggregator.privacy")
    pytest.importorskip("dp_accounting")
    for number, mode in enumerate(("central", "none", "none", "central"), start=1):
        fleet.open(f"{EXECUTION}{number}", privacy={"mode": mode, "noise_multiplier": 1.0})
        ended(fleet, number)
    ledger = accountant.judged(spent(fleet))
    assert accountant.accounted(ledger.spends, 1e-5).renyi == pytest.approx(7.08, abs=0.005)
    assert (ledger.unbounded, ledger.epsilon, ledger.next_epsilon) == (True, None, None)
    assert ledger.said == (
        "no finite ε: 2 rounds were without noise, the last of them round 3; noise in 2 others does not undo them"
    )
    assert accountant.beyond_budget(ledger, Privacy(mode="central", epsilon_budget=1e6)).startswith("no finite ε")
    with pytest.raises(RoundRefusedError, match=r"2 of its rounds were without noise, .*round 3; .*account_from to 5"):
        fleet.open(EXECUTION + "5", privacy={"mode": "central", "epsilon_budget": 1e6})
    again = {"mode": "central", "noise_multiplier": 1.0, "epsilon_budget": 50.0, "account_from": 5}
    record = fleet.open(EXECUTION + "5", privacy=again)
    assert record.privacy is not None
    said = accountant.judged(record.privacy).said
    assert said.startswith("ε ")
    assert "from round 5 on: what came before is in no account" in said


def test_a_round_without_noise_is_refused_under_a_budget(fleet: Fleet) -> None:
    with pytest.raises(RoundRefusedError, match="a round without noise has no finite ε"):
        fleet.open(privacy={"epsilon_budget": 8.0})
    assert fleet.announcement is None
    fleet.open(task="evaluate", privacy={"mode": "central", "epsilon_budget": 8.0})
    assert spent(fleet) == PrivacyLedger()  # nothing was learnt


def test_an_update_that_is_seen_by_itself_is_accounted_for_as_any_of_two() -> None:
    """One round with local noise of 1 on updates of norm 1: two of them may lie 2 apart, so 10.7 and not 4.7."""
    accountant = pytest.importorskip("fedgrass.cloud.aggregator.privacy")
    pytest.importorskip("dp_accounting")
    local = PrivacyLedger().charged(Privacy(mode="local"), 1.0)
    central = PrivacyLedger().charged(Privacy(mode="central"), 1.0)
    assert accountant.accounted(local.spends, 1e-5).renyi == pytest.approx(10.73, abs=0.005)
    assert accountant.accounted(central.spends, 1e-5).renyi == pytest.approx(4.73, abs=0.005)
    assert accountant.judged(local).said == "ε 9.997 at δ 1e-05, whatever one device's updates are"
    assert accountant.judged(central).said == "ε 4.377 at δ 1e-05, with or without one device's updates"
    # The curve of two normal distributions that lie 2 apart (Balle and Wang, ICML 2018, theorem 8), by the standard library.
    normal, epsilon = NormalDist().cdf, accountant.epsilon(local.spends, 1e-5)
    delta = normal(1 - epsilon / 2) - math.exp(epsilon) * normal(-1 - epsilon / 2)
    assert delta == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("privacy", "figures"),
    [
        ({}, "exact"),
        ({"mode": "central"}, "left_out"),
        ({"mode": "central", "figures": "exact"}, "exact"),
        ({"mode": "local"}, "left_out"),
    ],
)
def test_devices_are_told_what_becomes_of_their_figures(fleet: Fleet, privacy: dict[str, str], figures: str) -> None:
    fleet.open(privacy=privacy)
    update = Announcement.decode(fleet.announcement or b"").update
    assert (update.figures, update.hides_figures) == (figures, figures == "left_out")


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("local", {"task": "evaluate"}),
        ("local", {"gate": {"devices_seconds": 60}}),
        ("local", {"privacy": {"figures": "exact"}}),
        ("local", {"strategy": {"name": "fednova"}}),
        ("central", {"strategy": {"name": "fednova"}}),
        ("central", {"strategy": {"name": "qfedavg"}}),
    ],
)
def test_what_needs_exact_figures_is_refused_with_noise(mode: str, changes: dict[str, Any]) -> None:
    privacy = {"mode": mode, **changes.get("privacy", {})}
    with pytest.raises(ConfigurationError, match=f"privacy.mode {mode}"):
        FleetSettings().overridden({**changes, "privacy": privacy})


def test_adaptive_clipping_goes_on_from_the_norm_that_the_last_report_came_to(fleet: Fleet) -> None:
    privacy = {**CENTRAL, "adaptive_clip": {"count_noise": 10}}
    record = fleet.open(privacy=privacy)
    assert record.settings.privacy.clip_norm == 0.5
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    assert record.privacy is not None
    judged = record.privacy.model_copy(update={"judged": 1, "epsilon": 2.0, "next_epsilon": 3.0, "clip_norm": 0.7})
    fleet.write_report(privacy=judged)
    record_report(fleet.services, RoundRequest(round=1))
    close(fleet.services, 1)
    assert fleet.open(EXECUTION + "2", privacy=privacy).settings.privacy.clip_norm == 0.7
    ended(fleet, 2)
    assert (
        fleet.open(EXECUTION + "3", privacy=privacy).settings.privacy.clip_norm == 0.7
    )  # a round that failed moves nothing
    ended(fleet, 3)
    assert fleet.open(EXECUTION + "4", privacy=CENTRAL).settings.privacy.clip_norm == 0.5


def test_rounds_alike_are_one_entry_whatever_came_between() -> None:
    loud, quiet = Privacy(mode="central", noise_multiplier=1.0), Privacy(mode="central", noise_multiplier=2.0)
    ledger = PrivacyLedger()
    for privacy in (loud, quiet, loud, quiet, loud):
        ledger = ledger.charged(privacy, 1.0)
    assert ledger.spends == (Spend(noise_multiplier=2.0, rounds=2), Spend(noise_multiplier=1.0, rounds=3))
    judged = ledger.model_copy(update={"judged": 5, "epsilon": 5.0, "next_epsilon": 5.5})
    assert judged.projected(loud, 1.0) == 5.5
    # What the accountant said of one more like the last says nothing of one more like another.
    assert judged.projected(quiet, 1.0) != 5.5


def test_a_ledger_of_any_number_of_kinds_is_read_again_and_promises_no_more_than_the_exact_one() -> None:
    generator = random.Random(3)
    ledger, every = PrivacyLedger(), []
    for _ in range(MOST_SPENDS + 20):
        privacy = Privacy(mode="central", noise_multiplier=generator.uniform(0.5, 4.0))
        ledger = ledger.charged(privacy, 1.0)
        every.append(Spend(noise_multiplier=privacy.noise_multiplier))
    read = PrivacyLedger.model_validate_json(ledger.model_dump_json())
    assert (read.rounds, len(read.spends)) == (MOST_SPENDS + 20, MOST_SPENDS)
    assert read.spends[-1] == every[-1]
    exact, kept = (sum(spend.rounds / spend.relative_noise**2 for spend in spends) for spends in (every, read.spends))
    assert exact <= kept <= exact * 1.01
    # A growing fleet: another share of it each time. Nobody's round counts for less than it was.
    secret = Privacy(mode="central", secret_cohort=True)
    ledger = PrivacyLedger()
    for number in range(MOST_SPENDS + 20):
        ledger = ledger.charged(secret, 100 / (1000 + number))
    assert len(ledger.spends) == MOST_SPENDS
    assert sum(spend.rounds for spend in ledger.spends if spend.fraction >= 100 / 1000) == 1
    shares = sorted((spend.fraction for spend in ledger.spends for _ in range(spend.rounds)), reverse=True)
    assert all(kept >= 100 / (1000 + number) for number, kept in enumerate(shares))
    # What differs in kind is merged to the weaker of both statements.
    mixed = _at_most([Spend(noise_multiplier=1.0), Spend(noise_multiplier=2.0, sensitivity=2.0)], 1)
    assert mixed == [Spend(noise_multiplier=1.0, rounds=2)]


TREE: dict[str, Any] = {
    "strategy": {"name": "dp_ftrl", "options": {"rounds": 4}},
    "privacy": CENTRAL,
    "min_updates": 2,
}


class OnATree:
    """A fleet whose rounds share trees of noise."""

    def __init__(self, fleet: Fleet, devices: int = 60) -> None:
        self.fleet = fleet
        self.things = [f"press-{number}" for number in range(devices)]
        fleet.heartbeats(*self.things)
        self._opened = 0

    def open(self, *, adopted: bool = True, **changes: Any) -> tuple[RoundRecord, set[str]]:
        """Open a round, end it, and have its model be the next one's base, or not."""
        fleet, self._opened = self.fleet, self._opened + 1
        execution = f"{EXECUTION}-{self._opened}"
        fleet.step_functions.statuses[execution] = "RUNNING"
        try:
            record = fleet.open(execution, **{**TREE, **changes})
        finally:
            fleet.step_functions.statuses[execution] = "ABORTED"
        asked = set(asked_of(fleet, Announcement.decode(fleet.announcement or b""), self.things))
        assert len(asked) == record.asked
        if adopted:
            fleet.rounds.update_item(
                Key={"fleet": FLEET, "key": STATE_KEY},
                UpdateExpression="SET #model.#version = :version",
                ExpressionAttributeNames={"#model": "model", "#version": "version"},
                ExpressionAttributeValues={":version": record.version},
            )
        return record, asked

    @property
    def spends(self) -> list[tuple[int, int]]:
        """Depth and number of each kind of tree."""
        return [(spend.depth, spend.rounds) for spend in spent(self.fleet).spends]


def test_in_the_rounds_of_a_tree_each_device_is_asked_once_and_the_cost_grows_with_the_depth(
    make_fleet: FleetFactory,
) -> None:
    trees = OnATree(make_fleet())
    steps, asked, spends = [], [], []
    for _ in range(6):
        record, who = trees.open()
        steps.append(record.tree_step)
        asked.append(who)
        spends.append(trees.spends)
    assert steps == [1, 2, 3, 4, 1, 2]
    assert sorted(thing for who in asked[:4] for thing in who) == sorted(trees.things)  # everybody, and nobody twice
    assert spends == [[(1, 1)], [(2, 1)], [(2, 1)], [(3, 1)], [(3, 1), (1, 1)], [(3, 1), (2, 1)]]


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("held", {}),
        ("noise", {"privacy": {**CENTRAL, "noise_multiplier": 3.0}}),
        ("clip", {"privacy": {**CENTRAL, "clip_norm": 0.4}}),
        ("rounds", {"strategy": {"name": "dp_ftrl", "options": {"rounds": 2}}}),
        ("evaluation", {}),
    ],
)
def test_a_tree_goes_on_from_its_own_last_model_with_its_own_noise_only(
    what: str, changes: dict[str, Any], make_fleet: FleetFactory
) -> None:
    trees = OnATree(make_fleet())
    trees.open()
    trees.open(adopted=what != "held")
    if what == "evaluation":
        trees.open(task="evaluate")
    record, _ = trees.open(**changes)
    assert record.tree_step == 1
    assert sorted(trees.spends) == [(1, 1), (2, 1)]  # both trees count, as deep as each has come
    if what == "held":
        # The circle goes on all the same: whoever was asked before is not asked again in it.
        assert record.cohort.begin == 0.5


def test_a_step_that_would_make_the_tree_too_dear_is_refused(make_fleet: FleetFactory) -> None:
    trees = OnATree(make_fleet())
    costs = {depth: gaussian_epsilon(depth / (2 * 2.0**2), 1e-5) for depth in (1, 2, 3)}
    privacy = {**CENTRAL, "epsilon_budget": (costs[2] + costs[3]) / 2}
    for _ in range(3):
        trees.open(privacy=privacy)
    with pytest.raises(RoundRefusedError, match=f"would be {costs[3]:.4g}".replace(".", r"\.")):
        trees.open(privacy=privacy)


def test_a_piece_with_too_few_devices_is_passed_over(make_fleet: FleetFactory) -> None:
    trees = OnATree(make_fleet(), devices=12)
    seen: list[str] = []
    begins = []
    for _ in range(8):
        record, who = trees.open()
        assert len(who) >= 2
        if record.cohort.begin == 0:
            seen = []
        assert not set(seen) & who
        seen += who
        begins.append(record.cohort.begin)
    assert begins[0] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"mode": "none"}}, "privacy.mode none: strategy dp_ftrl"),
        ({"privacy": {"mode": "local"}}, "privacy.mode local: strategy dp_ftrl"),
        ({"privacy": {**CENTRAL, "adaptive_clip": {}}}, "privacy.adaptive_clip"),
        ({"privacy": {**CENTRAL, "secret_cohort": True}}, "privacy.secret_cohort"),
        ({"fraction": 0.5}, "fraction 0.5"),
        ({"cohort": {"size": 5}}, "cohort: strategy dp_ftrl"),
        ({"cohort": {"fair": True}}, "cohort: strategy dp_ftrl"),
        ({"strategy": {"name": "dp_ftrl", "options": {"rounds": 6}}}, "rounds"),
        ({"strategy": {"name": "dp_ftrl", "options": {"staleness": 1}}}, "staleness"),
        ({"strategy": {"name": "dp_ftrl", "options": {"clip": {"norm": 1}}}}, "clip"),
    ],
)
def test_what_would_break_a_tree_s_account_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        FleetSettings().overridden({**TREE, **changes})


def test_what_one_more_round_of_a_tree_costs_is_foretold() -> None:
    privacy = Privacy(mode="central", noise_multiplier=2.0)
    ledger = PrivacyLedger()
    for number in range(1, 13):
        step = (number - 1) % 4 + 1
        tree = Tree(rounds=4, steps=step, last=number, noise_multiplier=2.0, clip_norm=1.0)
        after = ledger.charged(privacy, 1.0, tree)
        if ledger.spends:
            told = sum(one.rounds * one.depth for one in ledger.following)
            assert told == sum(one.rounds * one.depth for one in after.spends)
        ledger = after
    assert sum(one.rounds * one.depth for one in ledger.spends) == 9  # three whole trees of depth 3


@pytest.mark.parametrize("tree", [0, 2, 4])
def test_a_budget_holds_exactly_the_rounds_that_a_plain_sum_says(tree: int) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    z, rounds = 3.0, range(1, 12)
    # Sums with noise that a device's update is in: one a round; of a tree one for each level that has a whole node so far.
    sums = [n if not tree else n // tree * tree.bit_length() + (n % tree).bit_length() for n in rounds]
    costs = [float(dp_accounting.get_epsilon_gaussian(z / math.sqrt(count), 1e-5)) for count in sums]
    for budget in [0.9 * costs[0], *((one + 1e-6) for one in costs[:-1])]:
        strategy = {"name": "dp_ftrl", "options": {"rounds": tree}} if tree else {"name": "fedavg"}
        privacy = {"mode": "central", "noise_multiplier": z, "epsilon_budget": budget}
        settings = FleetSettings().overridden({"privacy": privacy, "strategy": strategy})
        state, before = FleetState(model=BASE), None
        while not beyond_budget_next(settings, state, before):
            next_tree = tree_of_next(settings, state, before)
            number = state.last + 1
            ledger = state.privacy.charged(settings.privacy, settings.sampled_fraction, next_tree)
            model = BASE.model_copy(update={"version": f"1.{number}.0"})
            share = 1 / (tree or 1)
            cohort = Cohort(salt="0" * 32, fraction=share, begin=state.last % (tree or 1) * share)
            before = RoundRecord(
                fleet=FLEET, round=number, execution=EXECUTION, settings=settings, base=BASE, version=model.version,
                cohort=cohort, alive=9, asked=9, quorum=9, opened_at=NOW, deadline=NOW, privacy=ledger,
            )  # fmt: skip
            state = FleetState(model=model, last=number, privacy=ledger)
        assert state.last == sum(cost <= budget for cost in costs)


def test_rounds_that_only_the_accountant_can_judge_end_when_what_it_judged_is_too_much() -> None:
    privacy = Privacy(mode="central", noise_multiplier=1.0, secret_cohort=True, epsilon_budget=2.0)
    settings = FleetSettings(privacy=privacy, fraction=0.1)
    ledger = PrivacyLedger().charged(privacy, 0.1)
    assert beyond_budget(ledger, settings, None) == ""
    judged = ledger.model_copy(update={"judged": 1, "epsilon": 2.1, "next_epsilon": 2.4})
    assert "ε would be 2.4 " in beyond_budget(judged, settings, None)
    other = settings.overridden({"fraction": 0.2})
    assert "ε is 2.1 at δ = 1e-05 already, of 2 " in beyond_budget(judged, other, None)
    assert beyond_budget(judged.model_copy(update={"epsilon": 1.9}), other, None) == ""
    # Of another δ, nothing is known.
    assert beyond_budget(judged, other.overridden({"privacy": {"delta": 1e-6}}), None) == ""
    assert beyond_budget(judged, settings.overridden({"task": "evaluate"}), None) == ""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.cloud.aggregator import combination
from fedgrass.cloud.aggregator.arithmetic import UNIT, Rounded, WholeSteps
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.privacy import Gaussian, accounted, epsilon, judged, next_clip_norm, noise_of
from fedgrass.cloud.aggregator.rows import Accumulator
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.tree_noise import changes, node_seed, nodes_of
from fedgrass.cloud.aggregator.update_list import pin_update_list
from fedgrass.errors import ConfigurationError, TransferError
from fedgrass.noise import Grid, discrete_gaussian
from fedgrass.protocol.names import parameters_key, report_key
from fedgrass.protocol.privacy import PrivacyLedger, Spend, Tree
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings, Privacy
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet, make_record
from tests.fedgrass.cloud.aggregator.updates import Memory, combine, flat, tiny_model, update_of

SEED = "5a" * 32


def test_noise_on_the_mean_has_the_deviation_of_clip_norm_over_the_count() -> None:
    noise = noise_of(Privacy(mode="central", clip_norm=0.5, noise_multiplier=3.0), SEED)
    assert noise is not None
    total = np.full(200_001, round(70 / noise.grid.step), np.float64)
    added = noise.noised_mean(total, 10).astype(np.float64) - 7
    assert added.std() == pytest.approx(0.5 * 3.0 / 10, rel=0.01)
    assert abs(added.mean()) < 5 * 0.15 / np.sqrt(len(total))
    assert np.mean((added / added.std()) ** 4) == pytest.approx(3, rel=0.05)
    assert abs(np.corrcoef(added[:-1], added[1:])[0, 1]) < 0.02


def test_a_job_that_is_started_again_adds_the_same_noise_and_another_round_another() -> None:
    def drawn(seed: str) -> bytes:
        noise = Gaussian(clip_norm=1.0, noise_multiplier=1.0, seed=bytes.fromhex(seed))
        return noise.noised_mean(np.zeros(70_000), 2).tobytes()

    assert drawn(SEED) == drawn(SEED) != drawn("5b" * 32)


def test_nothing_is_added_where_the_devices_add_it_or_nobody_does() -> None:
    assert noise_of(Privacy(mode="local"), SEED) is None
    assert noise_of(Privacy(), SEED) is None


def test_epsilon_is_the_published_one() -> None:
    # One release with noise 1 at 1e-5: 4.377 exactly (Balle and Wang, ICML 2018); Rényi accounting is an upper bound.
    assert 4.377 < epsilon((Spend(noise_multiplier=1.0),), 1e-5) < 5.0
    hundred = epsilon((Spend(noise_multiplier=1.0, rounds=100),), 1e-5)
    assert hundred == pytest.approx(epsilon((Spend(noise_multiplier=0.1),), 1e-5), rel=1e-9)
    # Abadi et al., CCS 2016, section 5: 1.26 for q = 0.01, noise 4 and 10,000 steps; the conversion from Rényi is tighter since.
    assert 0.9 < epsilon((Spend(noise_multiplier=4.0, fraction=0.01, rounds=10_000),), 1e-5) < 1.26


def test_the_projection_is_what_the_next_round_will_find() -> None:
    privacy = Privacy(mode="central", noise_multiplier=3.0)
    first = judged(PrivacyLedger().charged(privacy, 1.0))
    assert first.epsilon is not None
    assert first.next_epsilon is not None
    second = judged(first.charged(privacy, 1.0))
    assert first.epsilon < first.next_epsilon == second.epsilon
    assert (first.judged, second.judged) == (1, 2)


def run(fleet: Fleet, folder: Path, **privacy: object) -> RoundReport:
    """The job of a round with privacy."""
    settings = FleetSettings.model_validate({"privacy": {"mode": "central", **privacy}})
    record = make_record(FLEET, fleet.current, settings).model_copy(
        update={"phase": "aggregating", "privacy": PrivacyLedger().charged(settings.privacy, 1.0)}
    )
    fleet.clients.rounds.put_item(Item=record.to_item())
    folder.mkdir()
    return RoundJob(
        record, fleet.clients, RoundUpdates(fleet.s3, fleet.clients.bucket.name, FLEET, ROUND), folder
    ).run()


def updates(fleet: Fleet) -> None:
    for seed, thing in enumerate(["press-a", "press-b", "press-c"]):
        fleet.put_update(thing, seed, num_examples=10 ** (seed + 1))


def test_a_round_s_model_is_the_equal_mean_of_clipped_updates_with_noise_and_the_report_says_what_it_cost(
    fleet: Fleet, tmp_path: Path
) -> None:
    updates(fleet)
    report = run(fleet, tmp_path / "job", clip_norm=0.01, noise_multiplier=5.0)
    assert report.outcome == "released"
    assert [entry.weight for entry in report.updates] == pytest.approx([1 / 3] * 3)
    assert report.privacy is not None
    assert report.privacy.epsilon == epsilon(report.privacy.spends, 1e-5)
    content = fleet.object(parameters_key(FLEET, make_record(FLEET, fleet.current).version))
    assert content is not None
    (tmp_path / "new").write_bytes(content)
    found, base = tensors.load(tmp_path / "new")[0], fleet.base.parameters()
    change = np.concatenate([(found[name] - base[name]).ravel() for name in base]).astype(np.float64)
    assert change.std() == pytest.approx(0.01 * 5.0 / 3, rel=0.05)  # each update's own part is far below


def test_a_job_killed_before_its_report_gives_the_same_model_again(fleet: Fleet, tmp_path: Path) -> None:
    updates(fleet)
    first = run(fleet, tmp_path / "first")
    fleet.s3.delete_object(Bucket=fleet.clients.bucket.name, Key=report_key(FLEET, ROUND))
    again = run(fleet, tmp_path / "again")
    assert first.model is not None
    assert again.model == first.model
    assert again.outcome == "released"


def test_a_round_beyond_the_budget_touches_no_update(fleet: Fleet, tmp_path: Path) -> None:
    updates(fleet)
    before = fleet.keys("models/")
    report = run(fleet, tmp_path / "job", noise_multiplier=1.0, epsilon_budget=2.0)
    assert report.outcome == "held"
    assert "the budget is 2" in report.reason
    assert report.model is None
    assert report.updates == ()
    assert fleet.keys("models/") == before


def test_one_device_s_norm_does_not_decide_over_another_s_update() -> None:
    with pytest.raises(ConfigurationError, match="max_norm_over_median"):
        FleetSettings().overridden({"privacy": {"mode": "central"}, "checks": {"max_norm_over_median": 3.0}})


@pytest.mark.parametrize("small", [combination.SMALL, -1])
@pytest.mark.parametrize("devices", [1, 16, 17, 70])
def test_the_noised_sum_is_the_plain_integer_sum_of_clipped_updates_and_the_noise_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, devices: int
) -> None:
    """No update changes the rounding of others': sums are integers, at every boundary of chunks and windows."""
    monkeypatch.setattr(combination, "SMALL", small)
    base = tiny_model(tmp_path / "model", 7, 900)
    rng = np.random.default_rng(devices)
    rows = rng.normal(size=(devices, 907)).astype(np.float32) * rng.uniform(1e-4, 10, (devices, 1)).astype(np.float32)
    names = [f"d{i:02d}" for i in range(devices)]
    source = Memory({name: update_of(base, name, row) for name, row in zip(names, rows, strict=True)})
    noise = Gaussian(clip_norm=1.0, noise_multiplier=1.5, seed=bytes.fromhex(SEED))
    found = combine(base, source, noise=noise)
    norms = np.array([math.fsum(np.square(row, dtype=np.float64)) ** 0.5 for row in rows])
    draw = np.concatenate(list(discrete_gaussian(bytes.fromhex(SEED), 907, noise.grid.deviation)))
    assert found.parameters is not None
    steps = flat(found.parameters).astype(np.float64) * devices / noise.grid.step - draw
    clipped = rows * np.minimum(1, 1 / norms)[:, None].astype(np.float64) / noise.grid.step
    # What was added, but for the noise: each update towards zero, and never longer than the norm.
    assert np.all(np.abs(steps - clipped.sum(axis=0)) <= devices * (2 + 2.0**-14 * np.abs(clipped).max()))
    alone = combine(base, Memory({names[0]: update_of(base, names[0], rows[0])}), noise=noise)
    assert alone.parameters is not None
    part = np.rint(flat(alone.parameters).astype(np.float64) / noise.grid.step) - draw
    assert math.isclose(np.linalg.norm(part) * noise.grid.step, min(1.0, norms[0]), rel_tol=1e-4)


def test_sums_in_steps_are_exact_so_that_one_update_changes_them_by_itself(tmp_path: Path) -> None:
    """In float32 the same updates beside one more, which is small, give sums that differ by more than that one."""
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=5_000).astype(np.float32) for _ in range(40)]
    grid = Grid.of(1.0)
    for terms in (WholeSteps(grid), Rounded()):
        sums = []
        for chosen in (rows, rows[1:]):
            lane = Accumulator(5_000, terms)
            for row in chosen:
                lane.add(row.copy(), UNIT)
            sums.append(lane.finish())
        exact = np.array_equal(sums[0] - sums[1], grid.quantized(rows[0]))
        assert exact == isinstance(terms, WholeSteps)


def test_two_accountants_agree_and_the_tighter_one_counts() -> None:
    sampled = (Spend(noise_multiplier=1.0, fraction=0.01, rounds=1_000), Spend(noise_multiplier=4.0))
    found = accounted(sampled, 1e-5)
    assert found.loss is not None
    assert 0.8 * found.renyi < found.loss == found.best < found.renyi
    loud = accounted((Spend(noise_multiplier=0.05, fraction=0.5, rounds=100),), 1e-5)
    assert loud.loss is None
    assert loud.best == loud.renyi > 40


ADAPTIVE = {"mode": "central", "noise_multiplier": 1.0, "clip_norm": 8.0, "adaptive_clip": {"count_noise": 4}}


def test_adaptive_clipping_comes_to_the_quantile_and_stays_there() -> None:
    privacy, rng = Privacy.model_validate(ADAPTIVE), np.random.default_rng(0)
    seen = []
    for number in range(80):
        norms = list(rng.lognormal(0.0, 0.5, 200))  # of median 1
        found = next_clip_norm(privacy, norms, number.to_bytes(32, "big").hex())
        assert found is not None
        privacy = privacy.model_copy(update={"clip_norm": found})
        seen.append(found)
    assert np.median(seen[-40:]) == pytest.approx(1.0, rel=0.1)
    assert max(seen[-40:]) < 1.3
    assert next_clip_norm(Privacy(mode="central"), [1.0], SEED) is None
    few = next_clip_norm(privacy.model_copy(update={"clip_norm": 1.0}), [2.0], SEED)
    assert few is not None
    assert 1 / math.e <= few <= math.e


def test_the_count_of_adaptive_clipping_is_paid_from_the_round_s_own_budget() -> None:
    privacy = Privacy.model_validate(ADAPTIVE)
    noise = noise_of(privacy, SEED)
    assert noise is not None
    assert noise.grid.deviation * noise.grid.step == pytest.approx(8.0 * privacy.update_noise)
    both = (Spend(noise_multiplier=privacy.update_noise), Spend(noise_multiplier=4.0))
    assert epsilon(both, 1e-5) == pytest.approx(epsilon((Spend(noise_multiplier=1.0),), 1e-5), rel=1e-9)
    for wrong in ({"mode": "local"}, {"adaptive_clip": {"count_noise": 1}}):
        with pytest.raises(ConfigurationError, match="adaptive_clip"):
            FleetSettings().overridden({"privacy": {**ADAPTIVE, **wrong}})
    assert FleetSettings().overridden({"privacy": ADAPTIVE}).announced_update.clip_norm == 0


def test_a_round_s_report_has_the_clipping_norm_of_the_next(fleet: Fleet, tmp_path: Path) -> None:
    updates(fleet)
    report = run(fleet, tmp_path / "job", clip_norm=1e-3, adaptive_clip={"count_noise": 4})
    assert report.privacy is not None
    assert report.privacy.clip_norm is not None
    assert report.privacy.clip_norm != 1e-3
    assert 1e-3 / math.e <= report.privacy.clip_norm <= 1e-3 * math.e


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 64, 100])
def test_a_tree_s_sensitivity_is_the_depth_that_is_accounted_and_its_epsilon_the_library_s(steps: int) -> None:
    """By enumeration: of all nodes that are ever released, how many one round's updates are in, at most."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    released = {node for step in range(1, steps + 1) for node in nodes_of(step)}
    # Each prefix is made of nodes that cover its rounds once.
    for step in range(1, steps + 1):
        covered = [i for level, last in nodes_of(step) for i in range(last - 2**level + 1, last + 1)]
        assert sorted(covered) == list(range(1, step + 1))
    most = max(sum(last - 2**level < i <= last for level, last in released) for i in range(1, steps + 1))
    ledger, privacy = PrivacyLedger(), Privacy(mode="central", noise_multiplier=2.0)
    for step in range(1, steps + 1):
        ledger = ledger.charged(
            privacy, 1.0, Tree(rounds=256, steps=step, last=step, noise_multiplier=2.0, clip_norm=1.0)
        )
    assert ledger.spends == (Spend(noise_multiplier=2.0, depth=most),)
    library = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    library.compose(dp_accounting.SingleEpochTreeAggregationDpEvent(2.0, steps))
    found = accounted(ledger.spends, 1e-5)
    assert found.renyi == pytest.approx(library.get_epsilon(1e-5), rel=1e-9)
    assert found.best <= found.renyi
    # The vector of all nodes is one Gaussian mechanism's, whose sensitivity is the root of that number.
    assert found.best == pytest.approx(dp_accounting.get_epsilon_gaussian(2.0 / math.sqrt(most), 1e-5), rel=1e-9)


def test_what_the_rounds_of_a_tree_release_adds_up_to_the_noise_of_few_sums() -> None:
    size, together = 20_001, np.zeros(20_001)
    for step in range(1, 17):
        noise = noise_of(Privacy(mode="central", clip_norm=1.0, noise_multiplier=1.0), SEED, step)
        assert noise is not None
        own = noise.noised_mean(np.zeros(size), 1).astype(np.float64)
        assert np.array_equal(
            own, noise.noised_mean(np.zeros(size), 1).astype(np.float64)
        )  # made again, it is the same
        together += own
        # As many sums as the number has ones, whatever the number of rounds; 16 rounds' own noise would be 4.
        assert together.std() == pytest.approx(math.sqrt(bin(step).count("1")), rel=0.03)
    whole, grid = np.zeros(size), Grid.of(1.0)
    grid.add_noise(whole, node_seed(bytes.fromhex(SEED), (4, 16)))
    assert np.allclose(together, whole * grid.step, atol=1e-5)


def on_a_tree(fleet: Fleet, folder: Path, step: int) -> RoundReport:
    """The job of a round that is a step of a tree of noise."""
    privacy = {"mode": "central", "clip_norm": 0.01, "noise_multiplier": 5.0}
    settings = FleetSettings().overridden(
        {"privacy": privacy, "strategy": {"name": "dp_ftrl", "options": {"momentum": 0.5, "learning_rate": 0.5}}}
    )
    tree = Tree(rounds=16, steps=step, last=ROUND, noise_multiplier=5.0, clip_norm=0.01)
    ledger = PrivacyLedger().charged(settings.privacy, 1.0, tree)
    record = make_record(FLEET, fleet.current, settings).model_copy(update={"phase": "aggregating", "privacy": ledger})
    fleet.clients.rounds.put_item(Item=record.to_item())
    folder.mkdir()
    source = RoundUpdates(fleet.s3, fleet.clients.bucket.name, FLEET, ROUND)
    return RoundJob(record, fleet.clients, source, folder).run()


def test_a_round_goes_on_with_the_tree_of_the_round_before_and_made_again_has_the_same_noise(
    fleet: Fleet, tmp_path: Path
) -> None:
    updates(fleet)
    earlier = pin_update_list(fleet.clients.bucket, FLEET, ROUND - 1, [])
    first = on_a_tree(fleet, tmp_path / "first", 4)
    assert first.outcome == "released"
    content = fleet.object(parameters_key(FLEET, make_record(FLEET, fleet.current).version))
    assert content is not None
    (tmp_path / "new").write_bytes(content)
    found, base = tensors.load(tmp_path / "new")[0], fleet.base.parameters()
    change = np.concatenate([(found[name] - base[name]).ravel() for name in base]).astype(np.float64)
    # By hand: the node of rounds 1 to 4, less those of 1 and 2, and of 3; three updates that are far smaller; half a step.
    grid, expected = Grid.of(0.05), np.zeros(len(change))
    assert [node for node, _ in changes(4)] == [(2, 4), (1, 2), (0, 3)]
    for node, sign in (((2, 4), 1), ((1, 2), -1), ((0, 3), -1)):
        draws = np.concatenate(
            list(discrete_gaussian(node_seed(bytes.fromhex(earlier.noise_seed), node), len(change), grid.deviation))
        )
        expected += sign * draws * grid.step
    assert np.abs(change - 0.5 * expected / 3).max() < 0.5 * 0.01
    fleet.s3.delete_object(Bucket=fleet.clients.bucket.name, Key=report_key(FLEET, ROUND))
    assert on_a_tree(fleet, tmp_path / "again", 4).model == first.model


def test_a_tree_whose_seed_is_gone_ends_with_what_to_do(fleet: Fleet, tmp_path: Path) -> None:
    updates(fleet)
    with pytest.raises(TransferError, match=f"the seed of the tree of noise that round {ROUND} goes on with"):
        on_a_tree(fleet, tmp_path / "job", 2)
    assert on_a_tree(fleet, tmp_path / "new", 1).outcome == "released"  # the first step has a seed of its own

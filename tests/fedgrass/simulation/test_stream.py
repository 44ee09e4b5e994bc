"""Rounds that never wait, in simulation: against FedBuff's order of events and arithmetic in plain NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.data.digits import digits
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.population import Population
from fedgrass.simulation.run import start_of
from fedgrass.simulation.settings import PartitionScheme, Stragglers
from fedgrass.simulation.store import open_report
from fedgrass.simulation.stream import Stream
from fedgrass.simulation.virtual_device import personal_folder
from tests.fedgrass.simulation.conftest import fleet, refused, result, run
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle

Doubles = NDArray[np.float64]

DEVICES, RATE, STEPS, SIZE, EXPONENT, AGE, ROUNDS = 9, 0.5, 2, 4, 0.5, 6, 12
STREAM: dict[str, Any] = {
    "mode": "asynchronous",
    "buffer_size": SIZE,
    "strategy": {"name": "fedbuff", "options": {"exponent": EXPONENT, "staleness": AGE}},
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "fit": {"epochs": STEPS, "learning_rate": RATE},
}
OPTIONS: dict[str, Any] = {
    "devices": DEVICES,
    "cohort": DEVICES,
    "rounds": ROUNDS,
    "examples": 24,
    "partition": "shards:2",
    "engine": ENGINE,
    "stragglers": "0.5:10x:lognormal",
}


class FedBuff:
    """Nguyen et al. 2022, algorithm 1, with a list of devices that is searched for who is done next.

    Of this fleet's own: a device whose update lies in the buffer waits for the next model, and two updates of a device in one
    buffer weigh no more than one fresh one.
    """

    def __init__(self, seconds: dict[int, Doubles]) -> None:
        data = digits((8, 8, 1))
        order = np.random.default_rng((0, 0)).permutation(len(data))
        pool = np.sort(order[round(len(data) * 0.2) :])
        dealt = drawn(data.y[pool], DEVICES, 24, PartitionScheme.parse("shards:2"), seed=0)
        self.own = [pool[dealt.of(device)] for device in range(DEVICES)]
        self.x, self.y = data.x.reshape(len(data), -1).astype(np.float64), data.y
        self.seconds = seconds
        self.order: list[list[tuple[int, int]]] = []
        self.models = [np.zeros(650)]

    def trained(self, device: int, flat: Doubles, *, near: Doubles | None = None, strength: float = 0.0) -> Doubles:
        x, y = self.x[self.own[device]], self.y[self.own[device]]
        near = flat if near is None else near
        for _ in range(STEPS):
            z = x @ flat[:640].reshape(64, 10) + flat[640:]
            p = np.exp(z - z.max(axis=1, keepdims=True))
            error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(y)
            pull = strength * (flat - near)
            flat = flat - RATE * (np.concatenate([(x.T @ error).ravel(), error.sum(axis=0)]) + pull)
        return flat

    def run(self, rounds: int = ROUNDS) -> Doubles:
        models = self.models
        now, base_of, done_at = 0.0, dict[int, int](), dict[int, float]()

        def begin(device: int) -> None:
            base_of[device], done_at[device] = version, now + self.seconds[version + 1][device]

        for version in range(rounds):
            for device in range(DEVICES):
                # Idle, or so far behind that nobody would take its update.
                if device not in done_at or version - base_of[device] > AGE:
                    begin(device)
            buffer: list[tuple[int, int]] = []
            while len(buffer) < SIZE:
                device = min(done_at, key=lambda one: done_at[one])
                now = done_at.pop(device)
                buffer.append((base_of[device], device))
                if base_of[device] < version:
                    begin(device)
            step, devices = np.zeros(650), {device for _, device in buffer}
            for base, device in buffer:
                weights = {b: (1 + version - b) ** -EXPONENT for b, d in buffer if d == device}
                step += (
                    (self.trained(device, models[base]) - models[base]) * weights[base] / max(1, sum(weights.values()))
                )
            self.order.append(sorted((base + 1, device) for base, device in buffer))
            models.append(models[-1] + step / len(devices))
        return models[-1]


def test_a_stream_is_fedbuff_in_plain_numpy_event_for_event(tmp_path: Path) -> None:
    bundle = softmax_bundle(tmp_path / "bundle").folder
    run(tmp_path / "out", STREAM, bundle=bundle, **OPTIONS)
    _, simulation = start_of(bundle, {**OPTIONS, "fleet": fleet(STREAM)})
    population = Population(simulation)
    everyone = list(range(DEVICES))
    reference = FedBuff({number: population._needs(number, everyone) for number in range(1, ROUNDS + 1)})
    expected = reference.run()
    found = tensors.load(tmp_path / "out" / "model" / "parameters.safetensors")[0]
    np.testing.assert_allclose(np.concatenate([found["w"].ravel(), found["b"]]), expected, atol=1e-6, rtol=0)
    rounds = open_report(tmp_path / "out")[1]
    order = [
        sorted(
            (entry.late_for or one.report.round, int(entry.thing.removeprefix("device-")))
            for entry in one.report.updates
        )
        for one in rounds
    ]
    assert order == reference.order
    ages = [entry.age for one in rounds for entry in one.report.updates]
    assert max(ages) > 2  # slow devices count
    # Nor does it depend on processes.
    run(tmp_path / "three", STREAM, bundle=bundle, workers=2, **OPTIONS)
    assert result(tmp_path / "three") == result(tmp_path / "out")
    # What began in the last rounds comes in later ones.
    longer = FedBuff({number: population._needs(number, everyone) for number in range(1, ROUNDS + AGE + 1)})
    longer.run(ROUNDS + AGE)
    ditto_goes_its_own_way_beside_it(tmp_path, bundle, longer)


def ditto_goes_its_own_way_beside_it(tmp_path: Path, bundle: Path, reference: FedBuff) -> None:
    """Each device's second model is held near the base that its training began with, however old; the stream is the same."""
    strength = 0.7
    settings = {**STREAM, "personal": {"mode": "ditto", "strength": strength}}
    run(tmp_path / "ditto", settings, bundle=bundle, **{**OPTIONS, "validation": 0.0})
    assert result(tmp_path / "ditto")[1] == result(tmp_path / "out")[1]
    began: dict[int, list[int]] = {}
    for one in reference.order:
        for number, device in one:
            if number <= ROUNDS:
                began.setdefault(device, []).append(number)
    for device, numbers in began.items():
        own = np.zeros(650)
        for number in sorted(numbers):
            own = reference.trained(device, own, near=reference.models[number - 1], strength=strength)
        kept = tensors.load(personal_folder(tmp_path / "ditto" / "kept", device) / "ditto.safetensors")[0]
        found = np.concatenate([kept["after/w"].ravel(), kept["after/b"]])
        np.testing.assert_allclose(found, own, atol=1e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(), size=st.integers(1, 5), least=st.integers(1, 3), age=st.integers(1, 4), devices=st.integers(1, 6)
)
def test_every_update_counts_once_in_time_and_no_round_waits_for_nothing(
    data: st.DataObject, size: int, least: int, age: int, devices: int
) -> None:
    needs: dict[int, dict[int, float]] = {}
    seconds = st.one_of(st.integers(1, 40).map(float), st.just(math.inf))

    def asked(number: int) -> dict[int, float]:
        chosen = st.dictionaries(st.integers(0, devices - 1), seconds, min_size=1)
        return needs.setdefault(number, data.draw(chosen))

    stream = Stream(asked, buffer_size=size, deadline=30.0, least=min(least, size), max_age=age)
    rounds = [stream.round(number) for number in range(1, 9)]
    counted: dict[tuple[int, int], int] = {}
    for number, one in enumerate(rounds, start=1):
        updates = [*((number, device) for device in one.answers), *one.arrived]
        for update in updates:
            assert counted.setdefault(update, number) == number, "counts twice"
            assert 0 <= number - update[0] <= age
        assert len(updates) == len(set(updates))
        assert not updates or len(updates) >= min(least, size)
        assert 0 <= one.seconds <= 30
        if one.seconds < 30 and len(updates) < size:
            assert set(one.answers) == set(needs[number]) or not updates
    # All that was trained in time is in some round, as its own round says.
    for number, one in enumerate(rounds[: -age or None], start=1):
        came = {device for begun, device in counted if begun == number}
        assert came == {*one.answers, *one.late}


def test_stragglers_of_a_log_normal_spread_lie_between_the_others_and_the_factor() -> None:
    assert Stragglers.parse("0.5:10x:lognormal") == Stragglers(0.5, 10.0, True)
    with pytest.raises(ValueError, match="lognormal"):
        Stragglers.parse("0.5:10x:normal")
    _, simulation = start_of(None, {**OPTIONS, "engine": "litert", "devices": 400, "fleet": fleet(STREAM)})
    population = Population(simulation)
    factors = np.array([population._slowness(device) for device in range(400)])
    assert (factors.min(), factors.max()) == (1.0, 10.0)
    assert 2.5 < np.median(factors) < 4.0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"strategy": {"name": "fedavg"}}, "fedavg takes no late updates"),
        ({"strategy": {"name": "scaffold"}}, "scaffold keeps state"),
        ({"strategy": {"name": "feddyn"}}, "feddyn keeps state"),
        ({"strategy": {"name": "fedbuff", "options": {"staleness": 0}}}, "staleness above 0"),
        (
            {"privacy": {"mode": "central", "noise_multiplier": 1.0, "clip_norm": 1.0}},
            "mode asynchronous: with privacy",
        ),
        ({"buffer_size": 1}, "less than min_updates"),
        ({"cohort": {"size": 4}}, "cohort.size"),
        ({"quorum": 0.5}, "quorum"),
        (
            {"secure": {"helpers": [{"thing": t, "key": t * 43 + "="} for t in "abc"], "collude": 1}, "min_updates": 4},
            "mode asynchronous: with secure|secure",
        ),
    ],
)
def test_a_stream_is_refused_by_name_with_what_it_cannot_bear(changes: dict[str, Any], match: str) -> None:
    with refused(match):
        fleet({"mode": "asynchronous", "strategy": {"name": "fedbuff"}}).overridden(changes)
    # A round that does not train waits for its devices.
    assert not fleet({"mode": "asynchronous", "strategy": {"name": "fedbuff"}, "task": "evaluate"}).is_asynchronous


def test_the_way_back_needs_no_word_about_the_other_strategys_options() -> None:
    back = fleet(STREAM).overridden({"mode": "synchronous", "strategy": {"name": "fedavg"}})
    assert (back.is_asynchronous, back.strategy.options) == (False, {})
    # The same strategy's options stay, key by key.
    kept = fleet(STREAM).overridden({"strategy": {"name": "fedbuff", "options": {"exponent": 1.0}}})
    assert kept.strategy.options == {"exponent": 1.0, "staleness": AGE}

"""Without an evaluation set the devices' figures drive the gate: from the job's question over their answers to its verdict."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.cloud.aggregator.device_evaluation import DeviceEvaluation
from fedgrass.cloud.aggregator.download import download_bundle
from fedgrass.cloud.rounds.notices import Delivery
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.data import ArrayDataset, Split
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import ConfigurationError
from fedgrass.evaluating import evaluate
from fedgrass.protocol.messages import Announcement, UpdateNotice
from fedgrass.protocol.names import device_topic, round_topic
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.roster import write_roster
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round
from fedgrass.update import write_update
from tests.fedgrass.cloud.aggregator.conftest import FLEET, NOW, ROUND, Fleet, header, make_record
from tests.fixtures.doubles import double

THINGS = ("press-a", "press-b", "press-c")
X = (load_digits().images[:, :, :, None] / 16).astype(np.float32)
Answer = Callable[[str, Announcement], UpdateNotice | None]


@dataclass
class Devices:
    """A fleet's devices behind an ``iot-data`` client: what is announced is done at once, and answered."""

    fleet: Fleet
    answer: Answer
    heard: list[Announcement] = field(default_factory=list)
    retained: bytes = b""

    def publish(self, *, topic: str, qos: int, retain: bool, payload: bytes) -> None:
        assert (topic, qos, retain) == (round_topic(FLEET), 1, True)
        self.retained = payload
        if not payload:
            return
        self.heard.append(Announcement.decode(payload))
        for thing in THINGS:
            notice = self.answer(thing, self.heard[-1])
            if notice is not None:
                self.say(notice)
                self.say(notice)  # at least once, as all is delivered

    def say(self, notice: UpdateNotice) -> str:
        clients = self.fleet.clients
        services: Any = SimpleNamespace(
            fleet=FLEET, rounds=clients.rounds, devices=clients.devices, step_functions=None
        )
        topic = device_topic(FLEET, notice.thing, "update")
        payload = base64.b64encode(notice.encode()).decode()
        return record_update(services, Delivery(topic=topic, payload=payload, received_at=1))


def labels_of(fleet: Fleet) -> Any:
    """Labels by which the base is always right, so that any other model is worse."""
    return LiteRTEngine(fleet.base).infer(X).argmax(axis=1).astype(np.int32)


def real_devices(fleet: Fleet, labels: Any, folder: Path) -> Answer:
    """Devices that fetch both models and evaluate them, each on its own examples."""
    downloads = itertools.count()
    examples = {thing: slice(200 * i, 200 * i + 50 * (i + 1)) for i, thing in enumerate(THINGS)}

    def answer(thing: str, announced: Announcement) -> UpdateNotice:
        assert announced.task == "evaluate"
        assert announced.compare is not None
        bundles = [
            download_bundle(fleet.clients.bucket, model, folder / str(next(downloads)))
            for model in (announced.base, announced.compare)
        ]
        kept = ArrayDataset(X[examples[thing]], labels[examples[thing]])
        found = evaluate(LiteRTEngine(bundles[0]), Split(kept, kept), bundles[1].parameters())
        return UpdateNotice(
            fleet=FLEET,
            round=announced.round,
            thing=thing,
            status="evaluated",
            num_examples=found.num_examples,
            metrics=found.metrics,
        )

    return answer


def put_updates(fleet: Fleet, change: float) -> None:
    parameters = fleet.base.parameters()
    for thing in THINGS:
        path = fleet.folder / thing
        write_update(path, parameters, {n: v * change for n, v in parameters.items()}, header(fleet.base, thing))
        fleet.put(thing, path.read_bytes())


@pytest.fixture(autouse=True)
def roster(fleet: Fleet) -> None:
    """The three devices were asked at the opening."""
    fleet.know(*THINGS)
    write_roster(fleet.clients.rounds, make_record(FLEET, fleet.current), alive=THINGS, asked=THINGS)


def run(fleet: Fleet, answer: Answer, **settings: Any) -> tuple[RoundReport, Devices]:
    fleet.settings = FleetSettings.model_validate({"gate": {"devices_seconds": 1}, **settings})
    devices = Devices(fleet, answer)
    return fleet.run(iot_data=devices), devices


def test_devices_judge_a_good_model_and_it_is_released(fleet: Fleet, tmp_path: Path) -> None:
    put_updates(fleet, 1.01)
    report, devices = run(fleet, real_devices(fleet, labels_of(fleet), tmp_path))
    assert report.outcome == "released", report.reason
    assert (report.evaluated_by_devices, report.evaluation and report.evaluation.examples) == (3, 300)
    assert report.evaluation_base is not None
    assert report.evaluation_base.accuracy == 1.0
    assert "300 examples of 3 devices" in report.reason
    [heard] = devices.heard
    assert (heard.round, heard.opened_at, heard.base.version) == (ROUND, NOW, f"1.{ROUND}.0")
    assert devices.retained == b"", "nobody starts on it any more"


def test_devices_judge_a_bad_model_and_it_is_held(fleet: Fleet, tmp_path: Path) -> None:
    put_updates(fleet, -1.0)
    report, _ = run(fleet, real_devices(fleet, labels_of(fleet), tmp_path))
    assert report.outcome == "held"
    assert report.evaluation is not None
    assert report.evaluation.accuracy is not None
    assert report.evaluation.accuracy < 0.5
    assert not fleet.greengrass.components
    assert not fleet.greengrass.deployments


def figures(thing: str, heard: Announcement, examples: int, new: float, base: float, **changes: Any) -> UpdateNotice:
    metrics = {"loss": 1 - new, "accuracy": new, "base_loss": 1 - base, "base_accuracy": base}
    fields = {"status": "evaluated", "num_examples": examples, "metrics": metrics, **changes}
    return UpdateNotice.model_validate({"fleet": FLEET, "round": heard.round, "thing": thing, **fields})


def test_figures_weigh_by_examples_and_no_device_s_count_weighs_more_than_the_settings_allow(fleet: Fleet) -> None:
    put_updates(fleet, 1.01)
    said = {"press-a": (100, 0.5, 0.8), "press-b": (300, 0.9, 0.8), "press-c": (10**9, 1.0, 0.8)}
    report, _ = run(fleet, lambda thing, heard: figures(thing, heard, *said[thing]), checks={"max_examples": 400})
    assert report.evaluation is not None
    assert report.evaluation.accuracy == pytest.approx((100 * 0.5 + 300 * 0.9 + 400 * 1.0) / 800)
    assert report.evaluation.loss == pytest.approx((100 * 0.5 + 300 * 0.1) / 800)
    assert report.evaluation_base is not None
    assert report.evaluation_base.accuracy == pytest.approx(0.8)


def test_a_liar_with_a_million_examples_does_not_decide_alone(fleet: Fleet) -> None:
    put_updates(fleet, 1.01)
    said = {"press-a": (100, 0.5, 0.9), "press-b": (100, 0.5, 0.9), "press-c": (10**6, 1.0, 0.0)}
    report, _ = run(fleet, lambda thing, heard: figures(thing, heard, *said[thing]))
    assert report.evaluation is not None
    assert report.evaluation.accuracy == pytest.approx((2 * 100 * 0.5 + 300 * 1.0) / 500)
    assert report.evaluation.examples == 500
    assert report.evaluation_base is not None
    assert report.evaluation_base.accuracy == pytest.approx((2 * 100 * 0.9) / 500)


def test_without_enough_figures_the_base_stays(fleet: Fleet) -> None:
    put_updates(fleet, 1.01)

    def one_can(thing: str, heard: Announcement) -> UpdateNotice | None:
        if thing == "press-a":
            return figures(thing, heard, 10, 0.9, 0.8)
        return figures(thing, heard, 0, 0.9, 0.8, status="declined", reason="no examples kept back", metrics={})

    report, _ = run(fleet, one_can)
    assert report.outcome == "held"
    assert "1 devices evaluated the model, 2 are needed" in report.reason


def test_the_wait_ends_at_its_deadline_and_silence_is_no_consent(fleet: Fleet) -> None:
    put_updates(fleet, 1.01)
    report, devices = run(fleet, lambda _thing, _heard: None)
    assert report.outcome == "held"
    assert devices.retained == b""
    assert load_round(fleet.clients.rounds, FLEET, ROUND).question is None


def test_a_job_that_is_run_again_does_not_ask_those_who_have_answered(fleet: Fleet) -> None:
    fleet.clients.rounds.put_item(Item=make_record(FLEET, fleet.current, FleetSettings()).to_item())
    record = load_round(fleet.clients.rounds, FLEET, ROUND)
    devices = Devices(fleet, lambda thing, heard: figures(thing, heard, 10, 0.9, 0.8))
    for _ in range(2):
        jury = DeviceEvaluation(record, fleet.clients.rounds, double(devices), "fedgrass-test", now=lambda: NOW)
        assert jury.hear(fleet.current).judged == 3
    assert len(devices.heard) == 1


def test_figures_that_cannot_be_are_not_counted_and_others_once(fleet: Fleet) -> None:
    fleet.clients.rounds.put_item(Item=make_record(FLEET, fleet.current).model_copy(update={"judging": True}).to_item())
    devices = Devices(fleet, lambda _thing, _heard: None)
    heard: Any = SimpleNamespace(round=ROUND)
    one_model = {"loss": 0.5, "accuracy": 0.5}
    assert devices.say(figures("press-a", heard, 10, 0.9, 0.8, metrics=one_model)) == "ignored"
    half = {**one_model, "base_loss": 0.5}
    assert devices.say(figures("press-a", heard, 10, 0.9, 0.8, metrics=half)) == "ignored"
    assert devices.say(figures("press-a", heard, 10, 1.7, 0.8)) == "ignored"
    assert devices.say(figures("press-a", heard, 10, 0.9, 0.8)) == "counted"
    assert devices.say(figures("press-a", heard, 10, 0.9, 0.8)) == "duplicate"


def test_settings_ask_nobody_who_must_not_tell_and_wait_no_longer_than_the_job_lives() -> None:
    with pytest.raises(ConfigurationError, match="devices_seconds"):
        FleetSettings().overridden({"privacy": {"mode": "local"}, "gate": {"devices_seconds": 10}})
    with pytest.raises(ConfigurationError, match="timeout_seconds"):
        FleetSettings().overridden({"gate": {"devices_seconds": 100}, "aggregation": {"timeout_seconds": 100}})

"""A device between rounds: it fine-tunes a copy of each version that becomes active, once, and after everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.trainer import runner
from components.trainer.fine_tuning import AGAIN_SECONDS
from fedgrass import data
from fedgrass.bundle import Bundle, Parameters
from fedgrass.edge.child import Child, Running
from fedgrass.engines.base import Dataset
from fedgrass.inference import write_bundle
from fedgrass.personal import Own
from fedgrass.personal_models import DITTO, TUNED, PersonalModels
from fedgrass.protocol.device_messages import ApplicationStatus
from fedgrass.protocol.messages import Command, FitTask, UpdateTask
from fedgrass.protocol.names import APPLICATION_TOPIC, TRAINER, device_topic, update_key
from fedgrass.tensors import Array
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, THING, Place
from tests.fedgrass.edge import digits
from tests.fedgrass.partly_local import partly_local
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle

EPOCHS, MANY, RATE = 5, 60, 0.3
KEY = update_key(FLEET, 1, THING)


class Tuning(Place):
    """A device whose owner has it fine-tune; ``children``: in processes, as on a device."""

    def __init__(self, folder: Path, *, children: bool = False, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        own = {"fineTuneEpochs": str(EPOCHS), "fineTuneLearningRate": str(RATE), **settings}
        super().__init__(folder, **own)
        self.children = children

    def start_child(self) -> Running:
        return Child("components.trainer.work", str(os.getpid())) if self.children else super().start_child()

    def begin(self) -> None:
        """Let it look, and begin if it will."""
        self.trainer._fine_tuning.look()

    def look(self) -> None:
        """Let it look, and do what it then does."""
        self.begin()
        self.until(lambda: not self.trainer._fine_tuning.works, "fine-tuned, or not")

    def hear(self, **changes: Any) -> None:
        """Know a round: from then on it is known what may be told."""
        self.open(self.announcement(1, **{"task": "evaluate", **changes}))
        self.settle()
        self.close()

    def have_version(self, number: int, parameters: Parameters) -> Bundle:
        made = write_bundle(self.bundle, parameters, self.folder / f"v{number}", version=f"1.{number}.0")
        with self.store.lock():
            self.store.activate(made)
        return made

    def own(self) -> dict[str, Parameters]:
        return PersonalModels(self.store.device.personal, self.bundle.manifest).read()

    @property
    def trouble(self) -> str:
        return self.trainer._log.last_error

    @property
    def loads_its_own(self) -> bool:
        return (self.store.folder / "active").resolve().name.startswith("personal-")

    def applied(self) -> Parameters:
        found = self.store.applied()
        assert found is not None
        found.verify()
        return found.parameters()

    @property
    def done(self) -> list[str]:
        return [mark.split()[0] for mark in self.trainer._fine_tuning._done]


def trained_on(parameters: Parameters, epochs: int = EPOCHS) -> Parameters:
    """What a `QuickEngine` makes of them."""
    for _ in range(epochs):
        parameters = {name: value + 1 for name, value in parameters.items()}
    return parameters


def _flat(examples: Dataset) -> tuple[Array, Array]:
    (batch,) = examples.batches(100)
    return batch.x.reshape(len(batch.x), -1).astype(np.float64), batch.y


def same(found: Parameters, expected: Parameters) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], value) for name, value in expected.items()
    )


@pytest.fixture
def tuning(tmp_path: Path) -> Any:
    QuickEngine.reset()
    place = Tuning(tmp_path / "device")
    place.have_model()
    place.start()
    yield place
    QuickEngine.reset()
    place.stop()


def test_a_version_is_fine_tuned_as_plain_numpy_does_and_the_better_one_is_loaded_and_told(tmp_path: Path) -> None:
    place = Tuning(tmp_path / "device", engine=ENGINE, fineTuneEpochs=str(MANY))
    place.bundle = softmax_bundle(tmp_path / "bundle")
    place.have_model()
    place.start()
    place.hear()
    place.look()
    examples = data.load(place.trainer._now.runtime.data, place.bundle.manifest)
    x, y = _flat(examples.train)
    w, b = np.zeros((64, 10)), np.zeros(10)
    for _ in range(MANY):  # forty examples are one batch
        z = x @ w + b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(y)
        w, b = w - RATE * x.T @ error, b - RATE * error.sum(axis=0)
    tuned = place.own()[TUNED]
    np.testing.assert_allclose(tuned["w"], w, atol=1e-6)
    np.testing.assert_allclose(tuned["b"], b, atol=1e-6)
    assert place.loads_its_own
    assert same(place.applied(), tuned)
    active = place.store.active()
    assert active is not None
    assert same(active.parameters(), place.bundle.parameters()), "what rounds start from is the fleet's"
    kept_x, kept_y = _flat(examples.validation)
    told = place.store.admissions()[-1]
    assert (told.version, told.outcome) == (place.bundle.manifest.version, "active")
    assert "the application loads this device's own (tuned): accuracy" in told.reason
    assert told.metrics["accuracy"] == pytest.approx(np.mean(kept_y == 0)), "of equal chances the first is taken"
    assert told.metrics["tuned_accuracy"] == pytest.approx(np.mean((kept_x @ w + b).argmax(axis=1) == kept_y))
    assert told.metrics["tuned_loss"] < told.metrics["loss"] == pytest.approx(np.log(10))
    place.stop()
    place.look()
    place.stop()
    place.start()
    place.look()
    assert place.done == ["1.0.0"]
    assert len(place.store.admissions()) == 1, "never twice"


def test_one_who_is_not_asked_does_nothing(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Tuning(tmp_path / "device", fineTuneEpochs="0")
    place.have_model()
    place.start()
    place.look()
    assert QuickEngine.epochs == []
    assert not place.own()
    place.ipc.change(TRAINER, {**place.ipc.configurations[TRAINER], "fineTuneEpochs": "2"})
    place.until(lambda: place.trainer._now.own.fine_tune_epochs, "the owner has it now")
    place.look()
    assert QuickEngine.epochs == [0, 1]
    place.stop()


@pytest.mark.parametrize("ask", ["round", "command"])
def test_whatever_else_is_asked_comes_first_and_the_rest_follows(tuning: Tuning, ask: str) -> None:
    QuickEngine.allowed = 2
    tuning.begin()
    tuning.until(lambda: len(QuickEngine.epochs) == 2, "two epochs")
    if ask == "round":
        tuning.open(tuning.announcement())
    else:
        command = Command(fleet=FLEET, thing=THING, id="a1", kind="fit", bucket="bucket", fit=FitTask(epochs=3))
        tuning.ipc.from_cloud(device_topic(FLEET, THING, "command"), command.encode())
    tuning.until(lambda: not tuning.trainer._fine_tuning.works, "it gave way")
    QuickEngine.allowed = 1000
    tuning.until(lambda: len(QuickEngine.epochs) == 5, "three of what was asked")
    tuning.settle()
    tuning.look()
    assert QuickEngine.epochs == [0, 1, 0, 1, 2, 2, 3, 4]
    assert same(tuning.own()[TUNED], trained_on(tuning.bundle.parameters()))
    if ask == "round":
        assert [notice.status for notice in tuning.notices] == ["uploaded"]


def test_it_does_not_begin_while_a_round_is_worked_on(tuning: Tuning) -> None:
    QuickEngine.allowed = 1
    tuning.open(tuning.announcement())
    tuning.until(lambda: len(QuickEngine.epochs) == 1, "one epoch of the round")
    tuning.begin()
    assert not tuning.trainer._fine_tuning.works
    QuickEngine.allowed = 1000
    tuning.settle()


def test_the_update_is_the_same_with_and_without(tmp_path: Path) -> None:
    updates = []
    for epochs in (0, 2):
        place = Tuning(tmp_path / str(epochs), engine="litert", fineTuneEpochs=str(epochs))
        place.bundle = partly_local(Bundle.open(digits.BUNDLE), tmp_path / f"bundle{epochs}", "head")
        place.have_model()
        Own.of(place.bundle.manifest, place.store.device.own, "an earlier round").keep(digits.trained())
        kept = place.store.device.own.read_bytes()
        place.start()
        place.look()
        assert bool(place.own()) == bool(epochs)
        assert place.store.device.own.read_bytes() == kept, (
            "what the device keeps for itself in rounds is another thing"
        )
        place.open(place.announcement())
        place.settle()
        place.until(lambda place=place: place.streams.export() or KEY in place.streams.s3, "uploaded")
        place.stop()
        updates.append(place.streams.s3[KEY])
    assert updates[0] == updates[1]


def test_a_version_that_comes_meanwhile_takes_its_place(tuning: Tuning) -> None:
    QuickEngine.allowed = 1
    tuning.begin()
    tuning.until(lambda: len(QuickEngine.epochs) == 1, "one epoch")
    newer = tuning.have_version(1, digits.trained())
    tuning.say_model_is_active()
    tuning.until(lambda: not tuning.trainer._fine_tuning.works, "dropped")
    assert not tuning.own()
    QuickEngine.allowed = 1000
    tuning.look()
    assert tuning.done == ["1.1.0"]
    assert QuickEngine.epochs == [0, *range(EPOCHS)], "from its beginning"
    assert same(tuning.own()[TUNED], trained_on(newer.parameters()))


def test_what_was_made_of_a_version_that_is_taken_back_is_gone_and_the_one_before_is_not_done_again(
    tmp_path: Path,
) -> None:
    place = Tuning(tmp_path / "device", engine=ENGINE, fineTuneEpochs=str(MANY))
    place.bundle = softmax_bundle(tmp_path / "bundle")
    place.have_model()
    place.start()
    place.hear()
    place.look()
    place.have_version(1, {name: value + np.float32(0.01) for name, value in place.bundle.parameters().items()})
    place.look()
    assert place.done == ["1.0.0", "1.1.0"]
    assert place.loads_its_own
    with place.store.lock():
        place.store.roll_back("a test")
    place.look()
    assert place.done == ["1.0.0", "1.1.0"]
    assert not place.loads_its_own
    assert not place.own()
    assert same(place.applied(), place.bundle.parameters())
    assert [(one.version, one.outcome) for one in place.store.admissions()][-1] == ("1.1.0", "rolled_back")
    place.stop()


def test_a_version_that_is_taken_back_meanwhile_leaves_nothing(tuning: Tuning) -> None:
    tuning.have_version(1, digits.trained())
    QuickEngine.allowed = 1
    tuning.begin()
    tuning.until(lambda: len(QuickEngine.epochs) == 1, "one epoch")
    with tuning.store.lock():
        tuning.store.roll_back("a test")
    QuickEngine.allowed = EPOCHS
    tuning.until(lambda: not tuning.trainer._fine_tuning.works, "ended")
    assert not tuning.own()
    assert tuning.done == []
    assert [one.outcome for one in tuning.store.admissions()] == ["rolled_back"]


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"update": UpdateTask(clip_norm=1.0, noise_multiplier=1.0)}, {}),
        ({"update": UpdateTask(figures="left_out")}, {}),
        ({}, {"minNoiseMultiplier": "1"}),
        ({}, {"maxPromisedEpsilon": "1"}),
        ({}, {"secureHelpers": ["k"]}),
        (None, {}),
    ],
)
def test_no_figure_is_told_where_rounds_leave_them_out_or_nobody_knows(
    tmp_path: Path, changes: dict[str, Any] | None, settings: dict[str, Any]
) -> None:
    place = Tuning(tmp_path / "device", **{"engine": ENGINE, "fineTuneEpochs": str(MANY), **settings})
    place.bundle = softmax_bundle(tmp_path / "bundle")
    place.have_model()
    place.start()
    if changes is not None:
        place.hear(**changes)
    place.look()
    assert place.loads_its_own, "the device chooses all the same"
    assert place.store.admissions() == []
    place.stop()


def test_the_owners_limits_hold_it_and_give_the_memory_back(tuning: Tuning) -> None:
    busy = ApplicationStatus(busy=True, valid_seconds=1000)
    tuning.ipc.publish_local(APPLICATION_TOPIC, busy.encode())
    tuning.until(lambda: tuning.trainer._guard.hold() is not None, "busy")
    tuning.begin()
    assert not tuning.trainer._fine_tuning.works
    tuning.ipc.publish_local(APPLICATION_TOPIC, ApplicationStatus().encode())
    tuning.until(lambda: tuning.trainer._guard.hold() is None, "idle")
    QuickEngine.allowed = 2
    tuning.begin()
    tuning.until(lambda: len(QuickEngine.epochs) == 2, "two epochs")
    tuning.ipc.publish_local(APPLICATION_TOPIC, busy.encode())
    tuning.until(lambda: not tuning.trainer._fine_tuning.works, "stopped, not waiting")
    tuning.ipc.publish_local(APPLICATION_TOPIC, ApplicationStatus().encode())
    tuning.until(lambda: tuning.trainer._guard.hold() is None, "idle")
    QuickEngine.allowed = 1000
    tuning.look()
    assert QuickEngine.epochs == list(range(EPOCHS))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"minExamples": "41"}, "minExamples is 41"),
        ({"minSteps": "16"}, "minSteps is 16"),
    ],
)
def test_too_few_examples_are_no_reason_to_try_each_minute(
    tmp_path: Path, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Tuning(tmp_path / "device", **settings)
    place.have_model()
    place.start()
    for _ in range(3):
        place.look()
    assert caplog.text.count("not_fine_tuned") == 1
    assert reason in place.trouble
    assert place.done == []
    digits.write_data(place.folder / "data.npz", 100)
    place.ipc.change(TRAINER, {**place.ipc.configurations[TRAINER], "minSteps": "1"})
    place.now += AGAIN_SECONDS
    place.look()
    assert place.done == ["1.0.0"]
    place.stop()


def test_a_disk_that_takes_nothing_costs_no_second_training(tuning: Tuning, caplog: pytest.LogCaptureFixture) -> None:
    tuning.hear()
    tuning.store.device.personal.write_bytes(b"where a folder is to be")
    tuning.look()
    assert "not_fine_tuned" in caplog.text
    assert tuning.done == []
    tuning.look()
    tuning.store.device.personal.unlink()
    tuning.now += AGAIN_SECONDS
    tuning.look()
    assert tuning.done == ["1.0.0"]
    assert QuickEngine.epochs == list(range(EPOCHS))
    assert not list((tuning.folder / "work").glob("fine-tun*ing*"))


def test_one_that_diverges_is_given_up_for_this_version(tuning: Tuning, caplog: pytest.LogCaptureFixture) -> None:
    QuickEngine.diverge = True
    tuning.look()
    tuning.now += AGAIN_SECONDS
    tuning.look()
    assert caplog.text.count("not_fine_tuned") == 1
    assert "the loss is nan" in tuning.trouble
    assert not tuning.own()
    QuickEngine.diverge = False
    tuning.open(tuning.announcement())
    tuning.settle()
    assert [notice.status for notice in tuning.notices] == ["uploaded"]


def test_with_a_model_by_ditto_the_best_of_three_is_loaded(tmp_path: Path) -> None:
    place = Tuning(tmp_path / "device", engine="litert", fineTuneEpochs="1", fineTuneLearningRate="0.0001")
    place.have_version(0, digits.random())
    ditto = PersonalModels(place.store.device.personal, place.bundle.manifest, "round").kept(DITTO)
    ditto.path.parent.mkdir()
    ditto.keep({}, digits.trained())
    place.start()
    place.hear()
    place.look()
    assert place.own().keys() == {TUNED, DITTO}
    assert same(place.applied(), digits.trained())
    told = place.store.admissions()[-1].metrics
    assert told["ditto_accuracy"] > told["tuned_accuracy"]
    place.stop()


@pytest.mark.parametrize("engine", ["DiesOnce", "Segfault"])
def test_a_death_in_it_is_made_up_for_and_two_give_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.01)
    place = Tuning(tmp_path / "device", children=True, engine=f"tests.components.trainer.deadly:{engine}")
    place.have_model()
    place.start()
    place.look()
    assert place.done == ["1.0.0"]
    if engine == "DiesOnce":
        assert same(place.own()[TUNED], trained_on(place.bundle.parameters()))
    else:
        assert not place.own()
        assert "died twice in fine-tuning, last by signal 11 (SIGSEGV)" in place.trouble
    place.stop()


def test_a_component_that_is_stopped_goes_on_where_it_was(tuning: Tuning) -> None:
    QuickEngine.allowed = 3
    tuning.begin()
    tuning.until(lambda: len(QuickEngine.epochs) == 3, "three epochs")
    tuning.stop()
    QuickEngine.allowed = 1000
    tuning.start()
    tuning.look()
    assert QuickEngine.epochs == list(range(EPOCHS))
    assert tuning.done == ["1.0.0"]


@pytest.mark.parametrize("spoilt", [b"", b"[", b"{}", b"[1, null]", b"\xff"])
def test_a_record_that_is_damaged_costs_one_more_fine_tuning(tuning: Tuning, spoilt: bytes) -> None:
    tuning.look()
    tuning.stop()
    (tuning.folder / "work" / "fine-tuned.json").write_bytes(spoilt)
    tuning.start()
    tuning.look()
    assert tuning.done == ["1.0.0"]


def test_settings_of_the_deployer_that_are_wrong_are_said_once(
    tuning: Tuning, caplog: pytest.LogCaptureFixture
) -> None:
    tuning.ipc.configurations["com.fedgrass.ModelDeployer"] = {"tolerance": "much"}
    tuning.look()
    tuning.look()
    assert caplog.text.count("not_fine_tuned") == 1
    assert QuickEngine.epochs == []

"""The trainer: one answer to each round, whatever happens on the way."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from components.trainer.recent import RecentRounds
from fedgrass import tensors
from fedgrass.data import ArrayDataset
from fedgrass.edge.ipc import EXIT_RELAUNCH
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import TransferError
from fedgrass.inference import write_bundle
from fedgrass.personal import Own
from fedgrass.personal_models import DITTO, TUNED, PersonalModels
from fedgrass.protocol.messages import Announcement, ByLoss, Cohort, FitTask, PersonalTask, ServerState
from fedgrass.protocol.names import RUNTIME, TRAINER, model_prefix, update_key
from fedgrass.update.header import UpdateHeader
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, THING, Place
from tests.fedgrass.edge import digits
from tests.fedgrass.partly_local import partly_local

KEY = update_key(FLEET, 1, THING)


def test_a_round_is_trained_uploaded_and_announced_in_this_order(place: Place) -> None:
    place.streams.automatic = False
    place.start()
    place.open(place.announcement())
    place.until(lambda: place.streams.tasks, "queued for upload")
    assert place.notices == []
    place.streams.export()
    place.until(lambda: place.notices, "announced")
    [notice] = place.notices
    assert (notice.status, notice.round, notice.thing, notice.key) == ("uploaded", 1, THING, KEY)
    assert notice.bytes == len(place.streams.s3[KEY])
    assert notice.num_examples == 40
    assert notice.metrics == {"steps": 3, "loss": 0.5, "validation_loss": 0.5, "validation_accuracy": 0.5}
    place.settle()
    assert {path.name for path in (place.folder / "work").iterdir()} <= {
        "attempts",
        "round.json",
        "tally.json",
        "commands",
        "outbox",
        "uploads",
    }


def test_the_update_is_readable_and_names_this_device(place: Place, tmp_path: Path) -> None:
    place.start()
    place.open(place.announcement())
    place.settle()
    (tmp_path / "u").write_bytes(place.streams.s3[KEY])
    values, metadata = tensors.load(tmp_path / "u")
    assert UpdateHeader.from_metadata(metadata).thing == THING
    assert all(np.allclose(value, 3) for value in values.values())


def test_a_strategy_that_has_devices_keep_state_has_it_over_rounds_and_restarts(tmp_path: Path) -> None:
    place = Place(tmp_path, engine="litert")
    fit = FitTask(epochs=1, learning_rate=0.2, control="scaffold")
    sent = []
    for number in (1, 2, 3):
        place.start()
        announced = place.announcement(number, fit=fit)
        if number > 1:  # the fleet's control variate lies beside the base by now
            flat = np.full(place.bundle.manifest.parameter_count, 0.01, np.float32)
            belongs = {"strategy": "scaffold", "parameters_sha256": place.bundle.manifest.parameters_sha256}
            sha256 = tensors.save(tmp_path / "server", {"control": flat}, belongs)
            key = f"{model_prefix(FLEET, place.bundle.manifest.version)}server.safetensors"
            place.s3.hold(place.bundle)
            place.s3.objects[key] = (tmp_path / "server").read_bytes()
            state = ServerState(strategy="scaffold", sha256=sha256)
            announced = announced.model_copy(update={"base": announced.base.model_copy(update={"state": state})})
        place.have_model()
        if number == 3:
            (place.folder / "work" / "control.safetensors").unlink()  # lost
        place.open(announced)
        place.settle()
        assert place.notices[-1].status == "uploaded", place.notices[-1].reason
        assert place.notices[-1].metrics["step_length"] == pytest.approx(0.2 * place.notices[-1].metrics["steps"])
        sent.append(place.streams.s3[update_key(FLEET, number, THING)])
        assert (place.folder / "work" / "control.safetensors").exists()
        place.stop()
    values = []
    for content in sent:
        (tmp_path / "sent").write_bytes(content)
        stored = tensors.load(tmp_path / "sent")[0]
        values.append(np.concatenate([value.ravel() for value in stored.values()]))
    # The second is another step than the shuffling alone makes it: by the fleet's variate minus its own, of the first update.
    length = 0.2 * place.notices[1].metrics["steps"]
    pulled, other = values[1] - values[0], values[2] - values[0]
    along = 0.01 * length + values[0]  # -(c - c_i) * length, with c_i = -values[0] / length
    assert np.linalg.norm(pulled + along) < 0.7 * np.linalg.norm(pulled)
    assert np.linalg.norm(other + along) > np.linalg.norm(other)


def test_a_device_takes_part_in_so_many_rounds_a_day_and_says_when_it_will_again(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path, maxRoundsPerDay="2")
    place.have_model()
    for number in (1, 2, 3):
        place.start()  # over restarts
        place.open(place.announcement(number))
        place.settle()
        if number < 3:
            assert place.notices[-1].status == "uploaded"
            place.stop()
    assert place.notices[-1].status == "declined"
    assert "2 rounds within a day (maxRoundsPerDay); again in 24.0 h" in place.notices[-1].reason
    assert not place.statuses[-1].able
    place.stop()


def test_the_day_of_recent_rounds_passes_and_a_clock_or_a_file_that_is_wrong_holds_nobody(tmp_path: Path) -> None:
    now = [1e9]
    recent = RecentRounds(tmp_path / "recent.json", lambda: 1, clock=lambda: now[0])
    assert not recent.objection()
    recent.took_part()
    assert recent.objection()
    now[0] += 86_400
    assert not recent.objection()
    recent.took_part()
    now[0] -= 1000
    assert not recent.objection(), "set back"
    for content in (b"", b"{}", b'["x", NaN]', b"[[]]"):
        (tmp_path / "recent.json").write_bytes(content)
        assert not recent.objection()


def test_recent_rounds_count_in_memory_where_the_disk_takes_no_files_and_end_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "work"
    blocked.write_text("a file where the folder should be")
    recent = RecentRounds(blocked / "recent.json", lambda: 2, clock=lambda: 1e9)
    recent.took_part()
    assert not recent.objection()
    recent.took_part()
    assert recent.objection()
    # Room again: what was counted meanwhile goes to the disk with the next round.
    blocked.unlink()
    recent.took_part()
    assert RecentRounds(blocked / "recent.json", lambda: 2, clock=lambda: 1e9).objection()


def test_a_device_with_too_few_examples_declines(place: Place) -> None:
    place.start()
    place.open(place.announcement(cohort=Cohort(salt="s", min_examples=41)))
    place.settle()
    assert (place.notices[-1].status, "40 examples" in place.notices[-1].reason) == ("declined", True)
    place.open(place.announcement(2, cohort=Cohort(salt="s", min_examples=40)))
    place.settle()
    assert place.notices[-1].status == "uploaded"


def test_the_status_tells_each_step(place: Place) -> None:
    place.start()
    place.open(place.announcement(epochs=2))
    place.settle()
    said = [(s.state, s.epoch) for s in place.statuses if s.round == 1]
    states = [state for before, state in itertools.pairwise([None, *said]) if state != before]
    # The clock stands still: of the epochs between the first and the last none is told.
    assert states == [("waiting", 0), ("training", 0), ("training", 2), ("uploading", 0)]
    last = place.until(lambda: place.statuses[-1].state == "idle" and place.statuses[-1], "idle again")
    assert (last.able, last.examples) == (True, 40)


def test_a_repeated_announcement_is_answered_once(place: Place) -> None:
    place.start()
    for _ in range(3):
        place.open(place.announcement())
    place.settle()
    place.open(place.announcement())
    place.settle()
    assert len(place.notices) == 1
    assert place.streams.uploads == 1


def test_a_late_subscriber_gets_the_open_round(place: Place) -> None:
    place.start()
    place.stop()
    place.open(place.announcement())
    place.start()
    place.settle()
    assert len(place.notices) == 1


def test_a_device_outside_the_cohort_does_nothing(place: Place) -> None:
    place.start()
    place.open(place.announcement(cohort=Cohort(salt="s", fraction=1e-9)))
    place.settle()
    assert place.notices == []
    assert QuickEngine.epochs == []


def test_a_device_takes_part_by_the_loss_that_its_last_update_reported(place: Place) -> None:
    place.start()
    for number, explore, loss in ((1, 1.0, 9.0), (2, 0.0, 0.5), (3, 0.0, 0.51)):
        by_loss = ByLoss(explore=explore, loss=loss, since=1)
        place.open(place.announcement(number, cohort=Cohort(salt="s", by_loss=by_loss)))
        place.settle()
        place.close()
    assert [(notice.round, notice.metrics["loss"]) for notice in place.notices] == [(1, 0.5), (2, 0.5)]


def test_a_round_that_closes_is_dropped_between_batches(place: Place) -> None:
    QuickEngine.allowed = 0
    place.start()
    place.open(place.announcement())
    place.until(lambda: place.statuses[-1].state == "training", "training")
    place.close()
    place.until(lambda: place.statuses[-1].state == "idle", "idle")
    QuickEngine.allowed = 1000
    place.settle()
    assert place.notices == []
    assert place.streams.tasks == []


def test_a_newer_round_replaces_the_one_at_hand(place: Place) -> None:
    QuickEngine.allowed = 0
    place.start()
    place.open(place.announcement(1))
    place.until(lambda: place.statuses[-1].state == "training", "training")
    place.open(place.announcement(2))
    QuickEngine.allowed = 1000
    place.settle()
    assert [notice.round for notice in place.notices] == [2]


def test_where_rounds_never_wait_a_device_ends_what_it_began_and_then_takes_the_newest(place: Place) -> None:
    def stream(number: int) -> Announcement:
        return place.announcement(number).model_copy(update={"max_age": 2})

    QuickEngine.allowed = 0
    place.start()
    place.open(stream(1))
    place.until(lambda: place.statuses[-1].state == "training", "training")
    place.close()
    place.open(stream(2))
    place.close()
    place.open(stream(3))
    QuickEngine.allowed = 1000
    place.until(lambda: len(place.notices) == 2, "the late update and the newest")
    place.settle()
    assert [notice.round for notice in place.notices] == [1, 3]
    # Nobody takes an update of round 3 in round 6.
    QuickEngine.allowed = len(QuickEngine.epochs)
    place.open(stream(4))
    place.until(lambda: place.statuses[-1].state == "training", "training again")
    place.open(stream(7))
    QuickEngine.allowed = 1000
    place.until(lambda: len(place.notices) == 3, "the newest")
    place.settle()
    assert [notice.round for notice in place.notices] == [1, 3, 7]


def test_an_update_that_waits_for_upload_does_not_keep_the_next_round_waiting(place: Place) -> None:
    place.streams.away = True
    place.start()
    place.open(place.announcement(1))
    place.until(lambda: len(place.trainer._uploads) == 1, "first waits")
    place.open(place.announcement(2))
    place.until(lambda: len(place.trainer._uploads) == 2, "second waits")
    place.streams.away = False
    place.settle()
    assert [notice.round for notice in place.notices] == [1, 2]


def test_without_data_a_device_declines_and_says_that_it_is_not_able(place: Place) -> None:
    (place.folder / "data.npz").unlink()
    place.start()
    place.open(place.announcement())
    place.settle()
    [notice] = place.notices
    assert notice.status == "declined"
    assert "data.npz" in notice.reason
    place.until(lambda: not place.statuses[-1].able, "not able")
    assert "data.npz" in place.statuses[-1].reason


def test_without_disk_to_spare_a_device_declines(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path, minFreeDiskMb=str(1 << 30))
    place.start()
    place.open(place.announcement())
    place.settle()
    place.stop()
    [notice] = place.notices
    assert notice.status == "declined"
    assert "minFreeDiskMb" in notice.reason
    assert not place.statuses[0].able


def test_training_that_diverges_is_reported_as_failed(place: Place) -> None:
    QuickEngine.diverge = True
    place.start()
    place.open(place.announcement())
    place.settle()
    assert [(notice.status, notice.reason) for notice in place.notices] == [("failed", "the loss is nan")]
    assert place.statuses[-1].state == "failed"


def test_failures_are_counted_in_all_and_since_the_last_round_that_was_taken(place: Place) -> None:
    place.start()
    for number, diverge in enumerate([True, False, True, True], 1):
        QuickEngine.diverge = diverge
        place.open(place.announcement(number))
        place.settle()
    tally = place.until(lambda: place.statuses[-1].tally.failed == 3 and place.statuses[-1].tally, "counted")
    assert (tally.taken, tally.failed_in_a_row) == (1, 2)


def test_a_round_that_evaluates_is_answered_with_the_figures_of_the_kept_back_examples(place: Place) -> None:
    place.start()
    place.open(place.announcement(task="evaluate"))
    place.settle()
    (notice,) = place.notices
    assert (notice.status, notice.key) == ("evaluated", None)
    assert notice.num_examples > 0
    assert 0 <= notice.metrics["accuracy"] <= 1
    assert place.statuses[-1].state == "idle"


def test_a_device_that_has_trained_in_a_round_judges_its_new_model_beside_the_base(
    place: Place, tmp_path: Path
) -> None:
    place.ipc.configurations[RUNTIME] = {**place.ipc.configurations[RUNTIME], "engine": "litert"}
    better = digits.version(tmp_path / "better", "1.1.0", digits.trained())
    place.s3.hold(better)
    place.start()
    place.open(place.announcement())
    place.settle()
    place.close()
    asked = place.announcement(task="evaluate", base=digits.base_of(better, FLEET), compare=place.announcement().base)
    place.open(asked.model_copy(update={"opened_at": asked.opened_at + timedelta(minutes=5)}))
    place.settle()
    trained, judged = place.notices
    assert (trained.status, judged.status) == ("uploaded", "evaluated")
    assert judged.metrics["accuracy"] > judged.metrics["base_accuracy"] + 0.3
    assert judged.metrics["loss"] < judged.metrics["base_loss"]


def test_a_device_that_keeps_no_examples_back_declines_to_evaluate(place: Place) -> None:
    settings = place.ipc.configurations[RUNTIME]
    place.ipc.configurations[RUNTIME] = {**settings, "data": {**settings["data"], "validationFraction": 0}}
    place.start()
    place.open(place.announcement(task="evaluate"))
    place.settle()
    assert [notice.status for notice in place.notices] == ["declined"]
    assert "validationFraction" in place.notices[0].reason


def test_a_loader_that_raises_anything_fails_the_round_and_not_the_component(place: Place) -> None:
    data = {"loader": "tests.components.trainer.test_trainer:broken_loader"}
    place.ipc.configurations[RUNTIME] = {**place.ipc.configurations[RUNTIME], "data": data}
    place.store.folder.rename(place.folder / "gone")
    place.s3.hold(place.bundle)
    place.start()
    place.open(place.announcement())
    place.settle()
    line = broken_loader.__code__.co_firstlineno + 1
    assert [(notice.status, notice.reason) for notice in place.notices] == [
        ("failed", f"ZeroDivisionError: division by zero (test_trainer.py, line {line}, in broken_loader)")
    ]


def broken_loader(*_: object) -> None:
    raise ZeroDivisionError("division by zero")


def test_a_base_that_is_not_on_the_device_is_downloaded_once(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path)
    place.s3.hold(place.bundle)
    place.s3.failures = 1
    place.start()
    for number in (1, 2):
        place.open(place.announcement(number))
        place.settle()
    place.stop()
    assert [notice.status for notice in place.notices] == ["uploaded", "uploaded"]
    assert sum(key.endswith("model.tflite") for key in place.s3.reads) == 1


def test_a_base_that_is_not_what_was_announced_fails_the_round(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path)
    place.s3.hold(place.bundle)
    key = place.announcement().base.parameters_key
    place.s3.objects[key] = place.s3.objects[key][:-1] + b"\x01"
    place.start()
    place.open(place.announcement())
    place.settle()
    place.stop()
    [notice] = place.notices
    assert notice.status == "failed"
    assert "digest" in notice.reason


def test_on_a_full_disk_the_answer_waits_for_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = place.start()
    real = trainer._uploads.submit

    def full(*_: object, **__: object) -> None:
        raise TransferError("free some disk")

    monkeypatch.setattr(trainer._uploads, "submit", full)
    place.open(place.announcement())
    place.until(lambda: place.statuses[-1].reason == "free some disk", "told")
    monkeypatch.setattr(trainer._uploads, "submit", real)
    trainer._answer_again(place.announcement())
    place.settle()
    assert QuickEngine.epochs == [0, 1, 2]
    assert len(place.notices) == 1


def test_component_updates_wait_for_training_within_the_bound(place: Place) -> None:
    place.start()
    place.ipc.update_components("d1")
    place.until(lambda: place.ipc.deferred == [("d1", 0)], "accepted at once")
    QuickEngine.allowed = 0
    place.open(place.announcement())
    place.until(lambda: place.statuses[-1].state == "training", "training")
    place.ipc.update_components("d2")
    place.until(lambda: place.ipc.deferred[1:] == [("d2", 10_000)], "deferred")
    place.now += 595
    place.ipc.update_components("d2")
    place.until(lambda: place.ipc.deferred[2:] == [("d2", 5_000)], "deferred to the bound")
    place.now += 6
    place.ipc.update_components("d2")
    place.until(lambda: place.ipc.deferred[3:] == [("d2", 0)], "accepted at the bound")


def test_changed_settings_are_taken_over_without_a_restart(place: Place) -> None:
    place.start()
    place.until(lambda: place.statuses[-1].examples == 40, "counted")
    configuration = place.ipc.configurations[RUNTIME]
    place.ipc.change(RUNTIME, {**configuration, "data": {**configuration["data"], "validationFraction": "0.5"}})
    place.until(lambda: place.statuses[-1].examples == 25, "counted again")
    place.ipc.change(TRAINER, {"niceLevel": "loud"})
    place.settle()
    place.open(place.announcement())
    place.settle()
    assert place.notices[0].num_examples == 25


def test_another_fleet_needs_a_fresh_start(place: Place) -> None:
    place.start()
    place.ipc.change(RUNTIME, {**place.ipc.configurations[RUNTIME], "fleet": "other"})
    assert place.loop.run() == EXIT_RELAUNCH


def test_examples_are_counted_once_a_model_is_there(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path)
    place.start()
    assert place.statuses[-1].examples == 0
    place.have_model()
    place.say_model_is_active()
    place.until(lambda: place.statuses[-1].examples == 40, "counted")
    place.stop()


def test_with_the_real_engine_a_device_learns(tmp_path: Path) -> None:
    place = Place(tmp_path, engine="litert")
    place.have_model()
    place.start()
    place.open(place.announcement(epochs=8))
    place.settle()
    place.stop()
    [notice] = place.notices
    assert notice.metrics["loss"] < 2
    (tmp_path / "update").write_bytes(place.streams.s3[KEY])
    values, _ = tensors.load(tmp_path / "update")
    assert values.keys() == place.bundle.parameters().keys()


def test_what_a_device_keeps_for_itself_lives_over_rounds_restarts_and_models_and_never_leaves(tmp_path: Path) -> None:
    place = Place(tmp_path, engine="litert")
    place.bundle = partly_local(place.bundle, tmp_path / "head", "head")
    local = {parameter.name for parameter in place.bundle.manifest.local_parameters}
    kept, wholes = [], []
    for number in (1, 2):
        place.have_model()
        place.start()
        place.open(place.announcement(number, personal=PersonalTask(mode="ditto")))
        place.settle()
        assert place.notices[-1].status == "uploaded", place.notices[-1].reason
        (tmp_path / "sent").write_bytes(place.streams.s3[update_key(FLEET, number, THING)])
        sent = tensors.load(tmp_path / "sent")[0]
        assert sent.keys() == {p.name for p in place.bundle.manifest.parameters} - local
        kept.append(Own.of(place.bundle.manifest, place.store.device.own).values)
        wholes.append(PersonalModels(place.store.device.personal, place.bundle.manifest).read())
        assert {"base_loss", "personal_loss"} <= place.notices[-1].metrics.keys()
        place.stop()
        moved = {n: v + sent[n] if n in sent else v for n, v in place.bundle.parameters().items()}
        place.bundle = write_bundle(place.bundle, moved, tmp_path / f"v{number}", version=f"1.{number}.0")
    assert kept[0].keys() == kept[1].keys() == local
    assert wholes[0].keys() == wholes[1].keys() == {TUNED, DITTO}
    ditto, _ = tensors.load(place.store.device.personal / "ditto.safetensors")
    assert all(np.array_equal(ditto[f"before/{n}"], value) for n, value in wholes[0][DITTO].items()), (
        "it went on from there"
    )
    # The second round went on from what the first left: the loss on its examples says so, of the model that is now complete.
    engine = LiteRTEngine(place.bundle)
    x, y = digits.examples()
    data = ArrayDataset(x[:50], y[:50])
    losses = [engine.evaluate(data)["loss"]]
    for own in kept:
        engine.set_parameters({**place.bundle.parameters(), **own})
        losses.append(engine.evaluate(data)["loss"])
    assert losses[2] < losses[1] < losses[0]
    place.have_model()
    applied = place.store.applied()
    assert applied is not None
    assert all(np.array_equal(applied.parameters()[name], value) for name, value in kept[1].items())

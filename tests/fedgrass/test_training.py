"""A device's part in a round: repeatable, resumable, and honest about its data."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass import tensors
from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset, Split, split
from fedgrass.engines.base import Dataset, FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import DataError, DivergedError
from fedgrass.fitting import seed_of
from fedgrass.partial import Ending, ending_of, lasts
from fedgrass.protocol.messages import Announcement, Cohort, FitTask, UpdateTask, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.training import Trained, TrainingFiles, train
from fedgrass.update.header import UpdateHeader
from tests.fedgrass.edge import digits


def announcement(number: int = 3, update: UpdateTask | None = None, **fit: Any) -> Announcement:
    opened = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return Announcement(
        fleet="f",
        round=number,
        opened_at=opened,
        deadline=opened + timedelta(hours=1),
        base=digits.base_of(Bundle.open(digits.BUNDLE), "f"),
        cohort=Cohort(salt="s"),
        fit=FitTask(**{"epochs": 3, "learning_rate": 0.2, **fit}),
        update=update or UpdateTask(),
        upload=Upload(bucket="bucket", prefix=update_prefix("f", number)),
    )


def examples() -> Split:
    x, y = digits.examples()
    return split(x[:200], y[:200], validation_fraction=0.2, seed=0)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def run(
    folder: Path,
    *,
    hooks: Hooks | None = None,
    ending: Ending | None = None,
    data: Split | None = None,
    thing: str = "t",
    **fit: Any,
) -> Trained:
    bundle = Bundle.open(digits.BUNDLE)
    return train(
        lambda: LiteRTEngine(bundle),
        bundle,
        data or examples(),
        announcement(**fit),
        thing,
        TrainingFiles(
            folder / "update.safetensors", folder / "checkpoint.safetensors", folder / "residual.safetensors"
        ),
        hooks=hooks,
        ending=ending,
    )


def test_the_update_is_the_difference_from_the_base_with_its_header(tmp_path: Path) -> None:
    trained = run(tmp_path)
    stored, metadata = tensors.load(tmp_path / "update.safetensors")
    header = UpdateHeader.from_metadata(metadata)
    base = Bundle.open(digits.BUNDLE)
    assert (header.fleet, header.round, header.thing, header.num_examples) == ("f", 3, "t", 160)
    assert (header.base_sha256, header.graph_sha256) == (base.manifest.parameters_sha256, base.manifest.graph_sha256)
    assert header.metrics == pytest.approx(trained.metrics)
    assert {"loss", "validation_loss", "validation_accuracy"} <= trained.metrics.keys()
    assert stored.keys() == base.parameters().keys()
    assert any(np.abs(value).max() > 0 for value in stored.values())


def test_training_again_gives_the_same_bytes_and_another_device_other_ones(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "a").info.sha256 == run(tmp_path / "b").info.sha256
    other = run(tmp_path / "c", thing="u")
    assert (
        tensors.load(tmp_path / "a" / "update.safetensors")[0].keys()
        == tensors.load(tmp_path / "c" / "update.safetensors")[0].keys()
    )
    assert other.metrics["loss"] != run(tmp_path / "a").metrics["loss"]


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, epochs_done: int) -> None:
    (tmp_path / "unbroken").mkdir()
    unbroken = run(tmp_path / "unbroken")
    epochs: list[int] = []

    def kill(state: FitState) -> None:
        if state.epoch == epochs_done:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, hooks=Hooks(after_epoch=kill))
    resumed = run(tmp_path, hooks=Hooks(after_epoch=lambda state: epochs.append(state.epoch)))
    assert epochs == list(range(epochs_done + 1, 4))
    assert resumed.info.sha256 == unbroken.info.sha256
    assert resumed.metrics == unbroken.metrics


BATCHES = 3 * 10
"""Of the training that `run` does: epochs times batches of 16 among 160 examples."""


@settings(max_examples=20, deadline=None)
@given(stops=st.lists(st.integers(1, BATCHES), max_size=4, unique=True), killed=st.booleans())
def test_a_training_stopped_and_killed_anywhere_goes_on_to_the_same_bytes(stops: list[int], killed: bool) -> None:
    """Stopped between two batches nothing is done twice; killed there, at most what was done since the last checkpoint."""
    done: list[tuple[int, int]] = []
    left = sorted(stops)

    def end(epoch: int, step: int) -> None:
        done.append((epoch, step))
        if left and epoch * 10 + step == left[0]:
            left.pop(0)
            raise Killed if killed and len(left) % 2 else StopTraining

    with TemporaryDirectory() as folder:
        for _ in stops:
            with suppress(StopTraining, Killed):
                run(Path(folder), hooks=Hooks(after_batch=end))
        resumed = run(Path(folder), hooks=Hooks(after_batch=end))
    assert resumed.info.sha256 == unbroken().info.sha256
    assert resumed.metrics == unbroken().metrics
    assert len(set(done)) == BATCHES
    if not killed:
        assert len(done) == BATCHES


@cache
def unbroken() -> Trained:
    with TemporaryDirectory() as folder:
        return run(Path(folder))


def test_what_a_codec_leaves_out_is_carried_to_the_next_round_once(tmp_path: Path) -> None:
    lossy, plain = UpdateTask(codec="topk:0.02+int8+zstd"), tmp_path / "plain"
    plain.mkdir()
    first = run(tmp_path, update=lossy).info
    assert first.bytes * 16 < run(plain, update=UpdateTask()).info.bytes
    alone = run(tmp_path, number=4, update=lossy).info  # with what round 3 left
    for _ in range(2):  # killed before its answer was safe
        assert run(tmp_path, number=4, update=lossy).info == alone
    (tmp_path / "residual.safetensors").unlink()
    assert run(tmp_path, number=4, update=lossy).info.sha256 != alone.sha256


def test_a_device_that_adds_noise_says_nothing_else_about_its_data(tmp_path: Path) -> None:
    trained = run(tmp_path, update=UpdateTask(clip_norm=1.0, noise_multiplier=1.0))
    _, metadata = tensors.load(tmp_path / "update.safetensors")
    assert trained.metrics == {}
    assert UpdateHeader.from_metadata(metadata).metrics == {}
    assert (UpdateHeader.from_metadata(metadata).num_examples, trained.num_examples) == (1, 1)


def test_seconds_count_over_restarts(tmp_path: Path) -> None:
    now = iter(range(0, 1000, 10))
    bundle = Bundle.open(digits.BUNDLE)

    def once(hooks: Hooks | None) -> Trained:
        return train(
            lambda: LiteRTEngine(bundle),
            bundle,
            examples(),
            announcement(),
            "t",
            TrainingFiles(tmp_path / "u", tmp_path / "c"),
            hooks=hooks,
            clock=lambda: float(next(now)),
        )

    def kill(_state: FitState) -> None:
        raise Killed

    with pytest.raises(Killed):
        once(Hooks(after_epoch=kill))
    assert once(None).seconds == 10 + 30


def test_a_damaged_or_foreign_checkpoint_starts_over(tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    clean = run(tmp_path / "clean")
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes((tmp_path / "clean" / "checkpoint.safetensors").read_bytes()[:-5])
    assert run(tmp_path).info.sha256 == clean.info.sha256
    run(tmp_path, thing="other")
    assert run(tmp_path).info.sha256 == clean.info.sha256


def test_stopping_keeps_the_checkpoint_and_writes_no_update(tmp_path: Path) -> None:
    def stop(_epoch: int, _step: int) -> None:
        raise StopTraining

    with pytest.raises(StopTraining):
        run(tmp_path, hooks=Hooks(after_batch=stop))
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "update.safetensors").exists()


def parameters_after(steps: int, engine: LiteRTEngine, data: Dataset) -> dict[str, Any]:
    """Step by step, with nothing of the loop that is tried."""
    batches = [
        batch
        for epoch in range(3)
        for batch in data.batches(16, seed=FitSettings(seed=seed_of(announcement(), "t")).epoch_seed(epoch))
    ]
    engine._begin(FitSettings(learning_rate=0.2))
    for batch in batches[:steps]:
        engine._step(batch)
    return dict(engine.get_parameters())


@pytest.mark.parametrize(("done", "least"), [(1, 1), (7, 1), (10, 1), (13, 1), (3, 12), (30, 1)])
def test_a_training_whose_time_is_up_sends_what_it_has_and_says_how_much_that_is(
    tmp_path: Path, done: int, least: int
) -> None:
    calls = 0

    def time_is_up() -> bool:
        nonlocal calls
        calls += 1
        return calls + least > done

    # Killed after it ended, and before the update was written: done again, it is the same.
    def kill(_state: FitState) -> None:
        raise Killed

    hooks = Hooks(stopped=kill)
    if done < BATCHES:
        with pytest.raises(Killed):
            run(tmp_path, hooks=hooks, ending=Ending(time_is_up, least, 10))
    trained = run(tmp_path, ending=Ending(time_is_up, least, 10))
    steps = max(done, least)
    told = {"steps": float(steps)} | ({"planned_steps": 30.0} if steps < BATCHES else {})
    assert {name: value for name, value in trained.metrics.items() if name in ("steps", "planned_steps")} == told
    bundle = Bundle.open(digits.BUNDLE)
    base = bundle.parameters()
    wanted = parameters_after(steps, LiteRTEngine(bundle), examples().train)
    for name, value in tensors.load(tmp_path / "update.safetensors")[0].items():
        np.testing.assert_array_equal(value, wanted[name] - base[name])


def test_an_owners_floors_hold_for_a_part_of_a_training() -> None:
    data = examples().train  # 160
    over = ending_of(data, FitTask(epochs=3), 16, lambda: True, least=(40, 2))
    # Two steps show 32 examples: too few for an owner that wants 40.
    assert [over.after(0, step) for step in (1, 2, 3)] == [False, False, True]
    assert [ending_of(data, FitTask(), 16, lambda: True, least=(8, 5)).after(0, n) for n in (4, 5)] == [False, True]
    # Where examples weigh differently, which of an epoch's have counted is not known.
    weighed = ending_of(data, FitTask(class_weight="balanced"), 16, lambda: True, least=(8, 1))
    assert [weighed.after(0, 9), weighed.after(0, 10), weighed.after(1, 0)] == [False, True, True]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 3600.0 - 60),
        ({"fit": FitTask()}, None),
        ({"update": UpdateTask(noise_multiplier=1.0)}, None),
        ({"update": UpdateTask(figures="left_out")}, None),
    ],
)
def test_a_device_ends_early_only_where_its_update_can_say_so(changes: dict[str, Any], wanted: float | None) -> None:
    asked = announcement(partial_margin_seconds=60).model_copy(update=changes)
    assert lasts(asked) == wanted


def test_at_most_so_many_examples_are_used(tmp_path: Path) -> None:
    seen = 0

    def count(_epoch: int, _step: int) -> None:
        nonlocal seen
        seen += 1

    trained = run(tmp_path, hooks=Hooks(after_batch=count), max_examples=20, epochs=2)
    assert trained.num_examples == 20
    assert seen == 4


def test_without_examples_there_is_no_training(tmp_path: Path) -> None:
    x, y = digits.examples()
    nothing = ArrayDataset(x[:0], y[:0])
    with pytest.raises(DataError):
        run(tmp_path, data=Split(nothing, nothing))


def test_without_validation_examples_training_is_not_judged(tmp_path: Path) -> None:
    x, y = digits.examples()
    trained = run(tmp_path, data=Split(ArrayDataset(x[:50], y[:50]), ArrayDataset(x[:0], y[:0])))
    assert trained.metrics.keys() == {"steps", "loss"}


def test_a_training_that_diverges_writes_no_update(tmp_path: Path) -> None:
    x, y = digits.examples()
    with pytest.raises(DivergedError):
        run(tmp_path, data=split(x[:200] * np.float32(1e30), y[:200], validation_fraction=0.2, seed=0))
    assert not (tmp_path / "update.safetensors").exists()


def test_seeds_differ_by_fleet_round_and_thing() -> None:
    here = announcement()
    other = here.model_copy(update={"round": 4})
    assert len({seed_of(here, "a"), seed_of(here, "b"), seed_of(other, "a")}) == 3
    assert seed_of(here, "a") == seed_of(here, "a")

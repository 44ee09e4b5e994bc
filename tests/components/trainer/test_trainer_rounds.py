"""Which round a device works on, whatever arrives in whatever order."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from components.trainer.losses import KeptLosses
from components.trainer.rounds import Rounds, answer_key
from fedgrass.logs import Log
from fedgrass.protocol.cohort import draw
from fedgrass.protocol.messages import Announcement, Base, ByLoss, Cohort, FitTask, Upload
from fedgrass.protocol.names import update_prefix

FLEET, THING = "f", "thing"
EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


def announcement(
    number: int, *, hours: float | None = None, fleet: str = FLEET, fraction: float = 1.0, max_age: int = 0
) -> Announcement:
    opened = EPOCH + timedelta(hours=number if hours is None else hours)
    return Announcement(
        fleet=fleet,
        round=number,
        opened_at=opened,
        deadline=opened + timedelta(seconds=100),
        max_age=max_age,
        base=Base(
            version="1.0.0",
            parameters_key=f"models/{fleet}/1.0.0/parameters.safetensors",
            parameters_sha256="a" * 64,
            graph_sha256="b" * 64,
        ),
        cohort=Cohort(salt="salt", fraction=fraction),
        upload=Upload(bucket="bucket", prefix=update_prefix(fleet, number)),
    )


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rounds(folder: Path, clock: Clock | None = None) -> Rounds:
    return Rounds(folder / "round.json", fleet=FLEET, thing=THING, log=Log("test"), clock=clock or Clock())


def test_a_device_takes_part_where_its_tags_are_those_of_the_cohort(tmp_path: Path) -> None:
    tags = {"site": "north"}
    known = Rounds(tmp_path / "round.json", fleet=FLEET, thing=THING, log=Log("test"), tags=lambda: tags, clock=Clock())
    cases: list[tuple[dict[str, tuple[str, ...]], bool]] = [
        ({"site": ("north", "east")}, True),
        ({"site": ("south",)}, False),
        ({"hardware": ("pi4",)}, False),
        ({}, True),
    ]
    for number, (where, asked) in enumerate(cases, 1):
        announced = announcement(number).model_copy(update={"cohort": Cohort(salt="salt", where=where)})
        assert known.announced(announced.encode()) == (announced if asked else None)
        assert known.phase == ("open" if asked else "passed")


def test_a_candidate_joins_by_the_loss_that_it_reported_last_over_restarts(tmp_path: Path) -> None:
    lot = draw("salt", THING)
    by_lot, by_loss = ByLoss(explore=lot + 1e-9, loss=9.0, since=1), ByLoss(explore=lot, loss=2.0, since=3)

    def announced(number: int, by: ByLoss | None) -> Announcement:
        return announcement(number).model_copy(update={"cohort": Cohort(salt="salt", by_loss=by)})

    def asked(number: int, by: ByLoss) -> bool:
        # New objects each time, as after a restart; an announcement is decided on once.
        losses = KeptLosses(tmp_path / "losses.json", Log("test"))
        (tmp_path / "round.json").unlink(missing_ok=True)
        known = Rounds(
            tmp_path / "round.json", fleet=FLEET, thing=THING, log=Log("test"), loss=losses.counting_for, clock=Clock()
        )
        return known.announced(announced(number, by).encode()) is not None

    losses = KeptLosses(tmp_path / "losses.json", Log("test"))
    assert asked(1, by_lot)
    assert not asked(1, by_loss), "nothing is known of it"
    losses.reported(announced(3, None), {"loss": 5.0})
    assert not asked(4, by_loss), "a round that does not choose so keeps nothing, as the cloud does"
    losses.reported(announced(3, by_lot), {"loss": 2.0})
    assert asked(4, by_loss)
    assert not asked(3, by_loss), "what a round brings does not choose it, nor the evaluation of its model"
    assert not asked(5, by_loss.model_copy(update={"since": 4})), "it is too old"
    losses.reported(announced(4, by_lot), {"loss": 1.9})
    assert not asked(5, by_loss)
    assert asked(4, by_loss), "the evaluation of round 4's model asks those of round 4"
    (tmp_path / "losses.json").write_bytes(b"{")
    assert not asked(6, by_loss)
    assert asked(6, by_lot)


def test_a_device_outside_the_cohorts_piece_of_the_circle_is_not_asked(tmp_path: Path) -> None:
    lot = draw("salt", THING)
    for number, (begin, asked) in enumerate((((lot - 0.05) % 1, True), ((lot + 0.05) % 1, False)), 1):
        announced = announcement(number).model_copy(update={"cohort": Cohort(salt="salt", fraction=0.1, begin=begin)})
        assert (rounds(tmp_path / str(number)).announced(announced.encode()) is not None) == asked


def test_a_new_round_is_worked_on_and_a_repeated_announcement_names_the_same(tmp_path: Path) -> None:
    known, round_1 = rounds(tmp_path), announcement(1)
    assert known.announced(round_1.encode()) == round_1
    assert known.announced(round_1.encode()) == round_1
    known.answered(round_1)
    assert known.announced(round_1.encode()) is None


def test_an_answered_round_stays_answered_after_a_restart(tmp_path: Path) -> None:
    known, round_1 = rounds(tmp_path), announcement(1)
    known.announced(round_1.encode())
    known.answered(round_1)
    assert rounds(tmp_path).announced(round_1.encode()) is None
    assert rounds(tmp_path).unfinished() is None


def test_an_older_round_is_stale_even_if_it_comes_last(tmp_path: Path) -> None:
    known = rounds(tmp_path)
    assert known.announced(announcement(2).encode())
    assert known.announced(announcement(1).encode()) is None
    assert known.phase == "open"


def test_a_fleet_that_was_made_anew_starts_at_round_one_again(tmp_path: Path) -> None:
    known = rounds(tmp_path)
    known.announced(announcement(7).encode())
    reborn = announcement(1, hours=100)
    assert known.announced(reborn.encode()) == reborn
    assert answer_key(reborn) != answer_key(announcement(1))


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"\xff",
        b"[]",
        b"x" * 5000,
        announcement(1, fleet="other").encode(),
        announcement(1).encode().replace(b"updates/f/000001/", b"updates/f/000002/"),
        announcement(1).encode().replace(b"models/f/1.0.0/", b"models/g/1.0.0/"),
    ],
)
def test_what_is_malformed_or_foreign_is_ignored_and_logged_once(
    tmp_path: Path, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    known = rounds(tmp_path)
    assert known.announced(payload) is None
    assert known.announced(payload) is None
    assert known.phase is None
    assert [record.getMessage() for record in caplog.records] == ["announcement_ignored"]


def test_a_device_outside_the_cohort_passes(tmp_path: Path) -> None:
    lot = draw("salt", THING)
    known = rounds(tmp_path)
    assert known.announced(announcement(1, fraction=lot / 2).encode()) is None
    assert known.phase == "passed"
    assert known.announced(announcement(2, fraction=(1 + lot) / 2).encode())


def test_a_closed_round_is_not_resumed_unless_it_is_announced_again(tmp_path: Path) -> None:
    known, round_1 = rounds(tmp_path), announcement(1)
    known.announced(round_1.encode())
    known.closed()
    assert rounds(tmp_path).unfinished() is None
    assert rounds(tmp_path).announced(round_1.encode()) == round_1


def test_a_close_does_not_undo_an_answer(tmp_path: Path) -> None:
    known, round_1 = rounds(tmp_path), announcement(1)
    known.announced(round_1.encode())
    known.answered(round_1)
    known.closed()
    assert known.phase == "answered"


@pytest.mark.parametrize("years_wrong", [-10, 0, 10])
def test_a_wrong_clock_does_not_keep_a_device_from_resuming(tmp_path: Path, clock: Clock, years_wrong: int) -> None:
    clock.now += years_wrong * 365 * 86_400
    round_1 = announcement(1)
    rounds(tmp_path, clock).announced(round_1.encode())
    clock.now += 50
    assert rounds(tmp_path, clock).unfinished() == round_1


def test_a_round_whose_time_is_up_waits_for_the_cloud_to_say_it_is_open(tmp_path: Path, clock: Clock) -> None:
    round_1 = announcement(1)
    rounds(tmp_path, clock).announced(round_1.encode())
    clock.now += 101
    known = rounds(tmp_path, clock)
    assert known.unfinished() is None
    assert known.announced(round_1.encode()) == round_1


@pytest.mark.parametrize(
    ("wrong", "late", "left"),
    [
        (0, 0, 80),  # the round lasts 100 s, 20 are for the upload
        (0, 70, 10),  # it came back 70 s after the opening, and its clock is right
        (-86_400, 0, 80),  # a wrong clock tells nothing but differences
        (86_400, 70, 80),
    ],
)
def test_the_time_to_train_is_until_the_margin_before_the_deadline(
    tmp_path: Path, clock: Clock, wrong: float, late: float, left: float
) -> None:
    round_1 = announcement(1)
    round_1 = round_1.model_copy(update={"fit": FitTask(partial_margin_seconds=20)})
    clock.now = round_1.opened_at.timestamp() + wrong + late
    known = rounds(tmp_path, clock)
    known.announced(round_1.encode())
    assert known.time_left(round_1)() == left
    clock.now += 30
    # After a restart too.
    assert rounds(tmp_path, clock).time_left(round_1)() == left - 30
    assert rounds(tmp_path, clock).time_left(announcement(1))() is None


def test_a_damaged_record_starts_anew(tmp_path: Path) -> None:
    rounds(tmp_path).announced(announcement(1).encode())
    (tmp_path / "round.json").write_bytes(b"{")
    assert rounds(tmp_path).announced(announcement(1).encode())


class RoundsMachine(RuleBasedStateMachine):
    """Any interleaving of announcements (new, repeated, old), closes, crashes and restarts: at most one answer a round.

    The worker is modelled as the trainer does it: an answer is handed on by its key first, and noted second; a crash may
    come between.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.rounds = rounds(Path(self._folder.name))
        self.working: Announcement | None = None
        self.handed_on: list[str] = []
        self.newest = 0

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(number=st.integers(1, 6))
    def announce(self, number: int) -> None:
        found = self.rounds.announced(announcement(number).encode())
        if found is not None:
            assert found.round == number >= self.newest
            self.working = found
        elif number > self.newest:
            raise AssertionError("a newer round was not taken up")
        if number >= self.newest:
            self.newest = number
            if found is None:
                assert answer_key(announcement(number)) in self.handed_on

    @rule()
    def close(self) -> None:
        self.rounds.closed()
        self.working = None

    @rule(crash=st.booleans())
    def finish(self, crash: bool) -> None:
        if self.working is None:
            return
        key = answer_key(self.working)
        if key not in self.handed_on:  # as outbox and uploads know a key
            self.handed_on.append(key)
        if crash:
            self.restart()
        else:
            self.rounds.answered(self.working)
            self.working = None

    @rule()
    def restart(self) -> None:
        self.rounds = rounds(Path(self._folder.name))
        self.working = None
        unfinished = self.rounds.unfinished()
        if unfinished is not None and answer_key(unfinished) in self.handed_on:
            self.rounds.answered(unfinished)
        elif unfinished is not None:
            self.working = unfinished

    @invariant()
    def each_round_is_answered_at_most_once(self) -> None:
        assert len(self.handed_on) == len(set(self.handed_on))


TestRoundsMachine = RoundsMachine.TestCase
TestRoundsMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_an_announcement_that_comes_again_after_its_answer_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, once = rounds(tmp_path), announcement(1)
    assert known.announced(once.encode()) == once
    known.answered(once)
    assert known.announced(once.encode()) is None
    assert not caplog.records


class StreamMachine(RuleBasedStateMachine):
    """Rounds that never wait: what is at hand is finished while it counts, over closes, newer rounds, crashes and restarts."""

    MAX_AGE = 2

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.rounds = rounds(Path(self._folder.name))
        self.working: Announcement | None = None
        self.handed_on: list[str] = []
        self.newest, self.open = 0, False

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(step=st.integers(0, 3))
    def announce(self, step: int) -> None:
        self.newest, self.open = max(1, self.newest + step), True
        found = self.rounds.announced(announcement(self.newest, max_age=self.MAX_AGE).encode())
        if self.working is not None and self.newest - self.working.round > self.MAX_AGE:
            assert self.rounds.behind is None  # nobody would take its update
            self.working = None
        if self.working is not None:
            assert self.rounds.unfinished() == self.working
        else:
            self.working = found

    @rule()
    def close(self) -> None:
        self.rounds.closed()
        self.open = False
        assert self.rounds.unfinished() == self.working

    @rule(crash=st.booleans())
    def finish(self, crash: bool) -> None:
        if self.working is None:
            return
        self.handed_on.append(answer_key(self.working))
        if crash:
            self.restart()
            return
        self.rounds.answered(self.working)
        # At once the newest one, if it is open and was not answered.
        self.working = self.rounds.unfinished()

    @rule()
    def restart(self) -> None:
        self.rounds = rounds(Path(self._folder.name))
        if self.working is not None:
            assert self.rounds.unfinished() == self.working
            if answer_key(self.working) in self.handed_on:
                self.rounds.answered(self.working)
                self.working = self.rounds.unfinished()

    @invariant()
    def nothing_is_answered_twice_and_nothing_is_left_undone(self) -> None:
        assert len(self.handed_on) == len(set(self.handed_on))
        answered = self.newest and answer_key(announcement(self.newest)) in self.handed_on
        if self.open and not answered:
            assert self.working is not None
        if self.working is not None:
            assert answer_key(self.working) not in self.handed_on


TestStreamMachine = StreamMachine.TestCase
TestStreamMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_another_graph_and_a_fleet_made_anew_end_what_is_at_hand(tmp_path: Path) -> None:
    known, first = rounds(tmp_path), announcement(3, max_age=5)
    known.announced(first.encode())
    other = first.base.model_copy(update={"graph_sha256": "c" * 64})
    anew = announcement(4, max_age=5).model_copy(update={"base": other})
    assert known.announced(anew.encode()) == anew
    assert known.unfinished() == anew
    again = announcement(1, hours=9, max_age=5)
    assert known.announced(again.encode()) == again
    assert known.unfinished() == again

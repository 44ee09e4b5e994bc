"""How often the trainer speaks on the device: nucleus lite hangs where a listener leaves while it is spoken to."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from components.trainer.status import StatusBoard
from fedgrass.logs import Log
from fedgrass.protocol.device_messages import TrainerStatus
from fedgrass.protocol.names import TRAINER_STATUS_TOPIC
from tests.components.trainer.test_trainer_rounds import announcement
from tests.fedgrass.edge.fakes import FakeIpc

EPOCHS = 100


class Board:
    """A board, its clock, and what it said when."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.said: list[tuple[float, TrainerStatus]] = []
        ipc = FakeIpc()
        ipc.on_local(TRAINER_STATUS_TOPIC, lambda payload: self.said.append((self.now, TrainerStatus.decode(payload))))
        self.board = StatusBoard(
            folder / "tally.json", ipc, Log("test"), version="1.0.0", problem=lambda: "", clock=lambda: self.now
        )
        announced = announcement(1)
        self.announced = announced.model_copy(update={"fit": announced.fit.model_copy(update={"epochs": EPOCHS})})

    @property
    def spoken_of(self) -> list[tuple[str, int]]:
        return [(status.state, status.epoch) for _, status in self.said]


@pytest.fixture
def place(tmp_path: Path) -> Board:
    return Board(tmp_path)


@pytest.mark.parametrize("seconds", [0.05, 1.9, 2.0, 60.0])
def test_however_short_its_epochs_a_training_tells_of_one_every_two_seconds_at_most(
    place: Board, seconds: float
) -> None:
    place.board.say("waiting", place.announced)
    for epoch in range(EPOCHS + 1):
        place.board.say("training", place.announced, epoch=epoch, examples=40)
        place.now += seconds
    place.board.say("uploading", place.announced)
    assert place.spoken_of[:2] == [("waiting", 0), ("training", 0)], "a change is told at once"
    assert place.spoken_of[-2:] == [("training", EPOCHS), ("uploading", 0)], "and so is the end"
    between = [when for when, _ in place.said[1:-2]]
    assert all(after - before >= 2 - 1e-9 for before, after in itertools.pairwise(between))
    assert len(between) >= int(EPOCHS * seconds / (2 + seconds)), "and it tells of as many as that allows"


def test_between_two_epochs_a_change_of_anything_else_is_told_at_once(place: Board) -> None:
    place.board.say("training", place.announced, epoch=0, examples=40)
    place.board.say("training", place.announced, epoch=1, examples=40)
    place.board.say("waiting", place.announced, reason="the application is busy")
    place.board.say("training", place.announced, epoch=1, examples=40)
    place.board.say("training", place.announced, epoch=2, examples=41)
    place.board.say("training", place.announced, epoch=3, examples=41)
    assert place.spoken_of == [("training", 0), ("waiting", 0), ("training", 1), ("training", 2)]
    place.board.publish()
    assert place.spoken_of[-1] == ("training", 3), "what was not told is not lost: the next status has it"

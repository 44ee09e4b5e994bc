"""A round, or a command, that kills its trainer is given up before the nucleus gives up the trainer."""

from __future__ import annotations

import threading
from pathlib import Path

from components.trainer.attempts import Attempts
from fedgrass.protocol.messages import Command, Reply
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, THING, Place


def dies(place: Place, file: str) -> None:
    """Leave on the disk what a process leaves that is killed at its work."""
    attempts = place.folder / "work" / "attempts" / file
    left = attempts.read_bytes()
    place.stop()
    # Nothing of a process that was killed writes any more: here its thread must have ended first.
    place.until(lambda: not any(thread.name == "commands" for thread in threading.enumerate()), "ended")
    attempts.write_bytes(left)


def trains_and_dies(place: Place) -> None:
    place.start()
    place.until(lambda: place.trainer._status.state == "training", "training")
    dies(place, "round.json")


def test_the_second_death_in_a_round_is_the_last_and_the_round_is_declined(place: Place) -> None:
    QuickEngine.allowed = 0
    place.start()
    place.open(place.announcement())
    place.until(lambda: place.trainer._status.state == "training", "training")
    dies(place, "round.json")
    trains_and_dies(place)
    place.start()
    place.settle()
    [notice] = place.notices
    assert notice.status == "declined"
    assert "died twice in training, last together with the trainer itself" in notice.reason
    QuickEngine.allowed = 1000
    place.open(place.announcement(2))
    place.settle()
    assert [(one.round, one.status) for one in place.notices] == [(1, "declined"), (2, "uploaded")]


def test_stops_reboots_and_one_death_are_no_reason_to_give_up(place: Place) -> None:
    QuickEngine.allowed = 0
    place.start()
    place.open(place.announcement())
    place.until(lambda: place.trainer._status.state == "training", "training")
    for _ in range(3):
        place.stop()
        place.start()
        place.until(lambda: place.trainer._status.state == "training", "training")
    dies(place, "round.json")
    place.start()
    QuickEngine.allowed = 1000
    place.settle()
    assert [notice.status for notice in place.notices] == ["uploaded"]


def test_attempts_are_counted_for_one_piece_of_work_in_one_boot(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    assert Attempts(path, boot="a").begins("one") == 0
    assert Attempts(path, boot="a").begins("one") == 1
    assert Attempts(path, boot="b").begins("one") == 1, "a reboot is no death"
    rested = Attempts(path, boot="b")
    assert rested.begins("one") == 2
    rested.rests()
    assert Attempts(path, boot="b").begins("one") == 2
    assert Attempts(path, boot="b").begins("two") == 0
    path.write_text("damaged")
    assert Attempts(path, boot="b").begins("two") == 0


def test_a_command_that_kills_the_trainer_twice_is_answered_and_not_done_again(place: Place) -> None:
    QuickEngine.allowed = 0
    topic = f"fedgrass/{FLEET}/devices/{THING}/command"
    command = Command(fleet=FLEET, thing=THING, id="a1", kind="fit", bucket="bucket")
    file = place.folder / "work" / "attempts" / "command.json"
    place.start()
    place.ipc.from_cloud(topic, command.encode())
    place.until(file.exists, "begun")
    dies(place, "command.json")
    place.start()
    place.until(lambda: '"deaths":1' in file.read_text(), "begun again")
    dies(place, "command.json")
    place.start()
    replies = place.until(
        lambda: [Reply.decode(payload) for name, payload in place.ipc.cloud if name.endswith("/reply")], "answered"
    )
    assert [(reply.id, reply.status) for reply in replies] == [("a1", "failed")]
    assert "died twice at this command" in replies[0].reason
    QuickEngine.allowed = 1000

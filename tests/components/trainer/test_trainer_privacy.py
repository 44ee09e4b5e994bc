"""What a device does not tell, whatever it is asked: its account, its floors, its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedgrass import tensors
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.messages import Command, FitTask, Reply, UpdateTask
from fedgrass.protocol.names import device_topic
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, THING, Place

NOISY = UpdateTask(clip_norm=1.0, noise_multiplier=1.0)


def place_with(folder: Path, **trainer: Any) -> Place:
    QuickEngine.reset()
    place = Place(folder, **trainer)
    place.have_model()
    place.start()
    return place


def answered(place: Place, kind: str, **fields: Any) -> Reply:
    sent = Command(fleet=FLEET, thing=THING, id=f"{kind}-{len(place.ipc.cloud)}", kind=kind, bucket="bucket", **fields)
    place.ipc.from_cloud(device_topic(FLEET, THING, "command"), sent.encode())

    def found() -> list[Reply]:
        replies = (Reply.decode(payload) for topic, payload in place.ipc.cloud if topic.endswith("/reply"))
        return [reply for reply in replies if reply.id == sent.id]

    place.until(found, "an answer")
    return found()[0]


def test_rounds_beyond_the_device_s_own_limit_are_declined_also_after_a_restart(tmp_path: Path) -> None:
    place = place_with(tmp_path, maxEpsilon="12")
    place.open(place.announcement(1, update=NOISY))  # ε 10 at 1e-5
    place.settle()
    place.stop()
    place.start()
    place.open(place.announcement(2, update=NOISY))
    place.settle()
    place.open(place.announcement(3))
    place.settle()
    first, second, third = place.notices
    assert first.status == "uploaded"
    assert (second.status, third.status) == ("declined", "declined")
    assert "on this device, maxEpsilon is 12 (1 rounds are spent)" in second.reason
    assert "1 rounds with noise, and one without it would undo them" in third.reason
    assert "1 rounds with noise" in answered(place, "fit").reason
    place.stop()
    assert (tmp_path / "work" / "privacy.json").exists()


def test_an_owner_may_limit_what_is_told_under_noise_that_the_cloud_only_promises(tmp_path: Path) -> None:
    place = place_with(tmp_path, maxPromisedEpsilon="12")
    for number, promised in enumerate((1.0, 1.0, None), start=1):
        place.open(place.announcement(number).model_copy(update={"promised_noise": promised}))
        place.settle()
    first, second, third = place.notices
    assert [one.status for one in place.notices] == ["uploaded", "declined", "declined"], first.reason
    assert "maxPromisedEpsilon is 12 (1 rounds are spent)" in second.reason
    assert "no ε is finite" in third.reason
    assert "maxPromisedEpsilon is 12" in answered(place, "evaluate").reason
    place.stop()


@pytest.mark.parametrize(
    ("own", "fit", "told"),
    [
        ({}, FitTask(max_examples=1), "on 1 examples (fit.max_examples 1, 40 on this device), minExamples is 8"),
        ({}, FitTask(max_examples=7), "on 7 examples"),
        ({"minExamples": "41"}, FitTask(), "on 40 examples (40 on this device), minExamples is 41"),
        ({"minSteps": "99"}, FitTask(epochs=2), "minSteps is 99"),
        ({"minSteps": "2"}, FitTask(max_examples=16), "minSteps is 2"),
        # All other classes count for nothing: what is left is the examples of one.
        ({}, FitTask(class_weight={str(digit): 0.0 for digit in range(1, 10)}), "minExamples is 8"),
        ({}, FitTask(class_weight={"0": 1e6}), "minExamples is 8"),
        ({}, FitTask(max_examples=8), ""),
        ({"minExamples": "1"}, FitTask(max_examples=1), ""),
    ],
)
def test_a_device_does_not_train_on_less_than_its_owner_allows(
    tmp_path: Path, own: dict[str, str], fit: FitTask, told: str
) -> None:
    place = place_with(tmp_path, **own)
    place.open(place.announcement(fit=fit))
    place.settle()
    [notice] = place.notices
    assert (notice.status, told in notice.reason) == ("declined" if told else "uploaded", True)
    reply = answered(place, "fit", fit=fit)
    assert (reply.status, told in reply.reason) == ("refused" if told else "done", True)
    place.stop()


def test_an_owner_says_which_commands_are_done(tmp_path: Path) -> None:
    place = place_with(tmp_path, allowedCommands="evaluate, get_parameters")
    assert answered(place, "get_parameters").status == "done"
    refused = answered(place, "fit")
    assert (refused.status, refused.reason) == (
        "refused",
        "this device does not do fit (allowedCommands: evaluate,get_parameters)",
    )
    place.stop()


def test_a_command_that_does_not_exist_cannot_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no command 'fits'; there are evaluate, fit, "):
        place_with(tmp_path, allowedCommands="fits")


@pytest.mark.parametrize("update", [NOISY, UpdateTask(clip_norm=1.0, figures="left_out"), UpdateTask()])
def test_no_figure_of_the_data_goes_beside_an_update_where_it_is_left_out(tmp_path: Path, update: UpdateTask) -> None:
    place = place_with(tmp_path)
    place.until(lambda: place.statuses[-1].examples == 40, "counted")
    place.open(place.announcement(update=update))
    place.settle()
    [notice] = place.notices
    file, header = tmp_path / "update", place.streams.s3[notice.key or ""]
    file.write_bytes(header)
    _, metadata = tensors.load(file)
    told = (notice.num_examples, metadata["num_examples"], place.statuses[-1].examples)
    if not update.hides_figures:
        assert told == (40, "40", 40)
        assert notice.metrics
        return
    assert told == (1, "1", 0)
    assert (notice.metrics, metadata["metrics"], notice.seconds_train) == ({}, "{}", 0.0)
    assert place.statuses[-1].tally.training_seconds == 0
    place.stop()
    place.start()
    assert place.statuses[-1].examples == 0  # also what a new process says
    place.stop()

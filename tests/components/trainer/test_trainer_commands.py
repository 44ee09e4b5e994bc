"""Commands to one device: each is done, answered once by its id, and bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS
from fedgrass.edge.commands import MAX_WAITING
from fedgrass.files import sha256_of
from fedgrass.personal import Own
from fedgrass.protocol.device_messages import ApplicationStatus
from fedgrass.protocol.messages import Command, FitTask, Reply, UpdateTask
from fedgrass.protocol.names import APPLICATION_TOPIC, command_key, device_topic
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, THING, Place
from tests.fedgrass.edge import digits
from tests.fedgrass.partly_local import partly_local

TOPIC = device_topic(FLEET, THING, "command")


def command(place: Place, number: str, kind: str, **fields: Any) -> None:
    """Send one."""
    sent = Command(**{"fleet": FLEET, "thing": THING, "id": number, "kind": kind, "bucket": "bucket", **fields})
    place.ipc.from_cloud(TOPIC, sent.encode())


def replies(place: Place) -> list[Reply]:
    return [Reply.decode(payload) for topic, payload in place.ipc.cloud if topic.endswith("/reply")]


def answer(place: Place, count: int = 1) -> Reply:
    """Wait for so many answers in all and return the last."""
    place.until(lambda: len(replies(place)) >= count, f"{count} answers")
    assert len(replies(place)) == count
    return replies(place)[-1]


def test_get_parameters_gives_the_active_model_s_by_key_and_digest(place: Place) -> None:
    place.start()
    command(place, "one", "get_parameters")
    reply = answer(place)
    assert (reply.status, reply.id, reply.kind) == ("done", "one", "get_parameters")
    assert reply.key == command_key(FLEET, THING, "one")
    assert place.streams.s3[reply.key] == place.bundle.path(PARAMETERS).read_bytes()
    assert reply.sha256 == sha256_of(place.bundle.path(PARAMETERS))
    assert reply.bytes == len(place.streams.s3[reply.key])


def test_set_parameters_holds_for_the_commands_that_follow(place: Place, tmp_path: Path) -> None:
    other = digits.version(tmp_path / "other", "1.5.0", digits.random())
    place.s3.hold(other)
    place.start()
    command(place, "set", "set_parameters", base=digits.base_of(other, FLEET))
    assert answer(place).version == "1.5.0"
    place.stop()
    place.start()
    command(place, "get", "get_parameters")
    reply = answer(place, 2)
    assert reply.version == "1.5.0"
    assert place.streams.s3[reply.key or ""] == other.path(PARAMETERS).read_bytes()
    active = place.store.active()
    assert active is not None
    assert active.manifest.version == place.bundle.manifest.version  # the application's model is ModelDeployer's


def test_fit_trains_and_gives_its_parameters_and_evaluate_its_metrics(place: Place, tmp_path: Path) -> None:
    place.start()
    command(place, "fit", "fit", fit=FitTask(epochs=2))
    reply = answer(place)
    assert (reply.status, reply.num_examples, reply.metrics) == ("done", 40, {"loss": 0.5})
    (tmp_path / "p").write_bytes(place.streams.s3[reply.key or ""])
    found, _ = tensors.load(tmp_path / "p")
    for name, value in place.bundle.parameters().items():
        assert np.allclose(found[name], value + 2)
    command(place, "evaluate", "evaluate")
    reply = answer(place, 2)
    assert (reply.status, reply.metrics["accuracy"], reply.num_examples) == ("done", 0.5, 10)


def test_commands_use_what_the_device_keeps_for_itself_and_give_none_of_it(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path)
    place.bundle = partly_local(place.bundle, tmp_path / "head", "head")
    local = {parameter.name for parameter in place.bundle.manifest.local_parameters}
    before = place.bundle.parameters()
    Own.of(place.bundle.manifest, place.store.device.own, "round").keep(
        {name: value + 7 for name, value in before.items()}
    )
    place.have_model()
    place.start()
    for number, kind in enumerate(("get_parameters", "fit"), 1):
        command(place, kind, kind, **({"fit": FitTask(epochs=2)} if kind == "fit" else {}))
        reply = answer(place, number)
        assert reply.status == "done", reply.reason
        (tmp_path / "p").write_bytes(place.streams.s3[reply.key or ""])
        found, _ = tensors.load(tmp_path / "p")
        trained = 2 if kind == "fit" else 0
        assert list(found) == list(before)
        assert all(np.allclose(found[n], v + (0 if n in local else trained)) for n, v in before.items())
    assert all(
        np.allclose(v, before[n] + 7) for n, v in Own.of(place.bundle.manifest, place.store.device.own).values.items()
    )
    place.stop()


def test_an_id_is_answered_once_also_over_restarts(place: Place) -> None:
    place.start()
    for _ in range(3):
        command(place, "one", "evaluate")
    answer(place)
    place.stop()
    place.start()
    command(place, "one", "evaluate")
    command(place, "two", "evaluate")
    answer(place, 2)
    assert [reply.id for reply in replies(place)] == ["one", "two"]


def test_a_command_that_a_kill_cut_short_is_done_after_the_restart(place: Place) -> None:
    QuickEngine.allowed = 0
    place.start()
    command(place, "fit", "fit", fit=FitTask(epochs=2))
    folder = place.folder / "work" / "commands"
    place.until(lambda: list(folder.glob("*.json")), "kept")
    place.stop()
    assert replies(place) == []
    QuickEngine.allowed = 1000
    place.start()
    assert answer(place).status == "done"
    place.until(lambda: not list(folder.glob("*.json")), "forgotten")


def test_what_is_not_for_this_device_or_makes_no_sense_does_nothing(place: Place) -> None:
    place.start()
    command(place, "a", "evaluate", thing="thing-2")
    command(place, "b", "evaluate", fleet="g")
    place.ipc.from_cloud(TOPIC, b"{")
    place.ipc.from_cloud(TOPIC, b'{"schema": 2}')
    command(place, "c", "roll_back")  # the model deployer's
    command(place, "d", "evaluate")
    answer(place)
    assert [reply.id for reply in replies(place)] == ["d"]


@pytest.mark.parametrize(
    ("kind", "fields", "status", "word"),
    [
        ("format_disk", {}, "refused", "not known"),
        ("set_parameters", {}, "refused", "base"),
        ("get_parameters", {"bucket": ""}, "refused", "bucket"),
        ("fit", {"base": "foreign"}, "refused", "models"),
        ("fit", {"base": "absent"}, "failed", "does not exist"),
    ],
)
def test_a_command_that_cannot_be_done_is_answered_with_the_reason(
    place: Place, kind: str, fields: dict[str, Any], status: str, word: str
) -> None:
    base = digits.base_of(place.bundle, FLEET)
    if fields.get("base") == "foreign":
        fields = {"base": base.model_copy(update={"parameters_key": "models/other/1.0.0/parameters.safetensors"})}
    elif fields.get("base") == "absent":
        fields = {"base": base.model_copy(update={"parameters_sha256": "0" * 64})}
    place.start()
    command(place, "x", kind, **fields)
    reply = answer(place)
    assert reply.status == status
    assert word in reply.reason


def test_a_flood_of_commands_is_bounded(place: Place) -> None:
    QuickEngine.allowed = 0
    place.start()
    for number in range(MAX_WAITING + 5):
        command(place, f"c{number}", "fit")
    place.until(lambda: len(replies(place)) == 5, "the surplus refused")
    assert {reply.status for reply in replies(place)} == {"refused"}


def test_an_owner_may_switch_commands_off(tmp_path: Path) -> None:
    place = Place(tmp_path, allowCommands="false")
    place.start()
    command(place, "a", "fit")
    assert "allowCommands" in answer(place).reason
    place.stop()


NOISY = UpdateTask(clip_norm=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize("kind", ["fit", "evaluate"])
def test_a_device_whose_rounds_add_noise_tells_nothing_exact_about_its_data(place: Place, kind: str) -> None:
    place.start()
    place.open(place.announcement(update=NOISY))
    place.settle()
    place.stop()
    place.start()
    command(place, "a", kind)
    reply = answer(place)
    assert (reply.status, reply.metrics, reply.num_examples, reply.key) == ("refused", {}, 0, None)
    assert "noise" in reply.reason
    command(place, "b", "get_parameters")  # the model is the fleet's, and tells nothing of this device's data
    assert answer(place, 2).status == "done"


@pytest.mark.parametrize(
    ("asked", "declined"),
    [
        ({}, True),
        ({"update": UpdateTask(clip_norm=1.0, noise_multiplier=0.5)}, True),
        ({"update": NOISY, "task": "evaluate"}, True),
        ({"update": NOISY}, False),
    ],
)
def test_an_owner_may_ask_for_noise_whatever_the_cloud_wants(
    tmp_path: Path, asked: dict[str, Any], declined: bool
) -> None:
    QuickEngine.reset()
    place = Place(tmp_path, minNoiseMultiplier="0.8")
    place.have_model()
    place.start()
    place.open(place.announcement(**asked))
    place.settle()
    [notice] = place.notices
    assert notice.status == ("declined" if declined else "uploaded")
    assert ("minNoiseMultiplier" in notice.reason) == declined
    command(place, "a", "fit")
    assert "minNoiseMultiplier" in answer(place).reason
    place.stop()


def test_a_round_waits_while_the_application_is_busy_and_says_why(place: Place) -> None:
    place.start()
    place.ipc.publish_local(APPLICATION_TOPIC, ApplicationStatus(busy=True).encode())
    place.open(place.announcement())
    waiting = place.until(
        lambda: place.statuses[-1].round == 1 and place.statuses[-1].reason and place.statuses[-1], "w"
    )
    assert (waiting.state, waiting.able) == ("waiting", False)
    assert "application" in waiting.reason
    assert QuickEngine.epochs == []
    place.ipc.publish_local(APPLICATION_TOPIC, ApplicationStatus(busy=False).encode())
    place.settle()
    assert [notice.status for notice in place.notices] == ["uploaded"]
    assert place.statuses[-1].tally.taken == 1


def test_a_round_is_declined_when_the_wait_is_over(tmp_path: Path) -> None:
    QuickEngine.reset()
    place = Place(tmp_path, waitSeconds="0.1")
    place.have_model()
    place.start()
    place.ipc.publish_local(APPLICATION_TOPIC, ApplicationStatus(busy=True).encode())
    place.open(place.announcement())
    place.settle()
    [notice] = place.notices
    assert notice.status == "declined"
    assert "application" in notice.reason
    place.stop()

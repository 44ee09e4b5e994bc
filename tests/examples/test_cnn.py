"""The PyTorch example: devices get its code with the bundle, and answer the four commands. Run by scripts/torch_tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.cnn import model
from fedgrass import tensors
from fedgrass.builder_archive import add_builder, builder_sha256, pack_builder
from fedgrass.bundle import Bundle
from fedgrass.engines.shipped import import_from
from fedgrass.inference import write_bundle
from fedgrass.protocol.messages import Command, FitTask, Reply
from fedgrass.protocol.names import RUNTIME, device_topic
from tests.components.trainer.place import FLEET, THING, Place
from tests.fedgrass.edge import digits


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    pytest.importorskip("torch")
    code = tmp_path / "shapes_model.py"
    code.write_bytes(Path(model.__file__).read_bytes())
    made = Place(tmp_path, engine="torch")
    made.bundle = add_builder(model.write_first_bundle(tmp_path / "bundle"), pack_builder(code))
    x, y = model.images(100, seed=1)
    np.savez(tmp_path / "images.npz", x=x, y=y)
    made.ipc.configurations[RUNTIME] |= {
        "builders": {builder_sha256(made.bundle): "shapes_model:build"},
        "data": {"path": str(tmp_path / "images.npz"), "validationFraction": "0.2"},
    }
    made.have_model()
    yield made
    made.stop()
    import_from(None)


def test_torch_clients_answer_the_four_commands_over_mqtt_with_accuracy_and_loss(place: Place, tmp_path: Path) -> None:
    def ask(kind: str, **fields: Any) -> Reply:
        known = len(replies())
        command = Command(fleet=FLEET, thing=THING, id=f"c{known}", kind=kind, bucket="bucket", **fields)
        place.ipc.from_cloud(device_topic(FLEET, THING, "command"), command.encode())
        place.until(lambda: len(replies()) > known, kind)
        reply = replies()[-1]
        assert (reply.kind, reply.status) == (kind, "done"), reply.reason
        return reply

    def replies() -> list[Reply]:
        return [Reply.decode(payload) for topic, payload in place.ipc.cloud if topic.endswith("/reply")]

    place.start()
    place.until(lambda: place.statuses and place.statuses[-1].examples == 80, "counted")
    assert place.statuses[-1].able, place.statuses[-1].reason
    first = ask("get_parameters")
    assert place.streams.s3[str(first.key)] == place.bundle.path("parameters.safetensors").read_bytes()
    before = ask("evaluate")
    trained = ask("fit", fit=FitTask(epochs=12, learning_rate=0.05))
    assert trained.metrics["loss"] < before.metrics["loss"]
    path = tmp_path / "trained.safetensors"
    path.write_bytes(place.streams.s3[str(trained.key)])
    better = write_bundle(place.bundle, tensors.load(path)[0], tmp_path / "better", version="1.1.0")
    hold(place, better)
    ask("set_parameters", base=digits.base_of(better, FLEET))
    after = ask("evaluate")
    assert after.metrics["loss"] < 0.8 * before.metrics["loss"]
    assert after.metrics["accuracy"] > max(0.5, before.metrics["accuracy"])


def hold(place: Place, bundle: Bundle) -> None:
    for name in (*bundle.manifest.files, "model.json"):
        place.s3.objects[f"models/{FLEET}/{bundle.manifest.version}/{name}"] = bundle.path(name).read_bytes()

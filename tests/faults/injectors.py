"""The faults, each a function that does its harm to one device, makes it good again, and says how that went."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.release import release_model
from fedgrass.errors import FedgrassError
from fedgrass.inference import write_bundle
from fedgrass.protocol import tables
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.names import GLOBAL_MODEL, HEARTBEAT, MODEL_DEPLOYER, TRAINER, device_topic, round_topic
from tests.faults.fleet import FaultyFleet
from tests.faults.proxy import Mode
from tests.faults.rounds import Rounds
from tests.fixtures.waiting import PATIENCE, eventually

Inject = Callable[["Place", str], str]
"""Does its harm to one device; returns the outcome in a word or two."""


class Place:
    """A running fleet with rounds going on, and the means to harm it."""

    def __init__(self, fleet: FaultyFleet, rounds: Rounds, folder: Path, seed: int) -> None:
        self.fleet = fleet
        self.rounds = rounds
        self.folder = folder
        self.random = random.Random(seed)
        self.deploying = threading.Lock()
        self.heard: list[tuple[str, bytes]] = []
        self._mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="faults")
        self._mqtt.on_message = lambda _client, _data, message: self.heard.append(
            (message.topic, bytes(message.payload))
        )
        self._mqtt.on_connect = lambda client, *_: client.subscribe(f"fedgrass/{fleet.fleet}/#", 1)
        host, _, port = fleet.aws.mqtt.rpartition(":")
        self._mqtt.connect(host, int(port))
        self._mqtt.loop_start()

    def close(self) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()

    def publish(self, topic: str, payload: bytes) -> None:
        self._mqtt.publish(topic, payload, qos=1).wait_for_publish(PATIENCE)

    def work(self, thing: str) -> Path:
        return self.fleet.devices[thing].greengrass_root / "work" / TRAINER

    def moment(self, most: float = 0.5) -> None:
        """Let a random moment pass: a fault must not come at one point of the work only."""
        time.sleep(self.random.uniform(0, most))

    def while_training(self, thing: str, seconds: float = 10.0) -> bool:
        """Wait until the device is in the middle of a training; False if it does not come to that."""
        with suppress(AssertionError):
            return eventually((self.work(thing) / "checkpoint.safetensors").exists, timeout=seconds)
        return False

    def while_uploading(self, thing: str, seconds: float = 10.0) -> bool:
        with suppress(AssertionError):
            return bool(eventually(lambda: list(self.work(thing).glob("uploads/*/upload.json")), timeout=seconds))
        return False


def kill(name: str) -> Inject:
    def inject(place: Place, thing: str) -> str:
        place.fleet.kill(thing, name)
        return "running again"

    return inject


def kill_core_device(place: Place, thing: str) -> str:
    place.fleet.kill_device(thing)
    place.fleet.running(thing, TRAINER)
    return "running again"


def stop_the_account(place: Place, thing: str) -> str:
    """An outage, not a crash: the local AWS keeps its state in memory, so a kill would lose what the real one never does."""
    process = psutil.Process(place.fleet.aws.process.pid)
    with place.deploying:
        family = [process, *process.children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        place.moment(2.0)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.resume()
    return "went on"


def link(
    mode: Mode, *, when: Callable[[Place, str], bool] | None = None, broker: bool = False, seconds: float = 2.0
) -> Inject:
    """Trouble between a device and the account, at a time of the device's work."""

    def inject(place: Place, thing: str) -> str:
        timely = when is None or when(place, thing)
        place.fleet.endpoint_of[thing].mode = mode
        if broker:
            place.fleet.broker_of[thing].mode = mode
        place.moment(seconds)
        place.fleet.endpoint_of[thing].mode = "pass"
        place.fleet.broker_of[thing].mode = "pass"
        return "healed" if timely else "healed; not at that point"

    return inject


def drop_ipc(place: Place, thing: str) -> str:
    place.fleet.drop_ipc(thing)
    return "dropped"


def fill_the_disk(place: Place, thing: str) -> str:
    """No write of the trainer gets through, as on a full disk (the limit on file size: there is no small disk to fill)."""
    process = place.fleet.running(thing, TRAINER)
    with suppress(psutil.NoSuchProcess):
        process.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))
        place.moment(2.0)
        process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    return "went on"


def jump_the_clock(place: Place, thing: str) -> str:
    """The device's clock moves by hours while its trainer is down: what it wrote of the time is that much off."""
    hours = place.random.choice((-5, 5, 24 * 365))
    file = place.work(thing) / "round.json"
    process = place.fleet.running(thing, TRAINER)
    with suppress(psutil.NoSuchProcess):
        process.kill()
    with suppress(OSError, ValueError):
        record = json.loads(file.read_text())
        record["received_at"] += hours * 3600
        file.write_text(json.dumps(record))
    place.fleet.running(thing, TRAINER, other_than=process.pid)
    return "running again"


def repeat_messages(place: Place, thing: str) -> str:
    """Every message of the device's and of the rounds' so far, again, in another order; a stale announcement among them."""
    fleet = place.fleet.fleet
    topics = {device_topic(fleet, thing, "update"), device_topic(fleet, thing, "model"), round_topic(fleet)}
    again = [(topic, payload) for topic, payload in place.heard[-200:] if topic in topics and payload][-12:]
    place.random.shuffle(again)
    for topic, payload in again:
        place.publish(topic, payload)
    return "sent"


def spoil_the_checkpoint(place: Place, thing: str) -> str:
    timely = place.while_training(thing)
    process = place.fleet.running(thing, TRAINER)
    with suppress(psutil.NoSuchProcess):
        process.kill()
    file = place.work(thing) / "checkpoint.safetensors"
    if file.exists():
        content = bytearray(file.read_bytes())
        for _ in range(50):
            content[place.random.randrange(len(content))] ^= 0xFF
        file.write_bytes(bytes(content[: place.random.choice((None, len(content) // 2))]))
    place.fleet.running(thing, TRAINER, other_than=process.pid)
    return "running again" if timely else "running again; there was none"


def _poisoned(place: Place, number: int) -> Bundle:
    [device, *_] = place.fleet.devices.values()
    good = Bundle.open((device.store / "active").resolve())
    noise = np.random.default_rng(number)
    values = {name: noise.normal(size=array.shape).astype(np.float32) for name, array in good.parameters().items()}
    return write_bundle(good, values, place.folder / f"poisoned-{number}", version=f"1.{900_000 + number}.0")


def _deployed_model(place: Place, version: str | None = None) -> tuple[Any, dict[str, Any]]:
    greengrass, target = place.fleet.aws.client("greengrassv2"), place.fleet.outputs.thing_group_arn
    [latest] = greengrass.list_deployments(targetArn=target, historyFilter="LATEST_ONLY")["deployments"]
    components = greengrass.get_deployment(deploymentId=latest["deploymentId"])["components"]
    if version is not None:
        components[GLOBAL_MODEL]["componentVersion"] = version
    return greengrass, components


def _current(place: Place) -> str:
    model = tables.load_state(place.rounds.demo.rounds_table, place.fleet.fleet).model
    assert model is not None
    return model.version


def _outcomes(place: Place, version: str) -> str:
    """Wait for a device's word on a version, and say what it was."""

    def told() -> set[str]:
        members = fleet_members(place.rounds.demo.devices_table, place.fleet.fleet)
        return {m.model.outcome for m in members if m.model is not None and m.model.version == version}

    try:
        return " and ".join(sorted(eventually(told, timeout=40)))
    except AssertionError:
        return "superseded before a device took it up"


def deploy_a_bad_model(place: Place, thing: str) -> str:
    """One that knows nothing, deployed past the gate; its operator then takes it back."""
    with place.deploying:
        bundle = _poisoned(place, len(list(place.folder.glob("poisoned-*"))))
        with suppress(FedgrassError):
            release_model(bundle, place.rounds.demo.clients())

        outcomes = _outcomes(place, bundle.manifest.version)
        greengrass, components = _deployed_model(place, _current(place))
        greengrass.create_deployment(targetArn=place.fleet.outputs.thing_group_arn, components=components)
    return outcomes


def spoil_an_artifact(place: Place, thing: str) -> str:
    """A model's file changed in S3 after its component was made: the digest in the recipe does not match."""
    with place.deploying:
        bundle = _poisoned(place, len(list(place.folder.glob("poisoned-*"))))
        clients = place.rounds.demo.clients()
        real = clients.greengrass.create_deployment
        key = f"models/{place.fleet.fleet}/{bundle.manifest.version}/inference.tflite"

        def spoil(**request: Any) -> Any:
            place.fleet.aws.client("s3").put_object(Bucket=place.fleet.outputs.bucket, Key=key, Body=b"spoilt")
            return real(**request)

        vars(clients.greengrass)["create_deployment"] = spoil
        with suppress(FedgrassError):
            release_model(bundle, clients)
        place.moment(3.0)
        greengrass, components = _deployed_model(place, _current(place))
        greengrass.create_deployment(targetArn=place.fleet.outputs.thing_group_arn, components=components)
    members = fleet_members(place.rounds.demo.devices_table, place.fleet.fleet)
    reached = any(m.model is not None and m.model.active_version == bundle.manifest.version for m in members)
    return "became active" if reached else "became active nowhere"


def deploy_twice(place: Place, thing: str) -> str:
    """Two deployments at once, by two people."""
    with place.deploying:
        greengrass, components = _deployed_model(place)
        target = place.fleet.outputs.thing_group_arn
        threads = [
            threading.Thread(target=lambda: greengrass.create_deployment(targetArn=target, components=components))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return "made"


def stop_stream_manager(place: Place, thing: str) -> str:
    """It hangs instead of dying."""
    process = place.fleet.running(thing, "Stream Manager")
    with suppress(psutil.NoSuchProcess):
        os.kill(process.pid, signal.SIGSTOP)
        place.moment(3.0)
        os.kill(process.pid, signal.SIGCONT)
    return "went on"


FAULTS: dict[str, Inject] = {
    "kill -9 of the trainer": kill(TRAINER),
    "kill -9 of the model deployer": kill(MODEL_DEPLOYER),
    "kill -9 of the heartbeat": kill(HEARTBEAT),
    "kill -9 of Stream Manager": kill("Stream Manager"),
    "kill -9 of the core device": kill_core_device,
    "Stream Manager hangs": stop_stream_manager,
    "outage of the local AWS (stopped, continued)": stop_the_account,
    "network cut before upload": link("cut", when=Place.while_training, broker=True),
    "network cut during upload": link("cut", when=Place.while_uploading, broker=True),
    "network cut after upload (answers lost)": link("lose_answers", when=Place.while_uploading),
    "MQTT link cut": link("cut", broker=True, seconds=1.0),
    "S3 and others answer 500": link("error", when=Place.while_uploading),
    "S3 and others throttle (503)": link("throttle", when=Place.while_uploading),
    "slow link": link("slow"),
    "IPC connections dropped": drop_ipc,
    "disk full (no write succeeds)": fill_the_disk,
    "clock jumps": jump_the_clock,
    "MQTT messages repeated, reordered, replayed": repeat_messages,
    "checkpoint corrupted": spoil_the_checkpoint,
    "artifact corrupted": spoil_an_artifact,
    "bad model": deploy_a_bad_model,
    "two deployments at once": deploy_twice,
}
KILLS = frozenset(name for name in FAULTS if name.startswith("kill -9"))

"""Two devices: each answers a round once, and says what became of each model; a slow one ends what it began before."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedgrass.protocol.message import Message
from fedgrass.protocol.messages import Announcement, ModelNotice, UpdateNotice
from fedgrass.protocol.names import (
    GLOBAL_MODEL,
    DeviceChannel,
    device_topic,
    update_key,
)
from fedgrass.protocol.records import ModelOutcome
from tests.explorer.files import update
from tests.explorer.scenario import FIRST, FLEET, THINGS

if TYPE_CHECKING:
    from tests.explorer.world import World


class Devices:
    def __init__(self, world: World) -> None:
        self._world = world
        self._answered: set[tuple[str, int, str]] = set()
        self._at_work: dict[str, Announcement] = {}

    def announced(self, payload: bytes) -> None:
        """Take in what the round's topic says."""
        if not payload:
            return
        announcement = Announcement.decode(payload)
        for thing in THINGS:
            if announcement.compare is not None:
                self._once(f"judged {announcement.opened_at}", announcement.round, thing, self._judge(announcement))
            elif announcement.task == "fit" and thing in self._world.schedule.scenario.slow:
                self._slowly(thing, announcement)
            elif announcement.task == "fit":
                self._once("trained", announcement.round, thing, self._train(announcement))

    def _slowly(self, thing: str, newest: Announcement) -> None:
        """End the round at hand, and begin with the newest."""
        at_hand = self._at_work.get(thing)
        if at_hand is not None and at_hand.round < newest.round <= at_hand.round + at_hand.max_age:
            self._once("trained", at_hand.round, thing, self._train(at_hand))
        self._at_work[thing] = newest

    def _once(self, what: str, number: int, thing: str, act: Callable[[str], None]) -> None:
        if (what, number, thing) not in self._answered:
            self._answered.add((what, number, thing))
            act(thing)

    def _train(self, announcement: Announcement) -> Callable[[str], None]:
        def act(thing: str) -> None:
            content = update(thing, announcement.round, announcement.base.parameters_sha256)
            key = update_key(FLEET, announcement.round, thing)
            self._world.objects.objects[key] = (content, {})
            notice = UpdateNotice(
                fleet=FLEET,
                round=announcement.round,
                thing=thing,
                status="uploaded",
                opened_at=announcement.opened_at,
                key=key,
                bytes=len(content),
                num_examples=10,
            )
            self._say(thing, "update", notice, "record_update")

        return act

    def _judge(self, announcement: Announcement) -> Callable[[str], None]:
        metrics = {"loss": 0.4, "accuracy": 0.9, "base_loss": 0.5, "base_accuracy": 0.8}

        def act(thing: str) -> None:
            fields = {"fleet": FLEET, "round": announcement.round, "thing": thing, "status": "evaluated"}
            answer = {**fields, "opened_at": announcement.opened_at, "num_examples": 10, "metrics": metrics}
            notice = UpdateNotice.model_validate(answer)
            self._say(thing, "update", notice, "record_update")

        return act

    def deployed(self, deployment: dict[str, Any]) -> None:
        """Take a deployment's model, or refuse it."""
        version = deployment["components"].get(GLOBAL_MODEL, {}).get("componentVersion", FIRST)
        if version == FIRST or len(self._world.greengrass.deployments) < 2:
            return
        for thing in self._world.greengrass.core_devices[deployment["targetArn"]]:
            outcome: ModelOutcome = "refused" if version == self._world.schedule.scenario.refused else "active"
            notice = ModelNotice(fleet=FLEET, thing=thing, version=version, outcome=outcome)
            self._say(thing, "model", notice, "record_model")

    def _say(self, thing: str, channel: DeviceChannel, message: Message, module: str) -> None:
        self._world.event(
            module,
            {
                "topic": device_topic(FLEET, thing, channel),
                "payload": base64.b64encode(message.encode()).decode(),
                "received_at": int(self._world.now().timestamp() * 1000),
            },
        )

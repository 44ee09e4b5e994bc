"""The helpers of a fleet: asked by a command each, and heard by the object that each uploads.

The set is written first, as an object for each helper; a command names it by key and digest. Commands are said again while one is
silent, as any command is: a helper that was off, or killed, finds it when it comes back, and does it once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.errors import TransferError
from fedgrass.logs import Log
from fedgrass.protocol.messages import Command
from fedgrass.protocol.names import command_key, device_topic, sum_request_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import Table, load_round
from fedgrass.secure.answer import answer_bytes
from fedgrass.secure.request import SumRequest

SUM = "sum"
_LOOK_SECONDS = 1.0
_REPEAT_SECONDS = 15.0
_BLOCK = 1 << 20


class FleetHelpers:
    """A round's helpers, seen from its job.

    Parameters
    ----------
    record, rounds, bucket, iot_data
        The round and its table, the fleet's bucket, and the client that publishes.
    scratch
        Folder for the answers.
    """

    def __init__(
        self,
        record: RoundRecord,
        rounds: Table,
        bucket: Bucket,
        iot_data: Any,
        scratch: Path,
        log: Log,
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._rounds = rounds
        self._bucket = bucket
        self._iot_data = iot_data
        self._scratch = scratch / "answers"
        self._log = log
        self._pause = pause
        self._clock = clock

    def ask(self, requests: Sequence[SumRequest]) -> Mapping[int, Path]:
        """Tell each helper the set, and wait until as many as are needed have answered, or their time is up."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        commands = [self._command(request) for request in requests]
        accepted, found = requests[0].accepted, dict[int, Path]()
        needed, seconds = accepted.task.needed, self._seconds()
        self._log.log_event(
            "helpers_asked",
            helpers=[command.thing for command in commands],
            devices=len(accepted.members),
            needed=needed,
        )
        end, said_at = self._clock() + seconds, -_REPEAT_SECONDS
        while True:
            for index, command in enumerate(commands):
                if index not in found and (path := self._answer(command, requests[index])) is not None:
                    found[index] = path
                    self._log.log_event("helper_answered", helper=command.thing)
            if len(found) >= needed or self._clock() >= end or not self._waited_for():
                return found
            if self._clock() - said_at >= _REPEAT_SECONDS:
                said_at = self._clock()
                self._say([command for index, command in enumerate(commands) if index not in found])
            self._pause(_LOOK_SECONDS)

    def _command(self, request: SumRequest) -> Command:
        record, name = self._record, request.accepted.task.helpers[request.helper].name
        content = request.encode()
        key = sum_request_key(record.fleet, record.round, name)
        self._bucket.write(key, content)
        return Command(
            fleet=record.fleet,
            thing=name,
            id=f"sum-{record.round:06d}-{request.accepted.digest[:16]}",
            kind=SUM,
            bucket=self._bucket.name,
            key=key,
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def _say(self, commands: Sequence[Command]) -> None:
        for command in commands:
            topic = device_topic(command.fleet, command.thing, "command")
            try:
                self._iot_data.publish(topic=topic, qos=1, payload=command.encode())
            except (ClientError, BotoCoreError) as error:  # said again soon
                self._log.log_event("helper_not_asked", helper=command.thing, reason=str(error))

    def _answer(self, command: Command, request: SumRequest) -> Path | None:
        """Return a helper's answer, downloaded; None if there is none yet. One of another size is none."""
        key = command_key(command.fleet, command.thing, command.id)
        size, expected = self._bucket.size(key), answer_bytes(request.accepted, request.helper)
        if size is None:
            return None
        if size != expected:
            self._log.log_event("helper_answer_refused", helper=command.thing, bytes=size, expected=expected)
            return None
        path = self._scratch / f"{request.helper}"
        with self._bucket.open(key, size) as body, path.open("wb") as file:
            while block := body.read(_BLOCK):
                file.write(block)
        return path if path.stat().st_size == expected else None

    def _seconds(self) -> float:
        secure = self._record.settings.secure
        return 0.0 if secure is None else float(secure.helper_seconds)

    def _waited_for(self) -> bool:
        """Whether the round still waits: it may have been cancelled."""
        try:
            now = load_round(self._rounds, self._record.fleet, self._record.round)
        except TransferError:
            return True
        return now.phase == "aggregating" and now.outcome is None

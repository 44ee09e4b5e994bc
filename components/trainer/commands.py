"""The operator's commands to this one device, done one after the other on a separate thread.

A command never runs beside a round's training: the runner does one piece of work at a time. A kill has it done again from the
start at the next one; it is answered once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Literal

from components.trainer.attempts import Attempts
from components.trainer.job import Settings
from components.trainer.runner import Runner
from components.trainer.task import Result
from fedgrass.edge.commands import Commands, answer_name
from fedgrass.edge.resource_policy import Pause, ResourcePolicy, UnavailableError
from fedgrass.edge.uploads import Upload, Uploads
from fedgrass.errors import MessageError, TransferError
from fedgrass.logs import Log
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Announcement, Command, Reply
from fedgrass.protocol.names import command_key, sum_command, sum_request_key

_TELL_OF_THE_DATA = frozenset({"fit", "evaluate"})
_GIVE_A_FILE = frozenset({"fit", "get_parameters", "sum"})
_STATUS: dict[str, Literal["done", "refused", "failed"]] = {"done": "done", "declined": "refused", "failed": "failed"}


class TrainerCommands:
    """Does the trainer's commands.

    Parameters
    ----------
    settings
        Asked for each command, as they change.
    attempts
        Where a command's deaths are counted.
    privacy
        Says why nothing exact about the data may be told, or nothing.
    """

    def __init__(
        self,
        commands: Commands,
        settings: Callable[[], Settings],
        uploads: Uploads,
        runner: Runner,
        guard: ResourcePolicy,
        attempts: Attempts,
        log: Log,
        *,
        privacy: Callable[[], str],
    ) -> None:
        self._commands = commands
        self._settings = settings
        self._uploads = uploads
        self._runner = runner
        self._guard = guard
        self._attempts = attempts
        self._log = log
        self._privacy = privacy
        self._stopping = threading.Event()
        self._todo: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    def start(self) -> None:
        """Take up what a former process left, and work."""
        for command in self._commands.waiting():
            # Done before the restart: its parameters are on their way, and the answer follows them.
            if not self._uploads.waits(answer_name(command.id)):
                self._todo.put(command)
        self._thread.start()

    def stop(self) -> None:
        """End after the batch at hand; what is not answered waits on disk."""
        self._stopping.set()
        self._todo.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the end; returns whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def received(self, payload: bytes) -> None:
        """Take a message from the command topic in."""
        command = self._commands.received(payload)
        if command is None:
            return
        own = self._settings().own
        if command.kind == "sum" and own.helper:  # its owner has agreed to sums, whatever else is allowed
            self._todo.put(command)
        elif not own.allow_commands:
            self._refuse(command, "this device takes no commands (allowCommands)")
        elif command.kind not in own.allowed_commands.split(","):
            self._refuse(command, f"this device does not do {command.kind} (allowedCommands: {own.allowed_commands})")
        else:
            self._todo.put(command)

    def _refuse(self, command: Command, reason: str) -> None:
        self._commands.answer(self._commands.reply(command, "refused", reason))

    def asked_to_sum(self, payload: bytes) -> bool:
        """Take an announcement to helpers in, as a command to this device if it is one of them; returns whether it is such."""
        try:
            announcement = Announcement.decode(payload)
        except MessageError:
            return False
        if announcement.task != "sum" or announcement.sums is None:
            return False
        settings, sums = self._settings(), announcement.sums
        fleet, thing = settings.runtime.fleet, settings.thing
        # An announcement becomes a command of this device, so that repetition, refusal and answer are those of any
        # other.
        if announcement.fleet == fleet and thing in sums.requests:
            command = Command(
                fleet=fleet,
                thing=thing,
                id=sum_command(announcement.round, sums.digest),
                kind="sum",
                bucket=announcement.upload.bucket,
                key=sum_request_key(fleet, announcement.round, thing),
                sha256=sums.requests[thing],
            )
            self.received(command.encode())
        return True

    def uploaded(self, upload: Upload, outcome: Literal["uploaded", "failed"], reason: str) -> None:
        """Answer the command whose parameters were uploaded, or could not be; runs on the uploads' thread.

        Parameters
        ----------
        upload
            The upload, with the answer that waited for it.
        outcome
            What became of it.
        reason
            Why it failed, in words.
        """
        reply = Reply.decode(upload.message.encode())
        if outcome == "failed":
            reply = reply.model_copy(update={"status": "failed", "reason": reason, "key": None, "sha256": None})
        self._commands.answer(reply)

    def _run(self) -> None:
        while (command := self._todo.get()) is not None and not self._stopping.is_set():
            result = self._result(command)
            # The component leaves: the command waits on disk, and is done at the next start.
            if result.status == "stopped":
                continue
            try:
                self._answer(command, result)
            except (TransferError, MessageError) as error:
                self._commands.answer(self._commands.reply(command, "failed", str(error)))

    def _result(self, command: Command) -> Result:
        if objection := self._objection(command):
            return Result(status="declined", reason=as_reason(objection))
        settings = self._settings()
        pause = Pause(self._guard, settings.own.wait_seconds, lambda _reason: None)
        if command.kind == "fit":
            try:
                pause(self._stopping)
            except UnavailableError as error:
                return Result(status="declined", reason=as_reason(str(error)))
        result = self._runner.run(
            settings.task(patience=pause.left, command=command),
            self._stopping,
            attempts=self._attempts,
            name=command.id,
            what="at this command",
        )
        # What a command is given up for is no refusal of the device's owner.
        return result.model_copy(update={"status": "failed"}) if result.given_up else result

    def _objection(self, command: Command) -> str:
        """Say why a command is not even begun, or nothing."""
        if command.kind == "set_parameters" and command.base is None:
            return "set_parameters: base is missing; it names the model by version, key and digests"
        if command.kind in _TELL_OF_THE_DATA and (reason := self._privacy()):
            return f"{reason}; {command.kind} would tell of this device's data without noise"
        if command.kind == "sum" and not self._settings().own.helper:
            return "sum: this device is no helper (helper)"
        if command.kind in _GIVE_A_FILE and not command.bucket:
            return f"{command.kind}: bucket is missing; it names where the parameters go"
        return ""

    def _answer(self, command: Command, result: Result) -> None:
        """Answer, or upload what the command gives; the answer then follows when it has arrived."""
        if result.status != "done":
            self._commands.answer(self._commands.reply(command, _STATUS[result.status], result.reason))
            return
        fields = result.model_dump(include={"version", "sha256", "bytes", "num_examples", "metrics"})
        if command.kind not in _GIVE_A_FILE:
            self._commands.answer(self._commands.reply(command, "done", **fields))
            return
        settings, name = self._settings(), answer_name(command.id)
        key = command_key(settings.runtime.fleet, settings.thing, command.id)
        where = {"bucket": command.bucket, "key": key}
        reply = self._commands.reply(command, "done", **where, **fields, seconds_train=result.seconds)
        # The answer travels with the upload and is sent when that has arrived: it names an object that must be there.
        message = reply.encode().decode()
        self._uploads.submit(name, settings.work / f"{name}.safetensors", **where, message=message)

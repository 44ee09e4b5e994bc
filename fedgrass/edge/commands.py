"""The commands that one component of a device answers: each id once, over kills and redeliveries.

A command is on disk before it is begun, and until its answer is in the outbox. Who may send one is the IoT policies'
business; what is checked here is that it is meant for this device and that it is bounded.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from fedgrass.edge.outbox import Outbox
from fedgrass.errors import MessageError, TransferError
from fedgrass.files import write_atomically
from fedgrass.logs import Log
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Command, Reply
from fedgrass.protocol.names import device_topic

# A bound on the disk that an operator's commands may take on the device.
MAX_WAITING = 16


class Commands:
    """What came in and is not answered.

    Parameters
    ----------
    folder
        Where commands wait.
    kinds
        What this component does.
    elsewhere
        What another component of the device does; None leaves all that is unknown to others.
    """

    def __init__(
        self,
        folder: Path,
        outbox: Outbox,
        log: Log,
        *,
        fleet: str,
        thing: str,
        kinds: Collection[str],
        elsewhere: Collection[str] | None = None,
    ) -> None:
        self._folder = folder
        self._outbox = outbox
        self._log = log
        self._fleet = fleet
        self._thing = thing
        self._kinds = kinds
        self._elsewhere = elsewhere
        folder.mkdir(parents=True, exist_ok=True)

    def received(self, payload: bytes) -> Command | None:
        """Take a message in; returns the command if it is new, and this component's to do."""
        try:
            command = Command.decode(payload)
            if (command.fleet, command.thing) != (self._fleet, self._thing):
                raise MessageError(f"it is for {command.thing!r} of fleet {command.fleet!r}")
        except MessageError as error:
            self._log.log_event("command_ignored", reason=str(error))
            return None
        # Two components hear the same topic: exactly one of them must answer a kind that neither knows.
        if command.kind not in self._kinds and (self._elsewhere is None or command.kind in self._elsewhere):
            return None
        # The cloud repeats a command until it is answered, and QoS 1 may deliver any message twice.
        # The cloud repeats a command until it is answered, and QoS 1 may deliver any message twice.
        if self._outbox.knows(answer_name(command.id)) or self._path(command.id).exists():
            self._log.log_event("command_ignored", reason="known already", command=command.id)
            return None
        if command.kind not in self._kinds:
            self.answer(self.reply(command, "refused", f"{command.kind!r} is not known to this version"))
            return None
        # Refused in an answer rather than dropped, so that the operator learns of it.
        if len(self.waiting()) >= MAX_WAITING:
            self.answer(self.reply(command, "refused", f"{MAX_WAITING} commands wait already"))
            return None
        try:
            write_atomically(self._path(command.id), command.model_dump_json(by_alias=True).encode())
        except OSError as error:
            self.answer(self.reply(command, "refused", f"it cannot be kept ({error.strerror})"))
            return None
        self._log.log_event("command_received", kind=command.kind, command=command.id)
        return command

    def waiting(self) -> list[Command]:
        """Return the commands that are not answered, the oldest first; one that is damaged is dropped."""
        found = []
        # By time of arrival: an id says nothing about order.
        for path in sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                command = Command.model_validate_json(path.read_bytes())
            except ValidationError:
                self._log.log_event("command_damaged", file=path.name)
                path.unlink()
                continue
            # A kill came between handing on the answer and deleting the command: finish that.
            if self._outbox.knows(answer_name(command.id)):
                path.unlink()
            else:
                found.append(command)
        return found

    def reply(self, command: Command, status: str, reason: str = "", **fields: object) -> Reply:
        """Make a command's answer.

        Parameters
        ----------
        command
            The command.
        status
            What became of it.
        reason
            Why, in words; cut to the message's bound.
        fields
            Further fields of `Reply`.

        Returns
        -------
        Reply
            The answer.

        Raises
        ------
        ValidationError
            If it would not be a valid message: a mistake of the caller's.
        """
        return Reply.model_validate(
            {
                "fleet": self._fleet,
                "thing": self._thing,
                "id": command.id,
                "kind": command.kind,
                "status": status,
                "reason": as_reason(reason),
                **fields,
            }
        )

    def answer(self, reply: Reply) -> None:
        """Hand an answer on, and then forget the command; in this order, so that a crash between repeats it by its name."""
        try:
            self._outbox.put(answer_name(reply.id), device_topic(self._fleet, self._thing, "reply"), reply.encode())
        except TransferError as error:
            self._log.log_event("command_answer_not_kept", reason=str(error))
            return
        self._path(reply.id).unlink(missing_ok=True)
        self._log.log_event(
            "command_answered", kind=reply.kind, command=reply.id, status=reply.status, reason=reply.reason
        )

    def _path(self, command: str) -> Path:
        return self._folder / f"{command}.json"


def answer_name(command: str) -> str:
    """Key under which a command's answer is sent: the same after every restart."""
    return f"command-{command}"

"""Commands to one device, from the operator's side: sent until they are answered.

A message reaches only who is connected at that moment, and a device answers each id once: so a command is published again and
again under one id until its reply is there. A reply's way is the device's ``reply`` topic, the stack's rule, and an item of
the table of rounds.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from fedgrass.account import Account
from fedgrass.bundle import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest
from fedgrass.downloads import fetch
from fedgrass.errors import CommandError, first_problem
from fedgrass.polling import poll
from fedgrass.protocol import tables
from fedgrass.protocol.messages import Base, Command, FitTask, Reply
from fedgrass.protocol.names import device_topic, model_prefix
from fedgrass.protocol.records import Device, reply_key

# Between two looks for the reply: one small read of DynamoDB.
_LOOK_SECONDS = 0.5
# Until the command is published again: a device that was not connected has missed it.
_AGAIN_SECONDS = 10.0
_EXACT = frozenset({"fit", "evaluate"})
"""Commands whose answer is made of the device's data, without noise."""


class Commander:
    """Sends commands to the devices of a fleet.

    Parameters
    ----------
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        account: Account,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._account = account
        self._clock = clock
        self._sleep = sleep
        self._s3 = account.s3
        self._iot_data = account.session.client("iot-data")

    def make(
        self,
        thing: str,
        kind: str,
        *,
        model: str | None = None,
        fit: FitTask | None = None,
        version: str | None = None,
        reason: str = "",
    ) -> Command:
        """Make a command with a new id.

        Parameters
        ----------
        model
            Version of the model that the command is about; None leaves it to the device: the one that was set, else its
            active one.
        version
            Version to roll back to; None is the one before.

        Raises
        ------
        CommandError
            If the fleet has no such device or model, promises its devices not to ask for this, or a value is out of range.
        """
        fleet = self._account.fleet
        settings = tables.load_settings(self._account.rounds_table, fleet)
        # The fleet's promise holds whatever the device's owner allows.
        if settings.privacy.mode in ("local", "distributed") and kind in _EXACT:
            raise CommandError(
                f"{kind}: fleet {fleet!r} keeps privacy.mode {settings.privacy.mode}, and what the device would tell carries "
                "no noise. Ask for it in a round"
            )
        # A misspelt name would otherwise be waited for until the patience ends.
        if self.heard(thing) is None:
            raise CommandError(f"device {thing!r} of fleet {fleet!r} was never seen; see `fedgrass fleet list`")
        try:
            return Command(
                fleet=fleet,
                thing=thing,
                id=secrets.token_hex(8),
                kind=kind,
                bucket=self._account.stack.bucket,
                base=self._base(model) if model else None,
                fit=fit or FitTask.model_validate(settings.fit.model_dump()),
                version=version,
                reason=reason,
            )
        except ValidationError as error:
            raise CommandError(f"{kind}: {first_problem(error, 'the command')}") from error

    def send(self, command: Command, *, patience: float) -> Reply:
        """Publish a command until its reply is there; a device that refused or failed replies too.

        Parameters
        ----------
        patience
            Seconds to wait.

        Raises
        ------
        CommandError
            If there is no reply by then. The device may still do it, and its reply is kept.
        """
        topic = device_topic(command.fleet, command.thing, "command")
        again = self._clock()
        ends = again + patience

        def look() -> Reply | None:
            nonlocal again
            reply = self.reply(command.thing, command.id)
            if reply is None and again <= self._clock() < ends:
                self._iot_data.publish(topic=topic, qos=1, payload=command.encode())
                again = self._clock() + _AGAIN_SECONDS
            return reply

        reply = poll(
            look,
            lambda found: found is not None,
            until=lambda: ends,
            pause=_LOOK_SECONDS,
            sleep=self._sleep,
            clock=self._clock,
        )
        if reply is None:
            raise CommandError(
                f"device {command.thing!r} has not answered {command.kind} within {patience:.0f} s; "
                f"look later with `fedgrass device reply {command.thing} {command.id}`"
            )
        return reply

    def reply(self, thing: str, command: str) -> Reply | None:
        """Return a device's reply to a command, if it is there; raises `MessageError` if it is not to be read."""
        item = self._account.rounds_table.get_item(
            Key={"fleet": self._account.fleet, "key": reply_key(thing, command)}, ConsistentRead=True
        ).get("Item")
        return None if item is None else Reply.decode(base64.b64decode(str(item["payload"])))

    def fetch(self, reply: Reply, path: Path) -> None:
        """Download the parameters that a reply names, checked by their digest.

        Raises
        ------
        CommandError
            If it names none.
        TransferError
            If they cannot be read.
        BundleError
            If they are others.
        """
        if reply.bucket is None or reply.key is None or reply.sha256 is None:
            raise CommandError(f"{reply.kind}: the reply of {reply.thing!r} names no parameters")
        fetch(self._s3, reply.bucket, reply.key, path, sha256=reply.sha256, size=reply.bytes)

    def heard(self, thing: str) -> Device | None:
        """Return a device's last heartbeat."""
        item = self._account.devices_table.get_item(Key={"fleet": self._account.fleet, "thing": thing}).get("Item")
        return None if item is None else Device.from_item(item)

    def _base(self, version: str) -> Base:
        """Return what names a published model."""
        fleet, bucket = self._account.fleet, self._account.stack.bucket
        key = model_prefix(fleet, version) + MANIFEST
        try:
            content = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read(MAX_MANIFEST_BYTES)
        except self._s3.exceptions.NoSuchKey as error:
            raise CommandError(f"model {version}: fleet {fleet!r} has none at s3://{bucket}/{key}") from error
        manifest = parse_manifest(content, name=key)
        if manifest.version != version:
            raise CommandError(f"s3://{bucket}/{key}: is the manifest of model {manifest.version}, expected {version}")
        return Base.of(manifest, fleet)

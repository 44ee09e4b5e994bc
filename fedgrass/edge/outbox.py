"""Messages that must reach the cloud: kept on disk until the nucleus takes them, sent in order, paced, once by key.

Neither nucleus can be relied on to queue: lite refuses while offline, the classic one refuses when its spool is full.
Delivery is at least once: a crash in the instant between sending and noting it sends again, which is why the cloud counts
an update once. Everything else (restarts, repeated puts) sends a key once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fedgrass.edge.backoff import Backoff
from fedgrass.errors import IpcError, TransferError
from fedgrass.files import flush_directory, write_atomically
from fedgrass.logs import Log

_DELIVERED = "delivered.json"


class _Kept(BaseModel, defer_build=True):
    """A message as it lies on disk."""

    key: str
    topic: str
    payload: str


_Keys = TypeAdapter(list[str], config=ConfigDict(defer_build=True))


@dataclass(frozen=True)
class _Outgoing:
    key: str
    topic: str
    payload: bytes
    path: Path | None


class Outbox:
    """The queue of one component.

    Parameters
    ----------
    folder
        Where messages wait; each is a small JSON file.
    send
        Hands a topic and a payload to the nucleus; raises `IpcError` if it is not taken.
    limit
        Messages that may wait at once.
    remembered
        Keys of sent messages that are known after a restart.
    gap
        Seconds between two messages (lite accepts ten unacknowledged ones at most).
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[[str, bytes], None],
        log: Log,
        *,
        limit: int = 1000,
        remembered: int = 1000,
        gap: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._send = send
        self._log = log
        self._limit = limit
        self._remembered = remembered
        self._gap = gap
        self._clock = clock
        # At most 15 s: a round's quorum may be waiting for this very message.
        self._backoff = Backoff(first=1, most=15)
        # One pace for all messages: after a long time offline a thousand would else go out in a burst, of which lite
        # refuses most.
        self._not_before = 0.0
        self._changed = threading.Condition()
        self._stopping = False
        folder.mkdir(parents=True, exist_ok=True)
        self._delivered: list[str] = self._load_delivered()
        self._queue: list[_Outgoing] = []
        # Heartbeats: only the last one is worth sending, and writing each would wear the flash out.
        self._newest: dict[str, _Outgoing] = {}
        self._number = 0
        self._load_queue()

    def put(self, key: str, topic: str, payload: bytes) -> bool:
        """Keep a message until it is sent; it is on disk when this returns.

        Parameters
        ----------
        key
            Names the message: one that is known is not kept again.
        topic
            Topic in IoT Core.
        payload
            UTF-8, as messages are.

        Returns
        -------
        bool
            Whether it is new.

        Raises
        ------
        TransferError
            If the outbox or the disk is full; nothing was kept then.
        """
        with self._changed:
            # A round's answer may be put again after a kill; its key tells.
            if self._knows(key):
                return False
            if len(self._queue) >= self._limit:
                raise TransferError(
                    f"outbox {self._folder}: {self._limit} messages wait already; is the device offline?"
                )
            # The number in the name keeps the order of messages over restarts.
            path = self._folder / f"{self._number:016d}.json"
            kept = _Kept(key=key, topic=topic, payload=payload.decode())
            try:
                write_atomically(path, kept.model_dump_json().encode())
            except OSError as error:
                raise TransferError(
                    f"outbox {self._folder}: cannot keep a message ({error.strerror}); free some disk"
                ) from error
            self._number += 1
            self._queue.append(_Outgoing(key, topic, payload, path))
            self._changed.notify_all()
        return True

    def put_newest(self, key: str, topic: str, payload: bytes) -> None:
        """Send a message unless a newer one with its key comes first; it is kept in memory only, which spares the flash.

        Parameters
        ----------
        key
            What newer messages replace it by.
        topic
            Topic in IoT Core.
        payload
            The message's bytes.
        """
        with self._changed:
            self._newest[key] = _Outgoing(key, topic, payload, None)
            self._changed.notify_all()

    def knows(self, key: str) -> bool:
        """Whether a message with this key waits or was sent."""
        with self._changed:
            return self._knows(key)

    def __len__(self) -> int:
        with self._changed:
            return len(self._queue) + len(self._newest)

    def send_next(self) -> float | None:
        """Try to send the first message; returns the seconds until there may be more to do, None if nothing waits."""
        with self._changed:
            # What must arrive goes before what only informs.
            message = self._queue[0] if self._queue else next(iter(self._newest.values()), None)
            if message is None:
                return None
            wait = self._not_before - self._clock()
            if wait > 0:
                return wait
        try:
            # Outside the lock: sending may take ten seconds, and `put` must not wait for a link.
            self._send(message.topic, message.payload)
        except IpcError as error:
            delay = self._backoff.failed()
            self._log.log_event("message_waiting", topic=message.topic, error=type(error).__name__)
        else:
            delay = self._gap
            self._backoff.succeeded()
            self._forget(message)
        self._not_before = self._clock() + delay
        return delay if len(self) else None

    def run(self) -> None:
        """Send until `stop`; for a separate thread."""
        while not self._stopping:
            wait = self.send_next()
            with self._changed:
                # Looked at once more under the lock: a `put` in between has notified already, and the wait would miss
                # it.
                if not self._stopping and (wait is not None or not (self._queue or self._newest)):
                    self._changed.wait(wait)

    def start(self) -> None:
        """Run on a daemon thread."""
        threading.Thread(target=self.run, name="outbox", daemon=True).start()

    def stop(self) -> None:
        """End `run`; what waits stays on disk."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _knows(self, key: str) -> bool:
        return key in self._delivered or any(message.key == key for message in self._queue)

    def _forget(self, message: _Outgoing) -> None:
        with self._changed:
            # Unless a newer one took its place while this one was sent.
            if message.path is None:
                if self._newest.get(message.key) is message:
                    del self._newest[message.key]
                return
            # Bounded, since keys of rounds long past are not put again.
            self._delivered = [*self._delivered, message.key][-self._remembered :]
            try:
                write_atomically(self._folder / _DELIVERED, _Keys.dump_json(self._delivered))
            except OSError as error:
                self._log.log_event("outbox_not_writable", folder=str(self._folder), error=error.strerror)
            # After the note of what was sent: the other way round, a kill in between would send it twice.
            message.path.unlink(missing_ok=True)
            flush_directory(self._folder)
            self._queue.pop(0)

    def _load_delivered(self) -> list[str]:
        try:
            return _Keys.validate_json((self._folder / _DELIVERED).read_bytes())
        except FileNotFoundError:
            return []
        except ValidationError:
            self._log.log_event("outbox_list_damaged", folder=str(self._folder))
            return []

    def _load_queue(self) -> None:
        for path in sorted(self._folder.glob("[0-9]*.json")):
            try:
                kept = _Kept.model_validate_json(path.read_bytes())
            except ValidationError:
                self._log.log_event("message_damaged", file=path.name)
                # Kept for whoever looks into it, under a name that is not loaded again.
                path.replace(path.with_suffix(".damaged"))
                continue
            # Names are sorted, so the last one is the largest.
            self._number = int(path.stem) + 1
            if self._knows(kept.key):
                path.unlink()
            else:
                self._queue.append(_Outgoing(kept.key, kept.topic, kept.payload.encode(), path))

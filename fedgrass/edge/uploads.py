"""Files on their way to S3 through Stream Manager, each kept until it is known to have arrived.

One folder per upload holds the file and ``upload.json``, written last: without it the upload was never accepted. Nothing is
forgotten by a kill at any moment, and nothing that is queued is queued again: what was appended is looked up in the stream.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.edge.backoff import Backoff
from fedgrass.edge.credentials import CredentialsWatch, refusal
from fedgrass.edge.streams import Extent, Streams, Task, TaskStatus
from fedgrass.errors import TransferError
from fedgrass.files import bytes_below, flush_directory, write_atomically
from fedgrass.logs import Log

_RECORD = "upload.json"
# Without a status for so long, the streams are compared with what was queued.
_SILENCE_SECONDS = 60.0
# Share of the task stream in use from which it is worth making it again: well before it refuses.
_FULL = 0.5
# How many times longer than `wait` a read may last once nothing came.
_PATIENT = 4

Outcome = Literal["uploaded", "failed"]


class Upload(BaseModel):
    """One accepted upload. ``name`` is the sender's key for it, ``file`` a name within its folder.

    ``after`` is the newest task before this one was appended, ``sequence`` its own number once known, and
    ``statuses_from`` where in the status stream its end will be told. ``message`` is the sender's, kept for it.
    """

    model_config = ConfigDict(extra="ignore", defer_build=True)

    name: str
    file: str
    bucket: str
    key: str
    message: str = ""
    after: int | None = None
    sequence: int | None = None
    statuses_from: int = 0


Ended = Callable[[Upload, Outcome, str], None]


class Uploads:
    """The uploads of one component.

    Parameters
    ----------
    folder
        Where files wait; must be readable by Stream Manager's user.
    connect
        Makes a connection to Stream Manager; raises `TransferError`.
    ended
        Called with the upload, its outcome and the reason when it has ended, before its file is deleted. Must be durable,
        and may be called again for the same one after a crash. ``failed`` means that the file is gone.
    max_bytes, max_count
        What may wait at once.
    wait
        Seconds that one read of the statuses waits for news; longer once nothing came.
    clock
        Seconds that only go up.
    refusal
        Returns why the device has no credentials for S3, or nothing.
    """

    def __init__(
        self,
        folder: Path,
        connect: Callable[[], Streams],
        ended: Ended,
        log: Log,
        *,
        max_bytes: int = 512 << 20,
        max_count: int = 1000,
        wait: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        refusal: Callable[[], str] = refusal,
    ) -> None:
        self._folder = folder
        self._credentials = CredentialsWatch(log, ask=refusal, clock=clock)
        self._connect = connect
        self._ended = ended
        self._log = log
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._wait = wait
        self._clock = clock
        self._changed = threading.Condition()
        self._stopping = False
        # By name: the delays, and the clock's time of the next try. In memory only: a restart may as well try at
        # once.
        self._retries: dict[str, tuple[Backoff, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._pending: dict[str, Upload] = {upload.name: upload for upload in self._load()}

    def room(self) -> str:
        """Return why nothing more is accepted, or nothing."""
        waiting = bytes_below(self._folder)
        if waiting >= self._max_bytes or len(self._pending) >= self._max_count:
            return f"{len(self._pending)} updates ({waiting} bytes) wait for upload already"
        return ""

    def submit(self, name: str, file: Path, *, bucket: str, key: str, message: str = "") -> None:
        """Take over a file and upload it; it is safe when this returns.

        Parameters
        ----------
        name
            Names the upload; one that waits already is not replaced.
        file
            The file, which is moved away.
        bucket, key
            Where it goes.
        message
            Kept with the upload for whoever is told of its end.

        Raises
        ------
        TransferError
            If there is no room, or the disk is full; ``file`` is then where it was.
        """
        with self._changed:
            # Submitted before a kill that came ahead of the sender's own note.
            if name in self._pending:
                file.unlink(missing_ok=True)
                return
            if reason := self.room():
                raise TransferError(
                    f"upload {name}: {reason}; the limit is {self._max_count} or {self._max_bytes} bytes"
                )
            folder = self._folder_of(name)
            upload = Upload(name=name, file=file.name, bucket=bucket, key=key, message=message)
            try:
                folder.mkdir(exist_ok=True)
                # Moved, not copied: the disk may have no room for a second large update.
                file.replace(folder / file.name)
                flush_directory(folder)
                # The record last: a folder without one is swept at the next start, and the sender submits again.
                self._write(upload)
            except OSError as error:
                raise TransferError(f"upload {name}: cannot be kept ({error.strerror}); free some disk") from error
            self._pending[name] = upload
            self._changed.notify_all()

    def waits(self, name: str) -> bool:
        """Whether this upload is accepted and has not ended."""
        with self._changed:
            return name in self._pending

    def __len__(self) -> int:
        with self._changed:
            return len(self._pending)

    def start(self) -> None:
        """Run on a daemon thread."""
        threading.Thread(target=self.run, name="uploads", daemon=True).start()

    def stop(self) -> None:
        """End `run` soon; what waits stays on disk."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        """Upload until `stop`; for a separate thread. Connected to Stream Manager only while something waits."""
        backoff = Backoff(first=1, most=60)
        while self._until(lambda: bool(self._pending)):
            try:
                streams = self._connect()
            except TransferError as error:
                self._log.log_event("stream_manager_away", error=str(error))
                self._until(lambda: False, timeout=backoff.failed())
                continue
            try:
                self.work(streams)
                backoff.succeeded()
            except TransferError as error:
                self._log.log_event("upload_interrupted", error=str(error))
                self._until(lambda: False, timeout=backoff.failed())
            finally:
                streams.close()

    def work(self, streams: Streams) -> None:
        """Upload until nothing waits or `stop`.

        Raises
        ------
        TransferError
            If Stream Manager goes away.
        """
        # On each connection: Stream Manager may have lost its streams, or have ended tasks while this process was
        # down.
        position = self._reconcile(streams.extent(), None)
        heard, wait = self._clock(), self._wait
        while self._pending and not self._stopping:
            position = self._append_due(streams, position)
            statuses, position = streams.ended(position, wait)
            # A link may be away for hours: nothing is learnt by asking often. An upload that comes meanwhile waits as long.
            wait = self._wait if statuses else min(2 * wait, _PATIENT * self._wait)
            for status in statuses:
                self._apply(status)
                heard = self._clock()
            self._credentials.look(self._clock() - heard)
            if self._clock() - heard > _SILENCE_SECONDS:
                position = self._reconcile(streams.extent(), position)
                heard = self._clock()
        if not self._stopping:
            self._empty(streams)

    def _append_due(self, streams: Streams, position: int) -> int:
        for upload in self._appendable():
            task = Task(self._folder_of(upload.name) / upload.file, upload.bucket, upload.key)
            # Stream Manager would report a failure for ever; nothing can bring the file back.
            if not task.file.is_file():
                self._end(upload, "failed", f"{upload.file} is gone from this device")
                continue
            if upload.after is not None:  # appended, perhaps, before a crash
                upload.sequence = streams.find(task, upload.after)
            if upload.sequence is None:
                # Noted before the task is appended: after a kill in between, the task is looked for from here on.
                upload.after = streams.extent().newest_task
                upload.statuses_from = position
                self._write(upload)
                try:
                    upload.sequence = streams.append(task)
                except TransferError as error:
                    return 0 if self._refused(streams, upload, error) else position
            self._write(upload)
            self._log.log_event("upload_queued", upload=upload.name, sequence=upload.sequence)
        return position

    def _appendable(self) -> list[Upload]:
        now = self._clock()
        with self._changed:
            return [
                u
                for u in self._pending.values()
                if u.sequence is None and self._retries.get(u.name, (None, 0.0))[1] <= now
            ]

    def _refused(self, streams: Streams, upload: Upload, error: TransferError) -> bool:
        """Try this one again later, and go on collecting how the others end: that is what makes room.

        Returns whether the streams were created again. ``after`` stays: the task may be queued for all we know.
        """
        # A full stream is this upload's trouble alone; a connection that is gone is everybody's.
        streams.extent()  # raises if it was the connection
        self._log.log_event("task_stream_refused", error=str(error))
        if self._empty(streams, but=upload):
            upload.after = None
            self._write(upload)
            return True
        self._postpone(upload)
        return False

    def _postpone(self, upload: Upload) -> float:
        backoff = self._retries.get(upload.name, (Backoff(first=5, most=300), 0.0))[0]
        delay = backoff.failed()
        self._retries[upload.name] = (backoff, self._clock() + delay)
        return delay

    def _empty(self, streams: Streams, *, but: Upload | None = None) -> bool:
        """Make the streams again if they are half full of tasks that are all done; returns whether they were.

        Stream Manager keeps exported messages: a stream that refuses when full would in the end refuse for ever, and one
        that forgets with time would forget tasks that are not done.
        """
        with self._changed:
            others = [upload for upload in self._pending.values() if upload is not but]
        # Some task may be on its way: deleting the stream would lose it.
        if any(upload.sequence is not None or upload.after is not None for upload in others):
            return False
        extent = streams.extent()
        if extent.fill < _FULL or extent.exported_task < extent.newest_task:
            return False
        self._log.log_event("task_stream_recreated")
        streams.clear()
        return True

    def _apply(self, status: TaskStatus) -> None:
        with self._changed:
            # By number and key, because numbers start over when the streams are made again.
            found = [u for u in self._pending.values() if u.sequence == status.sequence and u.key == status.key]
        for upload in found:
            # An end that was told before this task was queued is of an earlier task with its number: the streams were
            # created again.
            if status.position < upload.statuses_from:
                continue
            if status.outcome == "success":
                self._end(upload, "uploaded", "")
            else:
                delay = self._postpone(upload)
                self._log.log_event("upload_failed", upload=upload.name, seconds=delay, reason=status.message)
                self._requeue(upload)

    def _reconcile(self, extent: Extent, position: int | None) -> int:
        """Find tasks whose end will never be told, and have them queued again; returns where to read the statuses from.

        That is so when the streams were lost and created again, or when a status was overwritten or never written. Uploading a
        file once more does no harm: it is the same object.
        """
        with self._changed:
            queued = [u for u in self._pending.values() if u.sequence is not None or u.after is not None]
        for upload in queued:
            reset = max(upload.sequence if upload.sequence is not None else -1, upload.after or -1) > extent.newest_task
            untold = (
                position is not None
                and position > extent.newest_status
                and upload.sequence is not None
                and upload.sequence <= extent.exported_task
            )
            if reset or untold:
                self._log.log_event("upload_status_lost", upload=upload.name)
                self._requeue(upload)
        if position is not None and position <= extent.newest_status + 1:
            return position
        # Read again from the earliest task that is open: a status that was read before a crash may not have been
        # applied.
        starts = [u.statuses_from for u in queued if u.sequence is not None or u.after is not None]
        return min([*starts, extent.newest_status + 1])

    def _requeue(self, upload: Upload) -> None:
        upload.after = upload.sequence = None
        upload.statuses_from = 0
        self._write(upload)

    def _end(self, upload: Upload, outcome: Outcome, reason: str) -> None:
        # The order is what makes a kill harmless: told, then no record, then no file. Told again is no harm, a file
        # without a record is swept.
        self._ended(upload, outcome, reason)
        folder = self._folder_of(upload.name)
        (folder / _RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with self._changed:
            self._pending.pop(upload.name, None)
            self._retries.pop(upload.name, None)
        self._log.log_event("upload_ended", upload=upload.name, outcome=outcome, reason=reason)

    def _until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait for a condition; returns False once stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or condition(), timeout)
            return not self._stopping

    def _write(self, upload: Upload) -> None:
        try:
            write_atomically(self._folder_of(upload.name) / _RECORD, upload.model_dump_json().encode())
        except OSError as error:
            raise TransferError(f"upload {upload.name}: cannot be noted ({error.strerror}); free some disk") from error

    def _folder_of(self, name: str) -> Path:
        # A folder's name has no slash, an upload's may.
        return self._folder / name.replace("/", "-")

    def _load(self) -> list[Upload]:
        folders = sorted(folder for folder in self._folder.iterdir() if folder.is_dir())
        return [upload for folder in folders if (upload := self._loaded(folder)) is not None]

    def _loaded(self, folder: Path) -> Upload | None:
        try:
            return Upload.model_validate_json((folder / _RECORD).read_bytes())
        except FileNotFoundError:
            # Never accepted: a kill came before the record was written.
            shutil.rmtree(folder, ignore_errors=True)
        except ValidationError as error:
            # Where the file was to go is lost with the record: it would only take the room of those that can be sent.
            self._log.log_event("upload_record_damaged", folder=folder.name, error=str(error))
            shutil.rmtree(folder, ignore_errors=True)
        return None

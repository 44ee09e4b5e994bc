"""Uploads to S3: the tasks of a stream in the order of their append, each until it has a final status.

A task is tried again, for ever, while S3 cannot be reached or is at fault; it fails for good if its file is missing or
S3 refuses it. A crash between an upload and the note of it repeats the upload: the same object, and a second status.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from pydantic import ValidationError

from fedgrass.local.core_device.clients import is_transient
from fedgrass.local.core_device.stream_manager.definition import (
    S3Export,
    S3Task,
    StatusConfig,
    StatusContext,
    StatusLevel,
    StatusMessage,
    TaskStatus,
)
from fedgrass.local.core_device.stream_manager.segments import Record
from fedgrass.local.core_device.stream_manager.stream import MessageStream
from fedgrass.local.core_device.stream_manager.wire import StreamError
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_FIRST_RETRY, _LAST_RETRY = 0.25, 30.0
_LEVELS = {TaskStatus.FAILURE: StatusLevel.ERROR, TaskStatus.WARNING: StatusLevel.WARN}

S3: TypeAlias = "Callable[[], S3Client]"
Status = Callable[[str, StatusMessage], None]


class TaskFailedError(Exception):
    """A task can never succeed."""


class S3Exporter:
    """Works through one stream for one export; ``s3`` gives a boto3 client, ``report`` writes to a status stream."""

    def __init__(self, stream: MessageStream, export: S3Export, *, s3: S3, report: Status) -> None:
        self._stream = stream
        self._export = export
        self._s3 = s3
        self._report = report

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            # Taken before the look: a message that arrives in between must not be waited for in vain.
            appended = self._stream.appended
            try:
                exported = await self._export_next()
            except OSError as error:  # the disk is full: neither the status nor the progress can be kept
                log_event("export_halted", stream=self._stream.name, error=str(error))
                await asyncio.sleep(_LAST_RETRY)
                continue
            if not exported:
                await appended.wait()

    async def _export_next(self) -> bool:
        progress = self._stream.progress(self._export.identifier)
        records = self._stream.read(progress.last_exported_sequence_number + 1, 1)
        if not records:
            return False
        record = records[0]
        progress.error_message = await self._finish(record)
        progress.last_exported_sequence_number = record.sequence
        progress.last_export_time = int(time.time() * 1000)
        progress.exported_bytes_from_stream += len(record.payload)
        progress.exported_messages_count += 1
        # After the status: a crash in between repeats the task, and the other order would lose its status.
        self._stream.save_progress()
        return True

    async def _finish(self, record: Record) -> str:
        """Bring one task to its end, report it, and return its error, empty if there is none."""
        task: S3Task | None = None
        try:
            task = S3Task.model_validate_json(record.payload)
            path = input_path(task.input_url)
            self._tell(record, task, TaskStatus.IN_PROGRESS, "")
            await self._upload(record, task, path)
        except (ValidationError, TaskFailedError) as error:
            self._tell(record, task, TaskStatus.FAILURE, str(error))
            return str(error)
        self._tell(record, task, TaskStatus.SUCCESS, "")
        return ""

    async def _upload(self, record: Record, task: S3Task, path: Path) -> None:
        delay, warned = _FIRST_RETRY, False
        while True:
            try:
                await asyncio.to_thread(self._put, task, path)
                return
            except (ClientError, ParamValidationError) as error:
                if not is_transient(error):
                    raise TaskFailedError(str(error)) from error
                reason = str(error)
            except BotoCoreError as error:  # no connection, or no credentials yet
                reason = str(error)
            except OSError as error:
                raise TaskFailedError(f"input file {path} cannot be read: {error}") from error
            log_event("export_retried", stream=self._stream.name, error=reason, seconds=delay)
            if not warned:
                self._tell(record, task, TaskStatus.WARNING, reason)
                warned = True
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            delay = min(delay * 2, _LAST_RETRY)

    def _put(self, task: S3Task, path: Path) -> None:
        threshold = self._export.size_threshold_for_multipart_upload_bytes
        with path.open("rb") as file:
            self._s3().upload_fileobj(
                file,
                task.bucket,
                task.key,
                ExtraArgs={"Metadata": task.user_metadata or {}},
                # Without threads: this is one already, and an upload of several parts would start ten more.
                Config=TransferConfig(multipart_threshold=threshold, use_threads=False),
            )

    def _tell(self, record: Record, task: S3Task | None, status: TaskStatus, message: str) -> None:
        log_event(
            "export_status",
            stream=self._stream.name,
            sequence=record.sequence,
            key=task.key if task else "",
            status=status.name,
            message=message,
        )
        config = self._export.status_config or StatusConfig()
        level = _LEVELS.get(status, StatusLevel.INFO)
        # Levels are numbered from the gravest, ERROR, to the most talkative.
        if config.status_stream_name is None or level > config.status_level:
            return
        told = StatusMessage(
            status_level=level,
            status=status,
            status_context=StatusContext(
                s3_export_task_definition=task,
                export_identifier=self._export.identifier,
                stream_name=self._stream.name,
                sequence_number=record.sequence,
            ),
            message=message,
            timestamp_epoch_ms=int(time.time() * 1000),
        )
        try:
            self._report(config.status_stream_name, told)
        except StreamError as error:
            log_event("export_status_lost", stream=self._stream.name, error=str(error))


def input_path(url: str) -> Path:
    """Return the file that ``file:/path`` or ``file:///path`` names.

    Raises
    ------
    TaskFailedError
        It is not such a URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise TaskFailedError(f"inputUrl {url!r}: expected file:///absolute/path")
    return Path(unquote(parts.path))

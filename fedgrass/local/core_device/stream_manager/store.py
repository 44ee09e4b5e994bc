"""All streams of the device, and the exporters that work on them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

from fedgrass.local.core_device.stream_manager.definition import StatusMessage, StreamDefinition
from fedgrass.local.core_device.stream_manager.exporter import S3, S3Exporter
from fedgrass.local.core_device.stream_manager.stream import MessageStream
from fedgrass.local.core_device.stream_manager.wire import Status, StreamError
from fedgrass.logs import log_event


class StreamStore:
    """Streams by name, each in a folder below ``folder``; exporters run in the current event loop."""

    def __init__(self, folder: Path, s3: S3) -> None:
        self._folder = folder
        self._s3 = s3
        self._streams: dict[str, MessageStream] = {}
        self._exporters: dict[str, list[asyncio.Task[None]]] = {}

    def open(self) -> None:
        """Open what is on disk, and go on exporting."""
        for folder in sorted(self._folder.glob("stream-*")):
            # A crash while a stream was made may leave a folder without one: no client was told of that stream.
            if (folder / "definition.json").exists():
                stream = MessageStream(folder)
                self._streams[stream.name] = stream
                self._export(stream)

    async def close(self) -> None:
        """Stop exporting and close the files."""
        await asyncio.gather(*(self._stop_exporting(name) for name in list(self._exporters)))
        for stream in self._streams.values():
            stream.close()

    def names(self) -> list[str]:
        """Return the streams' names."""
        return sorted(self._streams)

    def get(self, name: str) -> MessageStream:
        """Return a stream, or fail with ResourceNotFound."""
        if name not in self._streams:
            raise StreamError(Status.RESOURCE_NOT_FOUND, f"the stream {name!r} does not exist")
        return self._streams[name]

    def create(self, definition: StreamDefinition) -> None:
        """Create a stream; its name must be free."""
        if definition.name in self._streams:
            raise StreamError(Status.INVALID_REQUEST, f"the stream {definition.name!r} already exists")
        folder = self._folder / f"stream-{quote(definition.name, safe='')}"
        stream = self._streams[definition.name] = MessageStream(folder, definition)
        self._export(stream)

    async def update(self, definition: StreamDefinition) -> None:
        """Change a stream's definition; its exports go on from where they were."""
        stream = self.get(definition.name)
        stream.update(definition)
        await self._stop_exporting(definition.name)
        self._export(stream)

    async def delete(self, name: str) -> None:
        """Delete a stream with what it holds; its tasks end without a status."""
        stream = self.get(name)
        # Before its files go: an exporter may be reading them.
        await self._stop_exporting(name)
        del self._streams[name]
        stream.delete()

    def _export(self, stream: MessageStream) -> None:
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(S3Exporter(stream, export, s3=self._s3, report=self._report).run())
            for export in stream.definition.exports
            if not export.disabled
        ]
        for task in tasks:
            task.add_done_callback(_log_failure)
        self._exporters[stream.name] = tasks

    async def _stop_exporting(self, name: str) -> None:
        tasks = self._exporters.pop(name, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _report(self, stream: str, message: StatusMessage) -> None:
        self.get(stream).append(message.encoded())


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_event("exporter_crashed", error=repr(error))

"""Stand-ins at the edge of the device's code: IPC and Stream Manager, in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedgrass.edge.ipc import Received
from fedgrass.edge.streams import Extent, Task, TaskStatus
from fedgrass.errors import IpcRefusedError, TransferError


class FakeIpc:
    """A nucleus that hands messages to whoever asked, at once; ``offline`` makes it refuse the cloud as lite does."""

    def __init__(self, configurations: dict[str, dict[str, Any]] | None = None) -> None:
        self.configurations = configurations or {}
        self.cloud: list[tuple[str, bytes]] = []
        self.local: list[tuple[str, bytes]] = []
        self.deferred: list[tuple[str, int]] = []
        self.offline = False
        self._on_cloud: dict[str, list[Received]] = {}
        self._on_local: dict[str, list[Received]] = {}
        self._on_configuration: dict[str, list[Callable[[], None]]] = {}
        self._on_update: list[Callable[[str], None]] = []
        self._retained: dict[str, bytes] = {}

    def get_configuration(self, component: str) -> dict[str, Any]:
        return self.configurations.get(component, {})

    def on_configuration(self, component: str, changed: Callable[[], None]) -> None:
        self._on_configuration.setdefault(component, []).append(changed)

    def publish_local(self, topic: str, payload: bytes) -> None:
        self.local.append((topic, payload))
        for received in self._on_local.get(topic, []):
            received(payload)

    def on_local(self, topic: str, received: Received) -> None:
        self._on_local.setdefault(topic, []).append(received)

    def publish_cloud(self, topic: str, payload: bytes) -> None:
        if self.offline:
            raise IpcRefusedError(topic)
        self.cloud.append((topic, payload))

    def on_cloud(self, topic: str, received: Received) -> None:
        self._on_cloud.setdefault(topic, []).append(received)
        if topic in self._retained:
            received(self._retained[topic])

    def on_component_update(self, arrived: Callable[[str], None]) -> None:
        self._on_update.append(arrived)

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        self.deferred.append((deployment_id, milliseconds))

    def from_cloud(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Deliver a message as IoT Core does; ``retain`` keeps it for later subscribers, an empty one clears it."""
        if retain:
            self._retained[topic] = payload
            if not payload:
                del self._retained[topic]
        for received in self._on_cloud.get(topic, []):
            received(payload)

    def change(self, component: str, configuration: dict[str, Any]) -> None:
        """Change a component's configuration, as a deployment does."""
        self.configurations[component] = configuration
        for changed in self._on_configuration.get(component, []):
            changed()

    def update_components(self, deployment: str) -> None:
        """Ask every component whether it may be updated now."""
        for arrived in self._on_update:
            arrived(deployment)


@dataclass
class FakeStreamManager:
    """Both streams as they lie on disk: they outlive connections and processes. ``s3`` holds what was uploaded."""

    tasks: list[Task] = field(default_factory=list)
    statuses: list[TaskStatus] = field(default_factory=list)
    exported: int = -1
    s3: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    away: bool = False
    refuses: bool = False
    fails: int = 0
    automatic: bool = True
    changed: threading.Condition = field(default_factory=threading.Condition)

    def connect(self) -> FakeStreams:
        if self.away:
            raise TransferError("Stream Manager: cannot connect")
        return FakeStreams(self)

    def export(self) -> bool:
        """Do the next task; returns whether there was one."""
        with self.changed:
            if self.exported + 1 >= len(self.tasks):
                return False
            self.exported += 1
            task = self.tasks[self.exported]
            outcome: Literal["success", "failure"] = "success"
            if self.fails > 0 or not task.file.exists():
                self.fails -= 1
                outcome = "failure"
            else:
                self.s3[task.key] = task.file.read_bytes()
                self.uploads += 1
            self.statuses.append(TaskStatus(len(self.statuses), self.exported, task.key, outcome, "because"))
            self.changed.notify_all()
            return True


class FakeStreams:
    """A connection."""

    def __init__(self, manager: FakeStreamManager) -> None:
        self._manager = manager

    def extent(self) -> Extent:
        self._check()
        return Extent(len(self._manager.tasks) - 1, self._manager.exported, len(self._manager.statuses) - 1)

    def append(self, task: Task) -> int:
        self._check()
        if self._manager.refuses:
            raise TransferError("Stream Manager: cannot append a task")
        self._manager.tasks.append(task)
        if self._manager.automatic:
            self._manager.export()
        return len(self._manager.tasks) - 1

    def find(self, task: Task, after: int) -> int | None:
        self._check()
        found = [number for number, queued in enumerate(self._manager.tasks) if number > after and queued == task]
        return found[0] if found else None

    def ended(self, start: int, wait: float) -> tuple[list[TaskStatus], int]:
        self._check()
        with self._manager.changed:
            self._manager.changed.wait_for(lambda: len(self._manager.statuses) > start, wait)
            statuses = self._manager.statuses[start:]
        return statuses, start + len(statuses)

    def clear(self) -> None:
        self._manager.tasks.clear()
        self._manager.statuses.clear()
        self._manager.exported = -1

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self._manager.away:
            raise TransferError("Stream Manager: connection lost")


def file_with(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path

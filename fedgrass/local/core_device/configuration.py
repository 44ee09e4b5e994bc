"""Configuration of the components: values with the time each was set, kept on disk.

A value is only replaced by one that is not older. A recipe's default configuration carries the oldest time there is, so
that it fills gaps and follows new defaults, but never undoes a deployment's or a component's own setting. This is how
the nucleus merges (KernelConfigResolver).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, Field

from fedgrass.errors import ConfigurationError
from fedgrass.files import write_atomically

Path = tuple[str, ...]
Listener = Callable[[Path], None]

# Milliseconds since 1970: older than any deployment.
DEFAULTS_TIME = 1.0


class OutdatedError(ConfigurationError):
    """The update is older than what it would overwrite."""


class Snapshot(BaseModel):
    """Everything that the store keeps on disk: values, and the milliseconds at which each leaf was set."""

    values: dict[str, dict[str, Any]] = Field(default_factory=dict)
    modified: dict[str, dict[str, float]] = Field(default_factory=dict)


@dataclass(eq=False)
class Subscription:
    """Interest in the changes below one path."""

    component: str
    path: Path
    listener: Listener = field(repr=False)


class ConfigurationStore:
    """The configuration of every component, persisted at each change."""

    def __init__(self, file: FilePath, *, max_leaf: int | None = None) -> None:
        self._file = file
        self._max_leaf = max_leaf
        self._state = Snapshot()
        self._subscriptions: list[Subscription] = []
        if file.exists():
            self._state = Snapshot.model_validate_json(file.read_bytes())

    def get(self, component: str) -> dict[str, Any]:
        """Return the whole configuration of ``component``, empty if it has none; not to be changed."""
        return self._state.values.get(component, {})

    def find(self, component: str, path: Path = ()) -> Any:
        """Return a copy of the value at ``path``; ``KeyError`` if the component or the key does not exist."""
        node: object = self._state.values[component]
        for key in path:
            if not isinstance(node, dict):
                raise KeyError(key)
            node = node[key]
        return copy.deepcopy(node)

    def merge(
        self, component: str, values: Mapping[str, Any], time_ms: float, *, path: Path = (), strict: bool = False
    ) -> None:
        """Merge values into a component's configuration; a value that was set later stays.

        Parameters
        ----------
        component
            Name of the component.
        values
            What to set, nested.
        time_ms
            When it was set, in Unix milliseconds.
        path
            Where in the configuration.
        strict
            Whether an older time is an error rather than passed over.

        Raises
        ------
        OutdatedError
            ``strict``, and something that would be overwritten was set later: nothing is changed then.
        ConfigurationError
            The nucleus limits leaves, and one is too large or would become a map: nothing is changed then.
        """
        self._state.values.setdefault(component, {})
        modified = self._state.modified.setdefault(component, {})
        # All checks come before the first change: an update is taken whole or not at all.
        leaves = list(_leaves(values, path))
        if self._max_leaf is not None:
            self._check(component, leaves, self._max_leaf)
        if strict and any(_set_at(modified, leaf) > time_ms for leaf, _ in leaves):
            raise OutdatedError(
                f"configuration of {component}: proposed timestamp is older than the config's latest modified timestamp"
            )
        self._saved(component, [leaf for leaf, value in leaves if self._set(component, leaf, value, time_ms)])

    def reset(self, component: str, pointers: Iterable[str]) -> None:
        """Remove what each JSON pointer names; ``""`` names everything."""
        paths = [parse_pointer(pointer) for pointer in pointers]
        self._saved(component, [path for path in paths if self._remove(component, path)])

    def remove(self, component: str) -> None:
        """Forget the component."""
        self._state.values.pop(component, None)
        self._state.modified.pop(component, None)
        self._saved(component, [])

    def snapshot(self) -> Snapshot:
        """Return a copy of everything, for a roll-back."""
        return self._state.model_copy(deep=True)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to ``snapshot`` and tell the subscribers what that changed."""
        before, self._state = self._state, snapshot.model_copy(deep=True)
        # Both sides: a component that is in only one of them has changed as well.
        for component in before.values.keys() | self._state.values.keys():
            old = dict(_leaves(before.values.get(component, {})))
            new = dict(_leaves(self._state.values.get(component, {})))
            self._saved(component, [leaf for leaf in old.keys() | new.keys() if old.get(leaf) != new.get(leaf)])

    def subscribe(self, component: str, path: Path, listener: Listener) -> Subscription:
        """Call a listener with the path of each change at or below a path.

        Parameters
        ----------
        component
            Name of the component.
        path
            Where in its configuration; empty for all of it.
        listener
            Called with the path that changed.

        Returns
        -------
        Subscription
            What ends it.
        """
        subscription = Subscription(component, path, listener)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        self._subscriptions.remove(subscription)

    def _check(self, component: str, leaves: Iterable[tuple[Path, object]], max_leaf: int) -> None:
        for leaf, value in leaves:
            size = len(json.dumps(value))
            if size > max_leaf:
                raise ConfigurationError(
                    f"configuration of {component}: {_pointer(leaf)} has {size} bytes as JSON, of at most {max_leaf}"
                )
            node: object = self._state.values[component]
            for key in leaf:
                if not isinstance(node, dict):
                    raise ConfigurationError(
                        f"configuration of {component}: {_pointer(leaf)} would make a map of a value; reset that first"
                    )
                node = node.get(key, {})

    def _set(self, component: str, leaf: Path, value: object, time_ms: float) -> bool:
        modified = self._state.modified[component]
        if _set_at(modified, leaf) > time_ms:
            return False
        container = self._state.values[component]
        for key in leaf[:-1]:
            if not isinstance(container.get(key), dict):
                modified.pop(_pointer(leaf[: leaf.index(key) + 1]), None)
                container[key] = {}
            container = container[key]
        if leaf[-1] in container and value == {} and isinstance(container[leaf[-1]], dict):
            return False  # merging nothing into a map
        changed = leaf[-1] not in container or container[leaf[-1]] != value
        # A map gives way with the times of all that was in it, or an older value below could not be set again.
        if isinstance(container.get(leaf[-1]), dict):
            self._remove(component, leaf)
        # The caller keeps its own, and may change it.
        container[leaf[-1]] = copy.deepcopy(value)
        modified[_pointer(leaf)] = time_ms
        return changed

    def _remove(self, component: str, path: Path) -> bool:
        modified = self._state.modified.get(component, {})
        for pointer in [known for known in modified if _is_below(known, _pointer(path))]:
            del modified[pointer]
        container: Any = self._state.values.get(component, {})
        if not path:
            removed = bool(container)
            container.clear()
            return removed
        for key in path[:-1]:
            container = container.get(key) if isinstance(container, dict) else None
        return isinstance(container, dict) and container.pop(path[-1], _ABSENT) is not _ABSENT

    def _saved(self, component: str, changed: Iterable[Path]) -> None:
        write_atomically(self._file, self._state.model_dump_json().encode())
        for path in changed:
            for subscription in list(self._subscriptions):
                if subscription.component == component and path[: len(subscription.path)] == subscription.path:
                    subscription.listener(path)


_ABSENT = object()


def parse_pointer(pointer: str) -> Path:
    """Split an RFC 6901 JSON pointer."""
    if pointer == "":
        return ()
    if not pointer.startswith("/"):
        raise ConfigurationError(f"JSON pointer {pointer!r}: expected it to start with '/' or to be empty")
    return tuple(key.replace("~1", "/").replace("~0", "~") for key in pointer[1:].split("/"))


def _pointer(path: Path) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)


def _is_below(pointer: str, ancestor: str) -> bool:
    return pointer == ancestor or pointer.startswith(ancestor + "/")


def _set_at(modified: Mapping[str, float], leaf: Path) -> float:
    """Return when the newest value that ``leaf`` would overwrite was set."""
    pointer = _pointer(leaf)
    times = [time for known, time in modified.items() if _is_below(known, pointer) or _is_below(pointer, known)]
    return max(times, default=0.0)


def _leaves(values: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield what is not a map, lists included, with its path; an empty map counts as a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value

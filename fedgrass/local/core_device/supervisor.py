"""The set of components on the device: starts, replaces and stops them in the order of their dependencies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedgrass.local.core_device.component import Component, Request, Specification, State, Surroundings
from fedgrass.local.core_device.layout import Layout
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.logs import log_event

_TIMED_OUT = "Timed out waiting for a response"


@dataclass(frozen=True)
class Outcome:
    """How a set of components ended up; ``broken`` maps names to reasons."""

    broken: Mapping[str, str]

    @property
    def succeeded(self) -> bool:
        """Whether every component is RUNNING or FINISHED."""
        return not self.broken


class Supervisor:
    """Runs components; ``builtin`` tells the states of those that are part of the device."""

    def __init__(
        self,
        layout: Layout,
        *,
        environment: Callable[[str], Mapping[str, str]],
        builtin: Callable[[str], State | None],
        changed: Callable[[], None],
        nucleus: Nucleus = CLASSIC,
    ) -> None:
        self._nucleus = nucleus
        self._prepared: dict[str, Component] = {}
        self._layout = layout
        self._environment = environment
        self._builtin = builtin
        self._changed = changed
        self._components: dict[str, Component] = {}
        self._moved = asyncio.Event()

    @property
    def components(self) -> Mapping[str, Component]:
        """The components by name."""
        return self._components

    async def prepare(self, specifications: Mapping[str, Specification], patience: float | None) -> Outcome:
        """Install what is new or differs, beside what runs; `replace` then starts it without installing it again."""
        self._prepared = {
            name: Component(specification, self._surroundings(name))
            for name, specification in specifications.items()
            if self._differs(name, specification)
        }
        # Side by side, as nucleus lite's units: one slow install does not hold up the others.
        coming = {name: asyncio.ensure_future(one.install()) for name, one in self._prepared.items()}
        if coming:
            await asyncio.wait(coming.values(), timeout=patience)
        broken = {}
        for name, installing in coming.items():
            if not installing.done():
                installing.cancel()
                broken[name] = _TIMED_OUT
            elif not installing.result():
                broken[name] = self._prepared[name].reason
        if broken:
            self._prepared = {}
        return Outcome(broken)

    async def replace(self, specifications: Mapping[str, Specification], *, installed: bool = False) -> None:
        """Make ``specifications`` the whole set: what is not in it, or differs, or is broken, is stopped first.

        A replaced component's HARD dependents restart by themselves when they see it go. ``installed`` says that everything
        was installed before the device started.
        """
        going = {
            name: component
            for name, component in self._components.items()
            if name not in specifications or self._differs(name, specifications[name])
        }
        coming = {
            name: specification
            for name, specification in specifications.items()
            if name in going or name not in self._components
        }
        log_event("components_replaced", stopping=sorted(going), starting=sorted(coming))
        # All gone before anything starts: the new version of a component may need the old one's port or lock.
        await asyncio.gather(*(component.stop() for component in going.values()))
        for name in going:
            del self._components[name]
        for name, specification in coming.items():
            self._components[name] = self._prepared.get(name) or Component(specification, self._surroundings(name))
        # Only when all of them are known: a component looks at its dependencies as soon as it starts.
        for name in coming:
            self._components[name].start(installed=installed or name in self._prepared)
        self._prepared = {}

    async def settled(self, patience: float | None = None) -> Outcome:
        """Wait until every component is RUNNING or FINISHED, or one is BROKEN; or for as long as ``patience`` lasts."""
        try:
            return await asyncio.wait_for(self._settled(), patience)
        except asyncio.TimeoutError:
            return Outcome({name: _TIMED_OUT for name, one in self._components.items() if not one.settled})

    async def _settled(self) -> Outcome:
        while True:
            broken = {c.name: c.reason for c in self._components.values() if c.state is State.BROKEN}
            if broken or all(component.settled for component in self._components.values()):
                return Outcome(broken)
            # Cleared on the loop and after the look, with no wait in between: no change can be missed.
            self._moved.clear()
            await self._moved.wait()

    def _differs(self, name: str, specification: Specification) -> bool:
        present = self._components.get(name)
        return present is None or present.specification != specification or present.state is State.BROKEN

    async def stop(self) -> None:
        """Stop every component, dependents before what they depend on."""
        remaining = dict(self._components)
        while remaining:
            needed = {name for component in remaining.values() for name in component.specification.dependencies}
            # A dependency cycle has no last one: stop what is left at once.
            last = {name: c for name, c in remaining.items() if name not in needed} or dict(remaining)
            await asyncio.gather(*(component.stop() for component in last.values()))
            for name in last:
                del remaining[name]
        self._components.clear()

    def request(self, name: str, request: Request) -> bool:
        """Pass a request to a component; ``False`` if there is none of that name."""
        component = self._components.get(name)
        if component is not None:
            component.request(request)
        return component is not None

    def dependency_changed(self, dependency: str) -> None:
        """Tell the dependents of ``dependency`` that its state changed."""
        for component in list(self._components.values()):
            if dependency in component.specification.dependencies:
                component.dependency_changed()

    def _state_of(self, name: str) -> State | None:
        component = self._components.get(name)
        return component.state if component is not None else self._builtin(name)

    def _component_changed(self, component: Component) -> None:
        if self._components.get(component.name) is component:
            self.dependency_changed(component.name)
            self._moved.set()
            self._changed()

    def _surroundings(self, name: str) -> Surroundings:
        directory = self._layout.work(name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # of the component's user, as both nuclei have it
        return Surroundings(
            environment=self._environment,
            directory=directory,
            log=self._layout.log(name),
            state_of=self._state_of,
            changed=self._component_changed,
            nucleus=self._nucleus,
        )

"""The schedule's time in place of the machine's."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

from tests.explorer.scheduler import Scheduler
from tests.explorer.services import START


@contextmanager
def virtual(scheduler: Scheduler) -> Iterator[None]:
    """Let ``time.sleep`` and default clocks be those of the schedule."""
    real_sleep, real_monotonic, real_time = time.sleep, time.monotonic, time.time
    replaced: list[tuple[dict[str, Any], str, Any]] = []

    def sleep(seconds: float) -> None:
        scheduler.sleep(seconds) if scheduler.current is not None else real_sleep(seconds)

    def monotonic() -> float:
        return scheduler.now if scheduler.current is not None else real_monotonic()

    def wall() -> float:
        return START.timestamp() + scheduler.now if scheduler.current is not None else real_time()

    stand_ins = {real_sleep: sleep, real_monotonic: monotonic}
    for function in _functions():
        defaults: dict[str, Any] = function.__kwdefaults__ or {}
        for name, value in defaults.items():
            if callable(value) and value in stand_ins:
                replaced.append((defaults, name, value))
                defaults[name] = stand_ins[value]
    replacing: Any = time
    replacing.sleep, replacing.time = sleep, wall
    try:
        yield
    finally:
        replacing.sleep, replacing.time = real_sleep, real_time
        for before, name, value in replaced:
            before[name] = value


@cache
def _functions() -> list[FunctionType]:
    found = []
    for name, module in list(sys.modules.items()):
        if name.startswith(("cloud.", "fedgrass.")):
            for value in vars(module).values():
                members = vars(value).values() if isinstance(value, type) else [value]
                found += [one for one in members if isinstance(one, FunctionType) and one.__kwdefaults__]
    return found

"""How often this process died at one piece of work: a model too large for the device's memory kills whoever trains it.

The nucleus starts a component three times, then it stays down until somebody deploys again. So the second death at the same
round, or command, is the last: it is given up, and the trainer lives. A reboot is no death of the trainer's making.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.files import write_atomically

MOST_DEATHS = 2

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    work: str
    deaths: int = 0
    boot: str = ""
    under_way: bool = True


class Attempts:
    """Beginnings without an end, of the one piece of work that is under way.

    Parameters
    ----------
    path
        File that holds them over deaths.
    boot
        Tells this boot of the device from others.
    """

    def __init__(self, path: Path, *, boot: str | None = None) -> None:
        self._path = path
        self._boot = _this_boot() if boot is None else boot
        self._record = self._load()

    def begins(self, work: str) -> int:
        """Note that work begins; returns how often the process has died at it."""
        known, deaths = self._record, 0
        if known is not None and known.work == work:
            deaths = known.deaths + (known.under_way and known.boot == self._boot)
        self._keep(_Record(work=work, deaths=deaths, boot=self._boot))
        return deaths

    def rests(self) -> None:
        """Note that the work has ended, or waits for the next start of the process."""
        if self._record is not None and self._record.under_way:
            self._keep(self._record.model_copy(update={"under_way": False}))

    def _keep(self, record: _Record) -> None:
        self._record = record
        with suppress(OSError):  # on a full disk nothing is counted, and the work may be tried again
            write_atomically(self._path, record.model_dump_json().encode())

    def _load(self) -> _Record | None:
        try:
            return _Record.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None


def died(deaths: int, what: str) -> str:
    """Say why a piece of work is given up."""
    return (
        f"the trainer died {'twice' if deaths == MOST_DEATHS else f'{deaths} times'} {what}, which is given up; its memory may "
        "not suffice, or its engine fails: see the device's log of com.fedgrass.Trainer"
    )


def _this_boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""

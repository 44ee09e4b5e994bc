"""How often one piece of work has killed whoever did it: a model too large for the device's memory does so each time.

The work is done by a child process, whose deaths are counted here, and the component's own while the child was at work: a
kernel that is short of memory may take both. The second death at the same round, or command, is the last: it is given up. A
reboot is no death of the work's making.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.files import write_atomically

MOST_DEATHS = 2

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_WITH_THE_TRAINER = "together with the trainer itself"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    work: str
    deaths: int = 0
    boot: str = ""
    under_way: bool = True
    last: str = ""


class Attempts:
    """Beginnings without an end, of the one piece of work that is under way.

    Parameters
    ----------
    path
        File that holds them over deaths of the component.
    boot
        Tells this boot of the device from others.
    """

    def __init__(self, path: Path, *, boot: str | None = None) -> None:
        self._path = path
        self._boot = _this_boot() if boot is None else boot
        self._record = self._load()

    def begins(self, work: str) -> int:
        """Note that work begins; returns how often whoever did it has died."""
        known, deaths, last = self._record, 0, ""
        if known is not None and known.work == work:
            deaths, last = known.deaths, known.last
            # Under way in this boot, and yet beginning again: the component died with its child.
            if known.under_way and known.boot == self._boot:
                deaths, last = deaths + 1, _WITH_THE_TRAINER
        self._keep(_Record(work=work, deaths=deaths, boot=self._boot, last=last))
        return deaths

    def died(self, cause: str) -> None:
        """Note that the child died of the work, and of what: ``by signal 11 (SIGSEGV)``."""
        if self._record is not None:
            update = {"deaths": self._record.deaths + 1, "under_way": False, "last": cause}
            self._keep(self._record.model_copy(update=update))

    def rests(self) -> None:
        """Note that the work has ended, or waits for the next start of the process."""
        if self._record is not None and self._record.under_way:
            self._keep(self._record.model_copy(update={"under_way": False}))

    def given_up(self, what: str) -> str:
        """Say why the work is given up; ``what`` is what it is."""
        deaths, last = (self._record.deaths, self._record.last) if self._record is not None else (0, "")
        times = "twice" if deaths == MOST_DEATHS else f"{deaths} times"
        return f"died {times} {what}, last {last}; it is given up. See the device's log of com.fedgrass.Trainer"

    def _keep(self, record: _Record) -> None:
        self._record = record
        with suppress(OSError):  # on a full disk nothing is counted over a restart, and the work may be tried again
            write_atomically(self._path, record.model_dump_json().encode())

    def _load(self) -> _Record | None:
        try:
            return _Record.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None


def _this_boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""

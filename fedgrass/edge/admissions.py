"""What became of each model on a device, as files: kept until ModelDeployer has told the cloud."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from fedgrass.files import write_atomically
from fedgrass.protocol.message import Metrics, Reason
from fedgrass.protocol.names import Version

Outcome = Literal["active", "refused", "rolled_back"]

# One note per model: a device without a link keeps this many.
_KEPT = 100


class Admission(BaseModel):
    """What became of a model, and which one is active since."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    number: int
    version: Version
    outcome: Outcome
    reason: Reason = ""
    active_version: Version | None = None
    metrics: Metrics = {}
    at: AwareDatetime


class _Verdict(BaseModel, defer_build=True):
    """A refusal that need not be judged again: the digest of what was asked, and when."""

    question: str
    at: AwareDatetime


class Admissions:
    """The notes, one file each, and the last refusal.

    Parameters
    ----------
    folder
        Where the notes are.
    verdict
        File of the last refusal. It is one, overwritten: only the model that was installed last is installed again.
    """

    def __init__(self, folder: Path, verdict: Path) -> None:
        self._folder = folder
        self._verdict = verdict

    def all(self) -> list[Admission]:
        """Return the notes in order; one that is damaged is left out."""
        found = []
        for path in sorted(self._folder.glob("[0-9]*.json")):
            with contextlib.suppress(ValidationError, FileNotFoundError):
                found.append(Admission.model_validate_json(path.read_bytes()))
        return found

    def add(
        self, version: str, outcome: Outcome, reason: str, metrics: dict[str, float] | None, *, active: str | None
    ) -> Admission:
        """Write a note.

        Parameters
        ----------
        version, outcome, reason, metrics
            What became of which model, why, and by which figures.
        active
            Version of the model that is active now.
        """
        earlier = self.all()
        admission = Admission(
            number=earlier[-1].number + 1 if earlier else 1,
            version=version,
            outcome=outcome,
            reason=reason,
            active_version=active,
            metrics=metrics or {},
            at=datetime.now(timezone.utc),
        )
        # Eight digits keep the order of names the order of numbers.
        write_atomically(self._folder / f"{admission.number:08d}.json", admission.model_dump_json().encode())
        # A device that is offline for months would fill its disk with notes.
        for old in earlier[: -_KEPT + 1]:
            (self._folder / f"{old.number:08d}.json").unlink(missing_ok=True)
        return admission

    def remember(self, question: str, admission: Admission) -> None:
        """Keep a refusal as the answer to a question, by the digest of all that was judged by."""
        verdict = _Verdict(question=question, at=admission.at)
        write_atomically(self._verdict, verdict.model_dump_json().encode())

    def remembered(self, question: str, seconds: float) -> Admission | None:
        """Return the last refusal if it answered the same question and is not older than ``seconds``."""
        try:
            known = _Verdict.model_validate_json(self._verdict.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        age = (datetime.now(timezone.utc) - known.at).total_seconds()
        told = self.all()
        # A clock that was set back makes an age negative: judged again, then.
        if known.question != question or not 0 <= age <= seconds or not told or told[-1].outcome != "refused":
            return None
        return told[-1]

    def forget(self) -> None:
        """Drop the last refusal."""
        self._verdict.unlink(missing_ok=True)

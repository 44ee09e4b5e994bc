"""The models on a device, under one folder that ModelDeployer owns and the application reads.

- ``models/<version>/``: admitted bundles.
- ``models/<version>/own-<digest>/``: the same model with what this device keeps for itself (`fedgrass.personal`).
- ``models/<version>/personal-<digest>/``: a whole model of this device's own in its place (`fedgrass.personal_models`).
- ``active``: link to one of them, swapped by renaming, so that ``active/inference.tflite`` always names a whole model.
- ``own.safetensors``, ``personal/``: what this device has for itself (`fedgrass.edge.device_models`); the trainer writes them.
- ``admissions/<number>.json``: what became of each model, in order; kept until ModelDeployer has told the cloud.
- ``refused.json``: what the last refusal answered, so that an install which is repeated does not judge again.
- ``lock``: held while any of it changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.edge.admissions import Admission, Admissions, Outcome
from fedgrass.edge.device_models import FLEET, DeviceModels, is_of_device, is_personal, opened
from fedgrass.errors import AdmissionError, BundleError
from fedgrass.files import copy_atomically, flush_directory, sha256_of, write_atomically
from fedgrass.protocol.names import SCORE


class ModelStore:
    """See the module. Every method may be called from any process of the device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models = folder / "models"
        self._notes = Admissions(folder / "admissions", folder / "refused.json")
        self._link = folder / "active"
        self.device = DeviceModels(folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store against other processes; not re-entrant.

        Raises
        ------
        AdmissionError
            If the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # flock, not a file's existence: the kernel gives it back when its holder is killed.
            stream = (self.folder / "lock").open("a")
        except OSError as error:
            raise AdmissionError(
                f"model store {self.folder}: cannot be written ({error.strerror}); com.fedgrass.ModelDeployer makes it, "
                "and must run as the same user as the model's admission"
            ) from error
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def active(self) -> Bundle | None:
        """Return the active model, as the fleet has it; None if there is none, or the link leads nowhere."""
        # The link is the only record of which model is active: nothing beside it could disagree after a power cut.
        if not self._link.is_symlink():
            return None
        folder = self._link.resolve()
        return opened(folder.parent if is_of_device(folder) else folder)

    def applied(self) -> Bundle | None:
        """Return what the application loads: the active model with this device's own parameters, where it has some."""
        return opened(self._link.resolve()) if self._link.is_symlink() else None

    @contextlib.contextmanager
    def compared(self) -> Iterator[Bundle | None]:
        """Yield what a new model of the fleet's is judged beside; None if there is none. Needs the lock.

        It is what the application loads, or, if that is a model of this device's own, the fleet's: the fleet is to learn of a
        model that is worse, however good this device's own is.
        """
        applied, active = self.applied() or self.active(), self.active()
        if applied is None or active is None or not is_personal(applied.folder):
            yield applied
            return
        try:
            active.verify()
        except BundleError:  # whoever compares finds that out, and lets the new model in
            yield active
            return
        with self.device.as_applied(active, name="compared") as found:
            yield found

    def models(self) -> list[Bundle]:
        """Return the stored models, last activated first."""
        folders = [f for f in self._models.glob("[0-9]*") if f.is_dir()] if self._models.is_dir() else []
        # `activate` touches the folder, so its modification time is the time of its last activation.
        folders.sort(key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
        return [bundle for folder in folders if (bundle := opened(folder)) is not None]

    def find(self, version: str, *, parameters_sha256: str, graph_sha256: str) -> Bundle | None:
        """Look for a stored model.

        Parameters
        ----------
        version
            Its version.
        parameters_sha256, graph_sha256
            Digests that it must have.

        Returns
        -------
        Bundle or None
            None if the store has no such version, or another model under it.
        """
        bundle = opened(self._models / version)
        if bundle is None:
            return None
        # A version string proves nothing: a fleet that was set up again starts at the same versions with other
        # models.
        digests = (bundle.manifest.parameters_sha256, bundle.manifest.graph_sha256)
        return bundle if digests == (parameters_sha256, graph_sha256) else None

    def holds(self, candidate: Bundle) -> bool:
        """Whether the active model is this one, byte for byte."""
        active = self.active()
        if active is None or active.manifest != candidate.manifest:
            return False
        try:
            # Digests again, not the manifest alone: flash corrupts files that nobody writes to.
            active.verify()
            applied = self.applied()
            if applied is not None and applied.folder != active.folder:
                applied.verify()
        except BundleError:
            return False
        return applied is not None

    def activate(self, bundle: Bundle, chosen: str = FLEET, *, scores: Mapping[str, bytes] | None = None) -> Bundle:
        """Copy a verified bundle into the store, unless it is there, and make it the active one. Needs the lock.

        Parameters
        ----------
        bundle
            The fleet's model.
        chosen
            Kind of this device's own model that the application is to load in its place.
        scores
            ``score.json`` of the fleet's model and of the chosen one, by kind; None leaves what is there.

        Returns
        -------
        Bundle
            The fleet's model, in the store.
        """
        target = self._models / bundle.manifest.version
        if bundle.folder != target:
            self._take_in(bundle, target)
        applied = self.device.made(Bundle.open(target), chosen)
        for folder, kind in {target: FLEET, applied: chosen}.items():
            if scores is not None:
                _put_score(folder, scores.get(kind))
        # By this time models are kept and rolled back to.
        os.utime(target)
        fresh = self.folder / f".active.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        # Relative: the nucleus may mount or move the work folder.
        fresh.symlink_to(applied.relative_to(self.folder))
        # Renaming is atomic: whoever opens a file through the link sees one model or the other, never none.
        fresh.replace(self._link)
        # Without it a power cut may bring the former link back, although the cloud was told of the new model.
        flush_directory(self.folder)
        # After the swap: the application may have had one of them open until now.
        self.device.clean(target, keep=applied)
        return Bundle.open(target)

    def roll_back(self, reason: str, *, to: str | None = None) -> Admission:
        """Make an earlier model the active one, and note that the present one was taken back. Needs the lock.

        A model that was taken back stays out: its lifecycle script lets it be, and no other roll-back leads to it, until
        it is asked for by name.

        Parameters
        ----------
        to
            Version to make active; None means the last activated of those that were not taken back.

        Raises
        ------
        AdmissionError
            If there is no such model here.
        """
        active = self.active()
        present = active.manifest.version if active is not None else "none"
        others = [bundle for bundle in self.models() if bundle.manifest.version != present]
        found = [b for b in others if (b.manifest.version == to if to else not self.is_taken_back(b.manifest.version))]
        if not found:
            have = ", ".join(bundle.manifest.version for bundle in others) or "none"
            raise AdmissionError(
                f"roll-back from {present}: no model {to or 'before it'} is kept here (others: {have})"
            )
        # Before the link moves: an earlier model may have been damaged since it was active.
        found[0].verify()
        self.activate(found[0])
        self.device.forget_tuned()
        # There was nothing to take back: a device whose link was lost gets its model again.
        if active is None:
            return self.record(found[0].manifest.version, "active", reason=reason)
        # Asked for by name, so its earlier roll-back no longer stands: its install must not skip it from now on.
        if to is not None and self.is_taken_back(to):
            self.record(to, "active", reason=reason)
        return self.record(present, "rolled_back", reason=reason)

    def is_taken_back(self, version: str) -> bool:
        """Whether the latest entry about this model says that it was rolled back."""
        outcomes = [admission.outcome for admission in self.admissions() if admission.version == version]
        return bool(outcomes) and outcomes[-1] == "rolled_back"

    def record(
        self, version: str, outcome: Outcome, *, reason: str = "", metrics: dict[str, float] | None = None
    ) -> Admission:
        """Note what became of a model, unless the last note says the same. Needs the lock.

        Parameters
        ----------
        version
            The model's version.
        outcome
            What became of it.
        reason
            Why, in words; cut to 500 characters.
        metrics
            Figures that it was judged by.

        Returns
        -------
        Admission
            The note, which the model deployer tells the cloud.
        """
        earlier = self.admissions()
        # An install that is repeated would otherwise tell the cloud of the same model each time.
        if earlier and (earlier[-1].version, earlier[-1].outcome, earlier[-1].reason) == (
            version,
            outcome,
            reason[:500],
        ):
            return earlier[-1]
        return self._notes.add(version, outcome, reason, metrics, active=self._active_version())

    def refuse(self, version: str, reason: str, question: str, metrics: dict[str, float] | None = None) -> Admission:
        """Note that a model was refused. Needs the lock.

        Parameters
        ----------
        version
            The model's version.
        reason
            Why, in words.
        question
            Digest of all that was judged by: the same question is not asked again.
        metrics
            Figures that it was judged by.

        Returns
        -------
        Admission
            The note.
        """
        # Always a new note, unlike `record`: a refusal after the hour has passed is a new verdict on new data.
        admission = self._notes.add(version, "refused", reason, metrics, active=self._active_version())
        self._notes.remember(question, admission)
        return admission

    def verdict(self, question: str, seconds: float) -> Admission | None:
        """Return the last refusal if it answered the same question and is not older than ``seconds``."""
        return self._notes.remembered(question, seconds)

    def forget_verdict(self) -> None:
        """Have a model that was refused judged again when it comes back: another was installed since. Needs the lock."""
        self._notes.forget()

    def admissions(self) -> list[Admission]:
        """Return the notes in order; one that is damaged is left out."""
        return self._notes.all()

    def _active_version(self) -> str | None:
        active = self.active()
        return active.manifest.version if active else None

    def prune(self, keep: int) -> list[str]:
        """Delete all but the active model and the last activated, ``keep`` in all; returns their versions. Needs the lock."""
        active = self.active()
        # The active model is kept whatever its age, and counts as one of those kept.
        bundles = [b for b in self.models() if active is None or b.folder != active.folder]
        old = bundles[max(keep - 1, 0) :]
        for bundle in old:
            shutil.rmtree(bundle.folder, ignore_errors=True)
        # What a kill left of a copy.
        for partial in self._models.glob(".*"):
            shutil.rmtree(partial, ignore_errors=True)
        return [bundle.manifest.version for bundle in old]

    def _take_in(self, bundle: Bundle, target: Path) -> None:
        # A damaged copy may be the active one: it is mended file by file, so that its path never goes away.
        folder = target if target.exists() else self._models / f".{target.name}.{os.getpid()}"
        try:
            for name in (*bundle.manifest.files, MANIFEST):
                if not _same(bundle.path(name), folder / name):
                    copy_atomically(bundle.path(name), folder / name)
            if folder != target:
                folder.rename(target)
                flush_directory(self._models)
        except OSError as error:
            if folder != target:
                shutil.rmtree(folder, ignore_errors=True)
            raise AdmissionError(f"model store {self.folder}: cannot take the model in ({error.strerror})") from error


def _put_score(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / SCORE).unlink(missing_ok=True)
    else:
        write_atomically(folder / SCORE, content)


def _same(one: Path, other: Path) -> bool:
    # The size first: it spares hashing a file that differs anyway.
    return other.is_file() and one.stat().st_size == other.stat().st_size and sha256_of(one) == sha256_of(other)

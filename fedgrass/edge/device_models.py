"""What a device has of its own beside the fleet's models, and the bundles that its application loads because of it.

- ``own.safetensors``: the parameters that this device trained and shares with nobody (`fedgrass.personal`).
- ``personal/``: whole models that this device has for itself (`fedgrass.personal_models`).
- ``own-<digest>/`` and ``personal-<digest>/`` in the folder of a model: the same model with the one or the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedgrass.bundle import Bundle, Parameters
from fedgrass.errors import AdmissionError, BundleError
from fedgrass.files import flush_directory, sha256_of

_OWN, _PERSONAL = "own-", "personal-"
FLEET = "fleet"
"""The kind of model that is not the device's own."""


class DeviceModels:
    """See the module; in the folder of a `fedgrass.edge.model_store.ModelStore`, whose lock each method needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def own(self) -> Path:
        """File of the parameters that this device keeps for itself."""
        return self._folder / "own.safetensors"

    @property
    def personal(self) -> Path:
        """Folder of the models that this device has for itself."""
        return self._folder / "personal"

    @contextlib.contextmanager
    def personal_models(self, candidate: Bundle) -> Iterator[dict[str, Bundle]]:
        """Yield, by kind, the models that the application could load in place of one of the fleet's."""
        if not self.personal.is_dir():
            yield {}
            return
        from fedgrass.personal import write_personal
        from fedgrass.personal_models import PersonalModels

        found = {}
        with self._scratch("personal") as folder:
            # What cannot be written says nothing against the fleet's model, which is judged by itself.
            with contextlib.suppress(BundleError):
                for kind, parameters in PersonalModels(self.personal, candidate.manifest).read().items():
                    found[kind] = write_personal(candidate, parameters, folder / kind)
            yield found

    @contextlib.contextmanager
    def as_applied(self, candidate: Bundle, *, name: str = "judged") -> Iterator[Bundle]:
        """Yield a model as the application would load it here, to be judged.

        Parameters
        ----------
        candidate
            The model.
        name
            Of the folder that it is written to, if it has parameters of this device's own.

        Raises
        ------
        BundleError
            If the model is damaged.
        """
        # A device that kept layers for itself never runs the fleet's bundle as it is, so that is not what is judged.
        own = self._own_parameters(candidate)
        if not own:
            yield candidate
            return
        from fedgrass.personal import write_personal

        candidate.verify()
        with self._scratch(name) as folder:
            yield write_personal(candidate, own, folder)

    def made(self, bundle: Bundle, chosen: str) -> Path:
        """Return the folder that the application is to load a stored model from; made if it is to have own parameters."""
        if chosen != FLEET:
            from fedgrass.personal_models import PersonalModels

            models = PersonalModels(self.personal, bundle.manifest)
            # Gone since it was judged: the fleet's model was admitted, too.
            if parameters := models.read().get(chosen, {}):
                return self._written(bundle, parameters, f"{_PERSONAL}{models.digest(chosen)[:16]}")
        own = self._own_parameters(bundle)
        return self._written(bundle, own, f"{_OWN}{sha256_of(self.own)[:16]}") if own else bundle.folder

    def forget_tuned(self) -> None:
        """Delete what training made of a model that was taken back: its faults would come back with it."""
        # Named here as well, since `fedgrass.personal_models` needs NumPy.
        (self.personal / "tuned.safetensors").unlink(missing_ok=True)

    @staticmethod
    def clean(model: Path, *, keep: Path) -> None:
        """Delete what was made in a model's folder, finished or not, but one."""
        made = {
            path for prefix in (_OWN, _PERSONAL) for path in (*model.glob(f"{prefix}*"), *model.glob(f".{prefix}*"))
        }
        for earlier in made - {keep}:
            shutil.rmtree(earlier, ignore_errors=True)

    @contextlib.contextmanager
    def _scratch(self, name: str) -> Iterator[Path]:
        """Yield a folder to write to, which is gone afterwards."""
        # Whoever holds the lock is alone: all that is there was left by an admission that was killed, perhaps of a release that
        # named its folder by its process.
        for left in self._folder.glob(f".{name}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = self._folder / f".{name}"
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _own_parameters(self, bundle: Bundle) -> Parameters:
        if not bundle.manifest.local_parameters:
            return {}
        from fedgrass.personal import Own  # needs NumPy, without which the heartbeat lives

        return Own.of(bundle.manifest, self.own).values

    def _written(self, bundle: Bundle, own: Parameters, name: str) -> Path:
        from fedgrass.personal import write_personal

        folder, partial = bundle.folder / name, bundle.folder / f".{name}.{os.getpid()}"
        made = opened(folder)
        # One that is damaged is made again below.
        with contextlib.suppress(BundleError):
            if made is not None:
                made.verify()
                return folder
        try:
            write_personal(bundle, own, partial)
            shutil.rmtree(folder, ignore_errors=True)
            # Renamed as a whole: the application's link never leads to a folder that is still being written.
            partial.rename(folder)
            flush_directory(bundle.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise AdmissionError(f"model store {self._folder}: cannot take the model in ({error.strerror})") from error
        return folder


def is_of_device(folder: Path) -> bool:
    """Whether a bundle's folder was made here, in the folder of one of the fleet's models."""
    return folder.name.startswith((_OWN, _PERSONAL))


def is_personal(folder: Path) -> bool:
    """Whether a bundle's folder holds a whole model of this device's own."""
    return folder.name.startswith(_PERSONAL)


def opened(folder: Path) -> Bundle | None:
    """Open a bundle; None if there is none, or one that is damaged."""
    try:
        return Bundle.open(folder)
    except BundleError:
        return None

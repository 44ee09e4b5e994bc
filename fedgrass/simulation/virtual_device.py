"""A virtual device's part in a round: the trainer's core and the codec, without the files."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass.bundle import Manifest, Parameters
from fedgrass.control import STEP_LENGTH, Control, ControlFiles
from fedgrass.data import Split
from fedgrass.data.arrays import ArrayDataset
from fedgrass.engines.base import Dataset, Engine
from fedgrass.engines.checks import Checked
from fedgrass.engines.flower_node import PARTITION, PARTITIONS, Node, join
from fedgrass.fitting import Fitted, fit
from fedgrass.partial import Ending, StepPlan
from fedgrass.personal import Own, shared_manifest, shared_of
from fedgrass.personal_models import Personal, PersonalModels
from fedgrass.protocol.messages import Announcement
from fedgrass.secure.device import context_of, masked
from fedgrass.simulation.attacks import Doubles, Seen, attacked_bytes, attacked_data, attacked_parameters
from fedgrass.simulation.helpers import virtual_signer
from fedgrass.simulation.population import thing_name
from fedgrass.simulation.settings import Attack
from fedgrass.update.feedback import ErrorFeedback
from fedgrass.update.registry import codec_named
from fedgrass.update.writer import encode_update

_NOBODY: Doubles = np.empty((0, 0))
_NONE = ArrayDataset(np.empty(0, np.float32), np.empty(0, np.float32))


@dataclass(frozen=True)
class Assignment:
    """What every device of a round has in common: the base, as parameters and as its manifest, and what was announced.

    ``server`` is the file with what the strategy keeps of the fleet, for devices that train with it.
    """

    base: Parameters
    manifest: Manifest
    announcement: Announcement
    server: Path | None = None


class VirtualDevices:
    """Trains devices with one engine, and encodes what they have learnt.

    Parameters
    ----------
    kept
        Folder for what lossy codecs leave out, and for what strategies have devices keep: a file of each for each device. None
        of it is flushed to the disk: a power cut costs a simulation its last rounds only.
    seed
        The simulation's, from which devices' signing keys follow.
    devices
        How many there are: Flower's clients are told.
    """

    def __init__(self, engine: Engine, manifest: Manifest, kept: Path, *, seed: int = 0, devices: int = 0) -> None:
        self._count = devices
        self._engine = engine
        self._seed = seed
        self._kept = kept
        self._classes = manifest.output.shape[-1] if manifest.output.shape else 1

    def train(
        self,
        device: int,
        data: Dataset,
        given: Assignment,
        attack: Attack | None,
        validation: Dataset = _NONE,
        share: float = 1.0,
    ) -> Fitted:
        """Train as one of the devices.

        Parameters
        ----------
        device
            The device's number.
        data
            Its examples.
        given
            The round's announcement, and its base.
        attack
            What it does if it is an attacker.
        validation
            The examples that it keeps back.
        share
            Of its training that it has done when the round's time is up.

        Returns
        -------
        Fitted
            What it learnt.

        Raises
        ------
        FedgrassError
            If the device fails: its examples do not fit the model, or its training diverges.
        """
        if attack is not None and attack.does.data != "own":
            # Marked as checked: the simulation has checked all examples at once, before any round.
            data = Checked(attacked_data(data, attack.does, self._classes))
        examples, thing, announced = Split(data, validation), thing_name(device), given.announcement
        # As on a device: its own layers over the round's base, then the training.
        own = Own.of(given.manifest, own_file(self._kept, device), str(announced.round), durable=False)
        self._engine.set_parameters(own.over(given.base))
        join(self._engine, Node(thing, {PARTITION: device, PARTITIONS: self._count}, self._kept / "flower" / thing))
        control = None
        if announced.fit.control is not None:
            files = ControlFiles(self._kept / f"control-{thing}.safetensors", given.server, durable=False)
            control = Control.of(announced, given.manifest, files, str(announced.round))
        correction = control.correction if control else None
        identity = str(announced.round)
        models = PersonalModels(personal_folder(self._kept, device), given.manifest, identity, durable=False)
        personal = Personal.of(announced.personal, models)
        ending = _part(share, data, given) if share < 1 else None
        fitted = fit(
            self._engine,
            given.manifest,
            examples,
            announced,
            thing,
            ending=ending,
            correction=correction,
            personal=personal,
        )
        own.keep(fitted.parameters)
        if control is not None:
            control.keep(given.base, fitted.parameters, fitted.header.metrics.get(STEP_LENGTH, 1.0))
        return fitted

    def encode(self, fitted: Fitted, given: Assignment, attack: Attack | None, honest: Doubles = _NOBODY) -> bytes:
        """Return the device's update file; raises `FedgrassError` if it has nothing finite to tell.

        Parameters
        ----------
        honest
            Differences [n, size] of the round's honest devices, for attackers that know them.
        """
        announced = given.announcement
        base, local = (dict(shared_of(given.manifest, p)) for p in (given.base, fitted.parameters))
        # After training, since an attack may start from what the attacker itself has learnt.
        if attack is not None and (craft := attack.does.craft) is not None:
            # By the round alone, so that colluding attackers draw alike.
            draws = np.random.default_rng(list(f"{announced.cohort.salt}/attack".encode()))

            def pretended(own: Doubles) -> Doubles:
                return craft(Seen(own, honest, attack.factor, draws))

            local = attacked_parameters(base, local, pretended)
        content = self._encoded(fitted, base, local, given)
        return attacked_bytes(content) if attack is not None and attack.does.spoils_file else content

    def _encoded(self, fitted: Fitted, base: Parameters, local: Parameters, given: Assignment) -> bytes:
        thing, announced = fitted.header.thing, given.announcement
        task = announced.update
        if announced.secure is not None:
            return masked(
                base,
                local,
                fitted.header,
                fitted.num_examples,
                announced.secure,
                context_of(announced),
                virtual_signer(self._seed, thing),
                clip_norm=task.clip_norm,
            ).to_bytes()
        encoded = encode_update(
            base,
            local,
            fitted.header,
            task,
            feedback=self._feedback(thing, given),
            noise_seed=_seeds(f"{announced.cohort.salt}/{thing}"),
        )
        return encoded.to_bytes()

    def _feedback(self, thing: str, given: Assignment) -> ErrorFeedback | None:
        if codec_named(given.announcement.update.codec).parameters.lossless:
            return None
        # The round names the work: repeated after an interruption, it must not add the residual twice.
        path, identity = self._kept / f"{thing}.safetensors", str(given.announcement.round)
        return ErrorFeedback(path, shared_manifest(given.manifest), identity, durable=False)


def _part(share: float, data: Dataset, given: Assignment) -> Ending:
    """Return what ends a training with this share of it, rounded down to whole steps, of one at least."""
    task, batch_size = given.announcement.fit, given.manifest.batch_size
    used = len(data) if task.max_examples is None else min(task.max_examples, len(data))
    least = max(1, int(share * StepPlan(task.epochs, batch_size).steps(used)))
    return Ending(lambda: True, least, math.ceil(used / batch_size))


def personal_folder(kept: Path, device: int) -> Path:
    """Return the folder of the models that a virtual device has for itself."""
    return kept / f"personal-{thing_name(device)}"


def own_file(kept: Path, device: int) -> Path:
    """Return the file of what a virtual device keeps for itself."""
    return kept / f"own-{thing_name(device)}.safetensors"


def _seeds(text: str) -> Callable[[], bytes]:
    numbers = itertools.count()
    # One seed for each block, in the order in which they are asked for.
    return lambda: hashlib.sha256(f"{text}/{next(numbers)}".encode()).digest()

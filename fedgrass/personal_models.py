"""Models that a device has for itself beside the fleet's: fine-tuned on its data, or held near the fleet's (Ditto).

In a round whose announcement has ``personal``, a device keeps what its training made of the fleet's model (``tuned``), and with
Ditto trains a second model in the same round: from where the last round left it, with a proximal term that holds it to the
fleet's (``ditto``; Li et al. 2021, https://arxiv.org/abs/2012.04221, algorithm 1). Neither is in any update. The device judges
all on the examples that it keeps back, tells the figures, and its application loads the best (`fedgrass.edge.choice`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedgrass import checkpoints
from fedgrass.bundle import Manifest, Parameters
from fedgrass.engines.base import Dataset, Engine, FitResult, FitSettings, FitState, Hooks, Metrics
from fedgrass.errors import DivergedError, EngineError, NoFiguresError
from fedgrass.files import sha256_of
from fedgrass.kept_state import KeptState
from fedgrass.own_code import own_code
from fedgrass.protocol.messages import PersonalTask

FOLDER = "personal"
"""Name of the folder that they are in."""
TUNED, DITTO = "tuned", "ditto"

_CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class PersonalModels:
    """One device's, in a folder: a file of each, bound to the graph and the kind.

    Parameters
    ----------
    folder
        Made when the first is kept.
    manifest
        Of the fleet's model.
    identity
        Differs between any two rounds, and is the same when a round's work is repeated. Without one the newest are meant.
    durable
        Whether they must outlive a power cut.
    """

    folder: Path
    manifest: Manifest
    identity: str = ""
    durable: bool = True

    def kept(self, kind: str) -> KeptState:
        """Return where a kind's model is from round to round."""
        return KeptState(self._path(kind), self.manifest, self.identity, owner=kind, durable=self.durable)

    def read(self) -> dict[str, Parameters]:
        """Return the models by kind; without those that are damaged, not finite or of another graph."""
        found = {kind: self.kept(kind).before() for kind in (TUNED, DITTO)}
        return {kind: parameters for kind, parameters in found.items() if parameters}

    def digest(self, kind: str) -> str:
        """Return the SHA-256 of a kind's file."""
        return sha256_of(self._path(kind))

    def _path(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"


@dataclass(frozen=True)
class Personal:
    """A device's part in such a round, beside its training for the fleet.

    Parameters
    ----------
    task
        As announced.
    models
        The device's.
    after_batch
        Called after each batch; may raise `StopTraining`.
    """

    task: PersonalTask
    models: PersonalModels
    after_batch: Callable[[int, int], None] = lambda epoch, step: None

    @classmethod
    def of(
        cls,
        task: PersonalTask | None,
        models: PersonalModels | None,
        after_batch: Callable[[int, int], None] = lambda epoch, step: None,
    ) -> Personal | None:
        """Return a round's; None if it asks for none, or this participant has nowhere to keep a model."""
        return None if task is None or models is None else cls(task, models, after_batch)

    def require(self, engine: Engine) -> None:
        """Raise `EngineError` unless an engine can hold one model to another."""
        if self.task.mode == DITTO and not getattr(engine, "takes_start", False):
            raise EngineError(
                "personal.mode ditto: this device's engine trains in one call and cannot hold a model near another; use litert, "
                "keras, torch or sklearn, or personal.mode fine_tune"
            )

    def judged(self, engine: Engine, validation: Dataset, prefix: str) -> Metrics:
        """Return loss and accuracy of the engine's present parameters, named by a prefix; none without examples."""
        if not len(validation):
            return {}
        try:
            with own_code("evaluating"):
                found = engine.evaluate(validation)
        except NoFiguresError:
            return {}
        return {f"{prefix}_{name}": found[name] for name in ("loss", "accuracy") if name in found}

    def trained(
        self,
        engine: Engine,
        data: Dataset,
        validation: Dataset,
        settings: FitSettings,
        base: Parameters,
        fitted: FitResult,
    ) -> Metrics:
        """Train what the round asks for besides, and keep it.

        Parameters
        ----------
        engine
            What the fleet's training was done with; it holds another model afterwards.
        data, validation
            The device's examples.
        settings
            Of the fleet's training.
        base
            The parameters that it began with.
        fitted
            What came of it.

        Returns
        -------
        dict
            Figures of the second model, if there is one.

        Raises
        ------
        StopTraining
            If a hook did; the round that is done again goes on from the checkpoint.
        """
        tuned = self.models.kept(TUNED)
        tuned.path.parent.mkdir(parents=True, exist_ok=True)
        tuned.keep({}, fitted.parameters)
        if self.task.mode != DITTO:
            return {}
        kept = self.models.kept(DITTO)
        before = kept.before()
        engine.set_parameters(base)
        own = self._fit(engine, data, settings, before or base)
        # What diverged begins anew from the fleet's: the round itself went well.
        kept.keep(before, own or base)
        engine.set_parameters(own or base)
        found = self.judged(engine, validation, "personal")
        self._path.unlink(missing_ok=True)
        return found

    def _fit(self, engine: Engine, data: Dataset, settings: FitSettings, start: Parameters) -> Parameters | None:
        task, path, identity = self.task, self._path, f"{self.models.identity}/{DITTO}"
        wanted = replace(
            settings,
            epochs=task.epochs or settings.epochs,
            local_epochs=0,
            learning_rate=task.learning_rate or settings.learning_rate,
            proximal_mu=task.strength,
            correction=None,
            start=start,
        )
        durable = self.models.durable
        earlier = checkpoints.load(path, identity) if durable else None

        def save(state: FitState) -> None:
            if durable:
                checkpoints.save(path, identity, state, 0.0)

        try:
            with own_code("training"):
                found = engine.fit(
                    data,
                    wanted,
                    hooks=Hooks(self.after_batch, save, save),
                    resume=earlier.state if earlier else None,
                )
        except DivergedError:
            return None
        return found.parameters

    @property
    def _path(self) -> Path:
        return self.models.folder / _CHECKPOINT

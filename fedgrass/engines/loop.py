"""The training loop of engines that are fed batch by batch: checks, epochs, hooks, resuming, and what happens on failure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedgrass.bundle import Bundle, Manifest, Parameters
from fedgrass.engines.base import (
    Batch,
    Dataset,
    EndTraining,
    FitResult,
    FitSettings,
    FitState,
    Hooks,
    Measured,
    StopTraining,
)
from fedgrass.engines.checks import Checked, check_batch, check_dataset, origin_in
from fedgrass.engines.metrics import CLASSIFIERS, correct, losses
from fedgrass.engines.several import total_loss
from fedgrass.engines.tally import Tally
from fedgrass.engines.weights import weighted
from fedgrass.errors import DataError, DivergedError, EngineError
from fedgrass.tensors import Array

# Scalars that are looked at together.
_BLOCK = 1 << 20


class BatchEngine(ABC):
    """An engine made of one step on one batch; the rest of `fedgrass.engines.base.Engine` is here.

    Raises
    ------
    BundleError
        If a file of the bundle differs from the manifest.
    """

    manifest: Manifest
    takes_start = True
    takes_end = True

    def __init__(self, bundle: Bundle) -> None:
        bundle.verify()
        self.manifest = bundle.manifest

    @abstractmethod
    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""

    @abstractmethod
    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""

    @abstractmethod
    def _begin(self, settings: FitSettings) -> None:
        """Take the present parameters as the proximal term's anchor, and clear the optimizer's state."""

    @abstractmethod
    def _step(self, batch: Batch) -> float:
        """Take one optimizer step; return the mean loss before it."""

    def _set_rate(self, rate: float) -> None:
        """Take the next steps at this learning rate; an engine that cannot raises `EngineError`."""
        raise EngineError(
            f"model {self.manifest.name!r}: this engine cannot change the learning rate to {rate:g} within a round; "
            "export the model without a schedule"
        )

    def _batch_size(self, data: Dataset) -> int:
        """Return how many examples a step takes."""
        del data
        return self.manifest.batch_size

    @abstractmethod
    def _judged(self, batch: Batch) -> tuple[float, float, Array]:
        """Return the sums over the batch of the losses and of how right each example is, and the outputs [n, …].

        Outputs of classifiers are probabilities; several are in a row, as their losses take them.
        """

    @abstractmethod
    def _optimizer_state(self) -> list[Array]:
        """Return a copy of the optimizer's state, and of what random layers draw from."""

    @abstractmethod
    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        """Put back what `_optimizer_state` gave; raises `EngineError` if it is another model's."""

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        """Train from the present parameters, batch by batch; see `fedgrass.engines.base.Engine.fit`.

        Parameters
        ----------
        data
            The examples, which are checked first.
        settings
            Epochs, rates and the seed of the shuffling.
        hooks
            Called after batches and epochs.
        resume
            Where an earlier process came to in this training.

        Returns
        -------
        FitResult
            The parameters, and how the training went.

        Raises
        ------
        DataError
            If the data are empty or do not fit the model.
        DivergedError
            If the loss stops being finite.
        """
        check_dataset(data, self.manifest)
        data = weighted(data, settings.class_weight, self.manifest)
        # Taken before anything changes: what the engine is left with if the training fails.
        base = self._base()
        self._begin(settings)
        state = resume or FitState(0, {})
        try:
            if settings.start is not None:
                # After `_begin`: it has taken the present parameters for the proximal term's anchor.
                self.set_parameters(dict(settings.start))
            if resume is not None:
                # After `_begin`, so that the proximal term's anchor stays the base, not the checkpoint.
                self.set_parameters(dict(resume.parameters))
                self._set_optimizer_state(resume.optimizer)
            while state.epoch < settings.all_epochs and not state.ended:
                state = self._epoch(data, settings, state, hooks)
                if hooks is not None:
                    (hooks.stopped if state.ended else hooks.after_epoch)(state)
        except BaseException:
            # Whatever ended the training, what comes next starts from parameters that are known to be good.
            self.set_parameters(dict(base))
            raise
        metrics = {"loss": state.losses[-1]} if state.losses else {}
        planned = settings.all_epochs * math.ceil(len(data) / self._batch_size(data)) if state.ended else 0
        return FitResult(dict(state.parameters) or self.get_parameters(), len(data), metrics, state.steps, planned)

    def evaluate(self, data: Dataset) -> Measured:
        """Return ``loss`` (mean), ``examples``, and the other figures of a model of its kind, with their sums.

        Raises
        ------
        DataError
            If the data are empty or do not fit the model.
        """
        loss = right = examples = 0.0
        tally = Tally(self.manifest)
        for batch in data.batches(self.manifest.batch_size):
            # Checked while it is read, not before: evaluating reads each example once.
            if not isinstance(data, Checked):
                check_batch(batch, self.manifest, first=int(examples), origin=origin_in(data))
            judged = self._judged(batch)
            loss += judged[0]
            right += judged[1]
            examples += len(batch.x)
            tally.add(judged[2], batch.y, batch.anomaly)
        if examples == 0:
            raise DataError(f"no examples to evaluate model {self.manifest.name!r} on")
        metrics = {"loss": loss / examples, "examples": examples}
        if self.manifest.loss in CLASSIFIERS and not self.manifest.outputs:
            metrics["accuracy"] = right / examples
        figures, sums = tally.figures()
        return Measured({**metrics, **figures}, sums)

    def _epoch(self, data: Dataset, settings: FitSettings, begun: FitState, hooks: Hooks | None) -> FitState:
        """Do the rest of an epoch. Between epochs, without hooks, nobody looks at the parameters: they stay where they are."""
        epoch, total, examples, step, ended = begun.epoch, begun.loss_sum, 0, 0, False
        fixed = self._fixed(settings, begun)
        for batch in data.batches(self._batch_size(data), seed=settings.epoch_seed(epoch)):
            # Counted for skipped batches too: the mean loss is over the whole epoch's examples.
            examples += len(batch.x)
            step += 1
            # Done before a restart. The order is the seed's, so skipping leads to the very batch that was next.
            if step <= begun.step:
                continue
            if self.manifest.optimizer.schedule is not None:
                done = begun.steps + step - begun.step - 1
                self._set_rate(self.manifest.optimizer.rate_at(settings.learning_rate, done))
            loss = self._step(batch)
            if fixed:
                # A step moves all; put back before the next one, these are as if they had never moved.
                self.set_parameters({**self.get_parameters(), **fixed})
            # At every step: one more would write NaN into all parameters.
            if not math.isfinite(loss):
                raise self._diverged(f"loss is {loss} in epoch {epoch + 1}, step {step}")
            total += loss * len(batch.x)
            ended = hooks is not None and self._told(hooks, begun, step, total)
            if ended:
                break
        losses, steps = [*begun.losses, total / max(examples, 1)], begun.steps + step - begun.step
        if ended and examples < len(data):
            state = replace(begun, losses=losses, step=step, loss_sum=total, steps=steps, ended=True)
        else:
            state = FitState(epoch + 1, {}, losses=losses, steps=steps, ended=ended and epoch + 1 < settings.all_epochs)
        # Reading the parameters copies the whole model, so it is done only if somebody looks or it is over.
        if hooks is not None or state.epoch == settings.all_epochs:
            state = replace(state, **self._held(keep=hooks is None or hooks.keep))
            self._require_finite(state.parameters)
        return state

    def _told(self, hooks: Hooks, begun: FitState, step: int, total: float) -> bool:
        """Tell of a batch of the epoch that began so; returns whether the training is to end with it."""
        try:
            hooks.after_batch(begun.epoch, step)
        except StopTraining:
            steps = begun.steps + step - begun.step
            # The state before the epoch with the place within it: enough to go on at the next batch.
            hooks.stopped(replace(begun, step=step, loss_sum=total, steps=steps, **self._held(keep=hooks.keep)))
            raise
        except EndTraining:
            return True
        return False

    def _fixed(self, settings: FitSettings, begun: FitState) -> Parameters:
        """Return the parameters that an epoch is to leave as they are; of FedRep's two turns the second begins here."""
        if not settings.local_epochs:
            return {}
        local = {parameter.name for parameter in self.manifest.local_parameters}
        if (begun.epoch, begun.step) == (settings.local_epochs, 0):
            # What the optimizer remembers is of the other parameters' turn.
            self._begin(settings)
        first = begun.epoch < settings.local_epochs
        return {name: value for name, value in self.get_parameters().items() if (name in local) != first}

    def _held(self, *, keep: bool) -> dict[str, Any]:
        """Return the fields of `FitState` that the engine holds."""
        parameters = self.get_parameters() if keep else self._lend_parameters()
        return {"parameters": parameters, "optimizer": self._optimizer_state()}

    def _base(self) -> Mapping[str, Array]:
        """Return the present parameters, to be put back if the training fails."""
        return self.get_parameters()

    def _lend_parameters(self) -> Parameters:
        """Return the present parameters, which hold until the engine is called again."""
        return self.get_parameters()

    def _require_finite(self, parameters: Mapping[str, Array]) -> None:
        for name, value in parameters.items():
            flat = value.reshape(-1)
            # In blocks, because what is compared takes a byte for each scalar.
            if not all(np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK)):
                raise self._diverged(f"{name!r} is no longer finite")

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"model {self.manifest.name!r}: {what}; the base parameters are kept. "
            "Use a smaller learning_rate or a clip_norm"
        )


class OutputEngine(BatchEngine):
    """An engine whose framework gives outputs; losses and right answers are counted here."""

    @abstractmethod
    def _outputs(self, x: Array) -> Array:
        """Return probabilities of classifiers, plain outputs of others [n, …]."""

    def _judged(self, batch: Batch) -> tuple[float, float, Array]:
        outputs, loss = self._outputs(batch.x), self.manifest.loss
        if several := self.manifest.outputs:
            return total_loss(outputs, batch.y, several), 0.0, outputs
        each = losses(loss, outputs, batch.y, self.manifest.loss_options)
        return float(each.sum()), float(correct(loss, outputs, batch.y).sum()), outputs


def check_state(state: Sequence[Array], expected: Sequence[tuple[int, ...]]) -> None:
    """Raise `EngineError` unless a checkpoint's optimizer state has these shapes."""
    if [tuple(value.shape) for value in state] != [tuple(shape) for shape in expected]:
        raise EngineError("checkpoint: its optimizer state is another model's; delete the checkpoint")

"""Checkpoints of a training: what lets one that was killed go on to the same result."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedgrass import tensors
from fedgrass.engines.base import FitState
from fedgrass.errors import TensorFileError
from fedgrass.mapped_tensors import MappedTensors

_PARAMETER, _OPTIMIZER = "p/", "o/"


@dataclass(frozen=True)
class Checkpoint:
    """Where a training has come to, and the seconds spent on it so far, over all restarts."""

    state: FitState
    seconds: float


def save(path: Path, identity: str, state: FitState, seconds: float) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path
        File to write.
    identity
        Digest of round and participant: a checkpoint of any other training is not taken up.
    state
        Parameters, optimizer and place in the epoch.
    seconds
        Spent training so far.
    """
    stored = {f"{_PARAMETER}{name}": value for name, value in state.parameters.items()}
    stored |= {f"{_OPTIMIZER}{index:06d}": value for index, value in enumerate(state.optimizer)}
    metadata = {
        "identity": identity,
        "epoch": str(state.epoch),
        "losses": json.dumps(state.losses),
        "step": str(state.step),
        # repr gives every digit: a resumed training must give the same bytes as one that was never interrupted.
        "loss_sum": repr(state.loss_sum),
        "steps": str(state.steps),
        "seconds": repr(seconds),
        "ended": str(int(state.ended)),
    }
    tensors.save(path, stored, metadata)


def load(path: Path, identity: str) -> Checkpoint | None:
    """Return the checkpoint of this very training; None if there is none, or it is damaged: then training starts over."""
    if not path.exists():
        return None
    with contextlib.suppress(TensorFileError, KeyError, ValueError):
        stored = MappedTensors(path)
        metadata = stored.metadata
        if metadata["identity"] == identity:
            state = FitState(
                epoch=int(metadata["epoch"]),
                # Mapped, not read: the engine copies them, and twice in memory they would not fit a small device.
                parameters=MappedTensors(path, prefix=_PARAMETER),
                optimizer=[stored[name] for name in sorted(stored) if name.startswith(_OPTIMIZER)],
                losses=[float(loss) for loss in json.loads(metadata["losses"])],
                step=int(metadata["step"]),
                loss_sum=float(metadata["loss_sum"]),
                steps=int(metadata["steps"]),
                ended=metadata.get("ended") == "1",
            )
            return Checkpoint(state, float(metadata["seconds"]))
    return None

"""The operator's evaluation set, and a model's figures on it; and the best figures of the models before, kept beside the model.

The high-water mark belongs to a model: it is written with it, and a fleet that is rolled back has that model's again. A model
that a person publishes or releases has none: the next round begins with its own figures. So it is an object, not an item of the
table.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from pydantic import ValidationError

from fedgrass.bundle import PARAMETERS, Manifest, Parameters
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.data import ArrayDataset
from fedgrass.data.evaluation_set import MAX_EVALUATION_BYTES, EvaluationSet, read_evaluation_set
from fedgrass.engines.base import Engine
from fedgrass.errors import EngineError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import evaluation_key
from fedgrass.protocol.report import Best, Evaluation

BEST = "best.json"
DEVICES = "devices"
"""In place of an evaluation set's digest: the figures are those of devices, on the examples that they keep back."""
_MAX_BEST_BYTES = 4096


def load_best(bucket: Bucket, base: Base) -> Best | None:
    """Return the best figures so far that were left with a base; None if there are none, or they cannot be read."""
    content = bucket.read(base.parameters_key.removesuffix(PARAMETERS) + BEST, max_bytes=_MAX_BEST_BYTES)
    try:
        return None if content is None else Best.model_validate_json(content)
    # Written by another release, or damaged: the mark begins again rather than stopping the round.
    except ValidationError:
        return None


def publish_best(bucket: Bucket, prefix: str, best: Best) -> None:
    """Put the best figures so far beside a model that becomes the next base; safe to repeat.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    prefix
        The model's prefix.
    best
        The best figures, and the evaluation set that they are of.
    """
    # Overwritten, unlike the model's files: a job that is run again may evaluate with other last digits.
    bucket.write(prefix + BEST, best.model_dump_json().encode())


def evaluation_set_sha256(scratch: Path) -> str:
    """Return the digest of the file that `load_evaluation_set` fetched: figures on another one are not to be compared."""
    return hashlib.sha256(evaluation_file(scratch).read_bytes()).hexdigest()


_FILE = "evaluation.npz"


def load_evaluation_set(
    bucket: Bucket, fleet: str, scratch: Path, manifest: Manifest | None = None
) -> EvaluationSet | None:
    """Fetch the fleet's evaluation set.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    fleet
        The fleet's name.
    scratch
        Folder that the file is written to.
    manifest
        The model's, by which labels become y as on devices; None: y is taken as it stands.

    Returns
    -------
    EvaluationSet or None
        None if the operator has put none there.

    Raises
    ------
    DataError
        If it is not an ``.npz`` of arrays ``x`` and ``y``, and perhaps ``anomaly``, or unpacks to more than 1 GiB.
    """
    content = bucket.read(evaluation_key(fleet), max_bytes=MAX_EVALUATION_BYTES)
    if content is None:
        return None
    path = evaluation_file(scratch)
    write_atomically(path, content)
    return read_evaluation_set(path, manifest)


def evaluation_file(scratch: Path) -> Path:
    """Return where `load_evaluation_set` puts the file that it fetches."""
    return scratch / _FILE


class Evaluator:
    """Evaluates parameters of the model that an engine holds."""

    def __init__(self, engine: Engine, data: ArrayDataset) -> None:
        self._engine = engine
        self._data = data

    def evaluate(self, parameters: Parameters) -> Evaluation:
        """Return loss, and the other figures of a model of its kind.

        Raises
        ------
        DataError
            If the evaluation set does not fit the model.
        EngineError
            If the loss is not finite.
        """
        self._engine.set_parameters(parameters)
        metrics = self._engine.evaluate(self._data)
        # A comparison with NaN is false either way, and the gate would let the model pass.
        if not math.isfinite(metrics["loss"]):
            raise EngineError(f"the loss on the evaluation set is {metrics['loss']}")
        return Evaluation.of(metrics, len(self._data))

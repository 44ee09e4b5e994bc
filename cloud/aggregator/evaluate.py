"""The operator's evaluation set, and a model's figures on it."""

from __future__ import annotations

import math
from pathlib import Path

from cloud.aggregator.s3 import Bucket
from fedgrass.bundle import Bundle, Parameters
from fedgrass.data import ArrayDataset
from fedgrass.data.loaders import load_npz
from fedgrass.errors import EngineError
from fedgrass.files import write_atomically
from fedgrass.protocol.names import evaluation_key
from fedgrass.protocol.report import Evaluation

MAX_EVALUATION_BYTES = 1 << 30


def load_evaluation_set(bucket: Bucket, fleet: str, scratch: Path) -> ArrayDataset | None:
    """Return the fleet's evaluation set, or None if the operator has put none there.

    Raises
    ------
    DataError
        If it is not an ``.npz`` of arrays ``x`` and ``y``, or unpacks to more than 1 GiB.
    """
    content = bucket.read(evaluation_key(fleet), max_bytes=MAX_EVALUATION_BYTES)
    if content is None:
        return None
    path = scratch / "evaluation.npz"
    write_atomically(path, content)
    return ArrayDataset(*load_npz(path, max_bytes=MAX_EVALUATION_BYTES))


class Evaluator:
    """Evaluates parameters of one model: the graph is loaded once.

    Raises
    ------
    BundleError
        If LiteRT cannot load the bundle's graph.
    """

    def __init__(self, bundle: Bundle, data: ArrayDataset) -> None:
        from fedgrass.engines.litert import LiteRTEngine  # takes a quarter of a second: only where there are data

        self._engine = LiteRTEngine(bundle)
        self._data = data

    def evaluate(self, parameters: Parameters) -> Evaluation:
        """Return loss and, for classifiers, accuracy.

        Raises
        ------
        DataError
            If the evaluation set does not fit the model.
        EngineError
            If the loss is not finite.
        """
        self._engine.set_parameters(parameters)
        metrics = self._engine.evaluate(self._data)
        if not math.isfinite(metrics["loss"]):
            raise EngineError(f"the loss on the evaluation set is {metrics['loss']}")
        return Evaluation(loss=metrics["loss"], accuracy=metrics.get("accuracy"), examples=len(self._data))

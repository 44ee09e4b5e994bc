"""The application's model of a bundle, for requests that come side by side."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from fedgrass.bundle import INFERENCE, Bundle, TensorDescription
from fedgrass.engines.signatures import Signature
from fedgrass.errors import BundleError
from fedgrass.tensors import Array


class ServedModel:
    """A bundle's ``inference.tflite``.

    Parameters
    ----------
    folder
        The bundle's folder; every file is compared with its digest.

    Raises
    ------
    BundleError
        If it is damaged, has no model for LiteRT, or LiteRT cannot run that.
    """

    def __init__(self, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        bundle = Bundle.open(folder)
        # SageMaker unpacked it from an archive; a damaged file would give wrong answers without a sign.
        bundle.verify()
        self.manifest = bundle.manifest
        if INFERENCE not in bundle.manifest.files:
            raise BundleError(f"{folder}: has no {INFERENCE}; models of other engines than LiteRT are not served")
        if bundle.manifest.inputs or bundle.manifest.outputs:
            raise BundleError(
                f"{folder}: has several inputs or outputs, and a request holds one of each; run its {INFERENCE} with LiteRT, "
                "where they have names"
            )
        try:
            interpreter = Interpreter(model_path=str(bundle.path(INFERENCE)))
            self._infer = Signature(interpreter.get_signature_runner("infer"))
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{bundle.path(INFERENCE)}: LiteRT cannot run it ({error})") from error
        self._lock = threading.Lock()  # the interpreter's tensors are one set

    @property
    def x(self) -> TensorDescription:
        """What one example is."""
        return self.manifest.x

    def predict(self, examples: Array) -> Array:
        """Return the outputs, one for each of the ``examples``, of which there is one at least."""
        with self._lock:
            # One by one: the signature is called with the shape that it has, one example.
            return np.concatenate([self._infer(x=example[np.newaxis])["y"] for example in examples])

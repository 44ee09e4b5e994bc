"""The application's model of a bundle, for requests that come side by side."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from fedgrass.bundle import INFERENCE, Bundle
from fedgrass.errors import BundleError
from fedgrass.inference import Application
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
        bundle = Bundle.open(folder)
        # SageMaker unpacked it from an archive; a damaged file would give wrong answers without a sign.
        bundle.verify()
        self.manifest = bundle.manifest
        if INFERENCE not in bundle.manifest.files:
            raise BundleError(f"{folder}: has no {INFERENCE}; models of other engines than LiteRT are not served")
        try:
            self._infer = Application(bundle.path(INFERENCE), bundle.manifest)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{bundle.path(INFERENCE)}: LiteRT cannot run it ({error})") from error
        self._lock = threading.Lock()  # the interpreter's tensors are one set

    def predict(self, examples: Array) -> Array:
        """Return the outputs, one for each of the ``examples``, of which there is one at least; several in a row."""
        with self._lock:
            # One by one: the signature is called with the shape that it has, one example.
            return np.concatenate([self._infer(example[np.newaxis]) for example in examples])

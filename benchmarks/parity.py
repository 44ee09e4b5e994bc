"""How far one training step on the device is from TensorFlow's, over every layer, activation and loss that authoring offers.

``python -m benchmarks.parity`` exports the nets of ``tests/fedgrass/authoring``, takes one step of each with LiteRT and with
TensorFlow, and prints ``parity_max_abs``: the largest difference of any output, loss or weight; and that of each net.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import keras

from fedgrass import bundle
from tests.fedgrass.authoring import nets


def main() -> None:
    """Run all of it."""
    found = {}
    for build in (nets.images, nets.sequences, nets.activations):
        found[build.__name__] = _one_step(build, "sparse_categorical_crossentropy")
    for loss in get_args(bundle.Loss):
        found[loss] = _one_step(partial(nets.for_loss, loss), loss)
    print(json.dumps({"parity_max_abs": max(found.values()), "parity": found}))


def _one_step(build: Callable[[], Any], loss: bundle.Loss) -> float:
    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return max(nets.one_step(build(), loss, Path(folder)).values())


if __name__ == "__main__":
    main()

"""The application's model, converted so that parameters can be replaced in it without TensorFlow.

The converter stores each parameter as a constant, some with permuted axes. It is run here with distinct random values
in place of the parameters, which makes every constant recognisable; where each one lies goes into the manifest.
"""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from authoring.errors import UnsupportedModelError
from fedgrass.bundle import Constant, Parameters
from fedgrass.inference import with_parameters


def convert(model: Any, parameters: Parameters) -> tuple[bytes, tuple[Constant, ...]]:
    """Convert a Keras model to a LiteRT model for one example with signature ``infer(x) -> y``.

    Parameters
    ----------
    parameters
        The trainable parameters by name, in the order of ``model.trainable_variables``.

    Returns
    -------
    tuple
        The file's content with ``parameters`` in it, and where they lie.

    Raises
    ------
    UnsupportedModelError
        If the converter computed something out of a parameter, so that it cannot be replaced.
    """
    generator = np.random.default_rng(0)
    probes = {key: generator.uniform(0.5, 1.5, value.shape).astype(np.float32) for key, value in parameters.items()}
    content = _convert(model, probes)
    constants = tuple(itertools.chain.from_iterable(_locate(content, key, probe) for key, probe in probes.items()))
    missing = parameters.keys() - {constant.parameter for constant in constants}
    if missing:
        raise UnsupportedModelError(
            min(missing), "a parameter that LiteRT's converter merges with others", "leave it out or freeze it"
        )
    return with_parameters(content, constants, parameters), constants


def _convert(model: Any, parameters: Parameters) -> bytes:
    trainable = [tf.constant(value) for value in parameters.values()]
    frozen = [tf.constant(variable.numpy()) for variable in model.non_trainable_variables]

    def infer(x: Any) -> dict[str, Any]:
        return {"y": model.stateless_call(trainable, frozen, x, training=False)[0]}

    spec = tf.TensorSpec([1, *model.inputs[0].shape[1:]], tf.float32, name="x")
    traced = tf.function(infer, input_signature=[spec], autograph=False).get_concrete_function()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, signatures={"infer": traced})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["infer"])
        return bytes(converter.convert())


def _locate(content: bytes, name: str, probe: np.ndarray[Any, Any]) -> list[Constant]:
    """Find every place of the file that holds ``probe``, in any order of its axes."""
    found: dict[int, Constant] = {}
    for axes in itertools.permutations(range(probe.ndim)):
        needle = probe.transpose(axes).tobytes()
        offset = content.find(needle)
        while offset >= 0:
            found.setdefault(offset, Constant(parameter=name, offset=offset, axes=axes))
            offset = content.find(needle, offset + len(needle))
    return list(found.values())

"""TensorFlow's signatures as a LiteRT model, by the converter itself.

`tf.lite.TFLiteConverter` surrounds that with work for its own statistics and for the file's description of its making: it loads
what was saved three times, and takes the converted file apart four times in Python. That was a third of an export.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

import tensorflow as tf
from tensorflow.lite.python.convert import convert_saved_model


def converted(owner: tf.Module, signatures: Mapping[str, tf.types.experimental.ConcreteFunction]) -> bytes:
    """Convert concrete functions by signature; equal constants are stored as often as they occur.

    Parameters
    ----------
    owner
        Holds the variables.

    Raises
    ------
    Exception
        TensorFlow's own, with the operator that LiteRT lacks in its text.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Nothing differentiates the saved functions again: the gradients are in the graph.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(owner, folder, signatures=dict(signatures), options=options)
        content = convert_saved_model(
            saved_model_dir=folder,
            saved_model_version=1,
            saved_model_tags={tf.saved_model.SERVING},
            saved_model_exported_names=list(signatures),
            # Built-in operators only: a device has no Flex delegate, which is TensorFlow itself.
            target_ops={tf.lite.OpsSet.TFLITE_BUILTINS},
            inference_input_type=tf.float32,
            enable_tflite_resource_variables=True,
            # As TFLiteConverter has it.
            enable_composite_direct_lowering=True,
        )
        return bytes(content)

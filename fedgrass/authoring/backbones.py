"""Networks of ``keras.applications`` as bodies of image classifiers: weights from a file, or random; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fedgrass.errors import ConfigurationError

if TYPE_CHECKING:
    import keras

Backbone = Literal["mobilenet", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]

_CLASSES: dict[str, str] = {
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_small": "MobileNetV3Small",
    "mobilenet_v3_large": "MobileNetV3Large",
}
_SCALE, _OFFSET = 2.0, -1.0
"""From pixels of 0 to 1 to what these networks take."""
_SMALLEST = 32
_DROPOUT = 0.2


def backbone(name: str, shape: tuple[int, ...], weights: Path | None) -> keras.Model:
    """Return a network from images of values -1 to 1 to features [n, …].

    Parameters
    ----------
    name
        One of `Backbone`.
    shape
        Height, width and channels of an image.
    weights
        File with the network's weights; None begins with random ones.

    Raises
    ------
    ConfigurationError
        If it does not take images of that shape, or the file does not hold its weights.
    """
    import keras

    if name not in get_args(Backbone):
        raise ConfigurationError(f"--backbone {name}: expected one of {', '.join(get_args(Backbone))}")
    if min(shape[:2]) < _SMALLEST:
        raise ConfigurationError(f"--input-shape {shape}: {name} takes images of at least {_SMALLEST} pixels a side")
    # Published weights are of RGB images; the first convolution's kernel has that depth.
    if weights is not None and shape[2] != 3:
        raise ConfigurationError(f"--weights: they are of images of 3 colours; --input-shape has {shape[2]} channels")
    options: dict[str, object] = {"weights": None, "include_top": False, "pooling": "avg", "input_shape": shape}
    # MobileNetV3 scales pixels itself by default, which `classifier` does already.
    if "v3" in name:
        options["include_preprocessing"] = False
    network = getattr(keras.applications, _CLASSES[name])(**options)
    if weights is not None:
        _load(network, name, weights)
    return network


def classifier(name: str, shape: tuple[int, ...], classes: int, weights: Path | None, *, train: bool) -> keras.Model:
    """Return an image classifier for pixels of 0 to 1.

    Parameters
    ----------
    train
        Whether the backbone is trained; else its weights are fixed in the graph, and only the last layer travels.
    """
    import keras

    network = backbone(name, shape, weights)
    network.trainable = train
    x = keras.Input(shape, name="x")
    features = network(keras.layers.Rescaling(_SCALE, _OFFSET, name="scale")(x))
    dropped = keras.layers.Dropout(_DROPOUT, name="dropout")(features)
    return keras.Model(x, keras.layers.Dense(classes, "softmax", name="output")(dropped), name="model")


def _load(network: keras.Model, name: str, weights: Path) -> None:
    try:
        network.load_weights(weights)
    # h5py and Keras raise whatever they like for a file that is not theirs.
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigurationError(
            f"--weights {weights}: are none of {name} without its top ({said[0][:200]}). Give a .weights.h5 that Keras saved of "
            f"keras.applications.{_CLASSES[name]}(include_top=False), or the published file whose name ends in no_top.h5"
        ) from error

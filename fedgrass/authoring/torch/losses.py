"""Translate PyTorch's losses, by name or as objects, into a bundle's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fedgrass.authoring.compiled import Objective
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.bundle import Loss, LossOptions

_NAMES: dict[str, Loss] = {
    "crossentropyloss": "sparse_categorical_crossentropy",
    "cross_entropy": "sparse_categorical_crossentropy",
    "nllloss": "sparse_categorical_crossentropy",  # of log_softmax, which another log_softmax does not change
    "nll_loss": "sparse_categorical_crossentropy",
    "bcewithlogitsloss": "binary_crossentropy",
    "binary_cross_entropy_with_logits": "binary_crossentropy",
    "bceloss": "binary_crossentropy",  # of sigmoid, which is left out where it comes last
    "binary_cross_entropy": "binary_crossentropy",
    "multilabelsoftmarginloss": "binary_crossentropy",
    "mseloss": "mean_squared_error",
    "mse_loss": "mean_squared_error",
    "l1loss": "mean_absolute_error",
    "l1_loss": "mean_absolute_error",
    "smoothl1loss": "huber",
    "smooth_l1_loss": "huber",
    "huberloss": "huber",
    "huber_loss": "huber",
}
# Options that devices do not train with, and the value that changes nothing.
_ONLY = {
    "weight": None,
    "pos_weight": None,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "beta": 1.0,
}


def objectives(given: Any) -> Any:
    """Return a loss as `objective` does, or those of several outputs, by name or in order."""
    if isinstance(given, Mapping):
        return {str(name): objective(loss) for name, loss in given.items()}
    if isinstance(given, (list, tuple)) and not isinstance(given, Objective):
        return [objective(loss) for loss in given]
    return objective(given)


def objective(given: Any) -> Any:
    """Return a loss of PyTorch, by name, function or object, as an `Objective`; anything else as it is.

    Raises
    ------
    UnsupportedModelError
        If there is none, or the object has an option that devices do not train with.
    """
    if given is None:
        raise UnsupportedModelError(
            "the model", "a PyTorch module without a loss", f"give one of {', '.join(get_args(Loss))}"
        )
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    loss = _NAMES.get(str(name).lower())
    if loss is None:
        return given
    for option, only in _ONLY.items():
        found = getattr(given, option, only) if not isinstance(given, str) else only
        # Two comparisons: a tensor of weights compares element by element, and None is no number.
        if found is not only and found != only:
            raise UnsupportedModelError(f"loss {name}", f"{option}={found}", f"leave {option} out")
    return Objective(loss, LossOptions(delta=float(getattr(given, "delta", 1.0))))

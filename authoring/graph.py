"""The training graph: the signatures of `fedgrass.bundle`, traced around a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from authoring import gradients
from authoring.errors import UnsupportedModelError
from authoring.losses import LossFunction
from authoring.optimizers import Optimizer

Tensor = Any
Variable = Any

_SCALARS = ("learning_rate", "proximal_mu", "clip_norm")


@dataclass(frozen=True)
class Forward:
    """A model as functions of its input.

    ``logits`` maps x [B, …] and whether this is training to what the loss takes; ``output`` maps x to what the
    application sees.
    """

    logits: Callable[[Tensor, bool], Tensor]
    output: Callable[[Tensor], Tensor]
    parameters: Sequence[Variable]


def module(forward: Forward, loss: LossFunction, optimizer: Optimizer, *, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    """Trace every signature.

    Parameters
    ----------
    x, y
        ``tf.TensorSpec`` of a batch, the batch axis included: shapes in the graph are fixed, because LiteRT's gradients
        of reshapes and convolutions need them.

    Returns
    -------
    tuple
        The ``tf.Module`` that owns all variables, and its concrete functions by signature.

    Raises
    ------
    UnsupportedModelError
        If a layer's gradient needs an operator that LiteRT lacks.
    """
    parameters = list(forward.parameters)
    anchors = [tf.Variable(tf.zeros(parameter.shape)) for parameter in parameters]
    batch = x.shape[0]

    def train(
        x: Tensor, y: Tensor, sample_weight: Tensor, learning_rate: Tensor, proximal_mu: Tensor, clip_norm: Tensor
    ) -> dict[str, Tensor]:
        with gradients.overridden():
            logits = forward.logits(x, True)
        result = loss(logits, y)
        share = sample_weight / tf.maximum(tf.reduce_sum(sample_weight), 1e-12)
        upstream = result.gradient * tf.reshape(share, [batch] + [1] * (logits.shape.rank - 1))
        found = tf.gradients(logits, parameters, grad_ys=upstream)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is None:
                raise UnsupportedModelError(parameter.name, "a parameter that does not reach the output", "freeze it")
        pulled = [g + proximal_mu * (p - a) for g, p, a in zip(found, parameters, anchors, strict=True)]
        optimizer.step(_clipped(pulled, clip_norm), learning_rate)
        return {"loss": tf.reduce_sum(result.loss * share)}

    def evaluate(x: Tensor, y: Tensor, sample_weight: Tensor) -> dict[str, Tensor]:
        result = loss(forward.logits(x, False), y)
        return {
            "loss": tf.reduce_sum(result.loss * sample_weight),
            "correct": tf.reduce_sum(result.correct * sample_weight),
            "weight": tf.reduce_sum(sample_weight),
        }

    def begin_round() -> dict[str, Tensor]:
        for anchor, parameter in zip(anchors, parameters, strict=True):
            anchor.assign(parameter)
        for variable, initial in zip(optimizer.state, optimizer.initial, strict=True):
            variable.assign(tf.fill(variable.shape, initial))
        return _ok()

    weight = tf.TensorSpec([batch], tf.float32, name="sample_weight")
    scalars = [tf.TensorSpec([], tf.float32, name=name) for name in _SCALARS]
    signatures = {
        "train": _function(train, [x, y, weight, *scalars]),
        "evaluate": _function(evaluate, [x, y, weight]),
        "infer": _function(lambda x: {"y": forward.output(x)}, [x]),
        "begin_round": _function(begin_round, []),
        **_access(parameters, "parameters", "p"),
        **(_access(optimizer.state, "optimizer", "s") if optimizer.state else {}),
    }
    owner = tf.Module()
    owner.variables_of_graph = [*parameters, *anchors, *optimizer.state]
    concrete = {name: function.get_concrete_function() for name, function in signatures.items()}
    for function in concrete.values():
        _check_operators(function.graph)
    return owner, concrete


def _clipped(found: Sequence[Tensor], clip_norm: Tensor) -> list[Tensor]:
    """Scale the gradients so that their joint norm is at most ``clip_norm``; 0 leaves them as they are."""
    norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in found]))
    scale = tf.where(clip_norm > 0.0, tf.minimum(1.0, clip_norm / tf.maximum(norm, 1e-12)), 1.0)
    return [gradient * scale for gradient in found]


def _access(variables: Sequence[Variable], what: str, prefix: str) -> dict[str, Any]:
    """``read_…`` and ``write_…`` of a list of variables."""

    def read() -> dict[str, Tensor]:
        return {f"{prefix}{i}": variable.read_value() for i, variable in enumerate(variables)}

    def write(*values: Tensor) -> dict[str, Tensor]:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return _ok()

    specs = [tf.TensorSpec(v.shape, v.dtype, name=f"{prefix}{i}") for i, v in enumerate(variables)]
    return {
        f"read_{what}": _function(read, []),
        f"write_{what}": _function(write, specs),
    }


def _function(function: Callable[..., Any], specs: Sequence[Any]) -> Any:
    # Autograph would wrap our errors in its own.
    return tf.function(function, input_signature=specs, autograph=False)


def _ok() -> dict[str, Tensor]:
    return {"ok": tf.constant(1, tf.int32)}


def _check_operators(graph: Any) -> None:
    for op in graph.get_operations():
        if op.type not in _CONVERTIBLE:
            layer = op.name.removeprefix("gradients/")
            raise UnsupportedModelError(
                layer, f"operator {op.type}", "supported layers and activations are listed in docs/models.md"
            )


_OPERATORS = """
    Abs Add AddN AddV2 ArgMax AssignAddVariableOp AssignSubVariableOp AssignVariableOp BiasAdd BroadcastGradientArgs
    BroadcastTo Cast ConcatV2 Const Conv2D Conv2DBackpropInput Cumsum DepthToSpace DivNoNan Equal Exp ExpandDims Fill
    FloorDiv Greater GreaterEqual Identity IdentityN Less LessEqual Log LogSoftmax MatMul Max MaxPool Maximum Mean Min
    Minimum Mul Neg NoOp OneHot OnesLike Pack Pad PadV2 Placeholder Pow Prod Range ReadVariableOp RealDiv Relu Reshape
    Rsqrt Select SelectV2 Shape Sigmoid Sign Slice Softmax SpaceToDepth Sqrt Square SquaredDifference Squeeze
    StopGradient StridedSlice Sub Sum Tanh Tile Transpose Unpack ZerosLike
"""
_CONVERTIBLE = frozenset(_OPERATORS.split())

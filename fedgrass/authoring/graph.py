"""The training graph: the signatures of `fedgrass.bundle`, traced around a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf

from fedgrass import bundle
from fedgrass.authoring import progress
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.forward import Forwarded
from fedgrass.authoring.gradients import added, gradients
from fedgrass.authoring.losses import LossFunction
from fedgrass.authoring.optimizers import Optimizer, clipped

Tensor: TypeAlias = tf.Tensor
Variable: TypeAlias = tf.Variable

_SCALARS = ("learning_rate", "proximal_mu", "clip_norm")


@dataclass(frozen=True)
class Forward:
    """A model as functions of its input and its values: the parameters first, then the statistics.

    ``logits`` maps x [B, …], the values and the number of the training step (none outside training) to a `Forwarded`;
    ``output`` maps x and the values to what the application sees. ``names`` are the parameters'.
    ``draws_masks``: whether the step's number matters.
    """

    logits: Callable[[Tensor, Sequence[Tensor], Tensor | None], Forwarded]
    output: Callable[[Tensor, Sequence[Tensor]], Tensor]
    names: tuple[str, ...]
    draws_masks: bool


def module(
    forward: Forward,
    loss: LossFunction,
    optimizer: Optimizer,
    parameters: Sequence[Variable],
    statistics: Sequence[Variable],
    *,
    x: tf.TensorSpec,
    y: tf.TensorSpec,
    settings: bundle.Optimizer,
) -> tuple[tf.Module, dict[str, tf.types.experimental.ConcreteFunction]]:
    """Trace every signature.

    Parameters
    ----------
    parameters
        What the optimizer changes.
    statistics
        What the forward pass itself changes in training, such as the moving averages of batch normalization. They are
        read and written with the parameters, after them.
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
    traced = _Traced(forward, loss, optimizer, parameters, statistics, settings)
    batch = x.shape[0]
    weight = tf.TensorSpec([batch], tf.float32, name="sample_weight")
    # All three are arguments, so that a round can set them without another graph.
    scalars = [tf.TensorSpec([], tf.float32, name=name) for name in _SCALARS]
    drawn = [tf.TensorSpec([], tf.int32, name="seed")] if traced.seed is not None else []
    signatures = {
        "train": _function(traced.train, [x, y, weight, *scalars]),
        "train_plain": _function(traced.train, [x, y, weight, scalars[0]]),
        "evaluate": _function(traced.evaluate, [x, y, weight]),
        "infer": _function(traced.infer, [x]),
        "begin_round": _function(traced.begin_round, drawn),
        # Only where there is something to do: LiteRT leaves XNNPACK out of the whole graph if its first signature, by name, has
        # no operator.
        **({"begin_plain": _function(traced.begin_plain, drawn)} if traced.state else {}),
        **_access(traced.values, "parameters", "p"),
        **(_access(traced.state, "optimizer", "s") if traced.state else {}),
    }
    # Something must hold the variables while the model is saved: functions hold them by weak references only.
    owner = tf.Module()
    owner.variables_of_graph = traced.variables
    concrete = {}
    for name, function in signatures.items():
        progress.at(f"traces {name}")
        concrete[name] = function.get_concrete_function()
    for function in concrete.values():
        _check_operators(function.graph)
    return owner, concrete


class _Traced:
    """The variables of a graph, and its signatures as functions of them."""

    def __init__(
        self,
        forward: Forward,
        loss: LossFunction,
        optimizer: Optimizer,
        parameters: Sequence[Variable],
        statistics: Sequence[Variable],
        settings: bundle.Optimizer,
    ) -> None:
        self._forward, self._loss, self._optimizer, self._settings = forward, loss, optimizer, settings
        self._parameters, self._statistics = parameters, statistics
        self.values = [*parameters, *statistics]
        # Where the proximal term pulls to; set when a round begins.
        self._anchors = [tf.Variable(tf.zeros(parameter.shape)) for parameter in parameters]
        self._step = tf.Variable(tf.zeros([]))
        self.seed = tf.Variable(0) if forward.draws_masks else None
        # The step's number is kept, restored and reset with the optimizer's state.
        numbered = self.seed is not None
        self.state = [*optimizer.state, *([self._step] if numbered else [])]
        self._initials = [*optimizer.initial, *([0.0] if numbered else [])]

    @property
    def variables(self) -> list[Variable]:
        """All of them."""
        return [*self.values, *self._anchors, *self.state, *([] if self.seed is None else [self.seed])]

    def train(
        self,
        x: Tensor,
        y: Tensor,
        sample_weight: Tensor,
        learning_rate: Tensor,
        proximal_mu: Tensor | None = None,
        clip_norm: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Take one step, and return the batch's mean loss.

        Parameters
        ----------
        x, y
            A batch [B, …].
        sample_weight
            float32 [B]; 0 leaves an example out.
        learning_rate
            Scalar.
        proximal_mu, clip_norm
            Scalars; both None is the signature ``train_plain``, which has fewer operators to run.
        """
        read = self._present()
        # The statistics come after them; the optimizer does not touch those.
        trained = read[: len(self._parameters)]
        made = self._forward.logits(x, read, self._next_number())
        result = self._loss(made.logits, y, made.mask is not None)
        share = _share(sample_weight, made.mask)
        # What the gradients, and so what is added to or held against them, are times.
        scale = learning_rate if self._optimizer.linear else tf.constant(1.0)
        upstream = [result.gradient * _spread(share * scale, made.logits.shape.rank), *([scale] * len(made.penalties))]
        found = self._gradients([made.logits, *made.penalties], trained, upstream)
        if proximal_mu is not None:
            found = [g + scale * proximal_mu * (p - a) for g, p, a in zip(found, trained, self._anchors, strict=True)]
        if clip_norm is not None:
            found = _clipped(found, scale * clip_norm)
        found = clipped(found, self._settings, scale)
        # Decoupled from the gradient, as in AdamW (https://arxiv.org/abs/1711.05101).
        if self._settings.decay:
            trained = [value - value * (learning_rate * self._settings.decay) for value in trained]
        # After the decay, which Keras also takes off the weights and not off the gradients.
        self._optimizer.step(trained, found, learning_rate)
        # Assigned last: everything above read the values of before the step.
        for variable, value in zip(self._statistics, made.statistics, strict=True):
            variable.assign(value)
        return {"loss": added([tf.reduce_sum(result.loss * share), *made.penalties])}

    def evaluate(self, x: Tensor, y: Tensor, sample_weight: Tensor) -> dict[str, Tensor]:
        """Return the sums of a batch's losses, right answers and weights, and the outputs.

        Parameters
        ----------
        x, y
            A batch [B, …].
        sample_weight
            float32 [B]; 0 leaves an example out.
        """
        made = self._forward.logits(x, self._present(), None)
        result = self._loss(made.logits, y, made.mask is not None)
        weight = tf.reduce_sum(sample_weight)
        # Where a mask is, a batch's mean is that of its positions: as in Keras.
        counted = sample_weight if made.mask is None else _share(sample_weight, made.mask) * weight
        return {
            "loss": added([tf.reduce_sum(result.loss * counted), *(penalty * weight for penalty in made.penalties)]),
            "correct": tf.reduce_sum(result.correct * counted),
            "weight": weight,
            "output": made.logits,
        }

    def infer(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self._forward.output(x, self._present())}

    def begin_plain(self, drawn: Tensor | None = None) -> dict[str, Tensor]:
        if self.seed is not None:
            self.seed.assign(drawn)
        for variable, initial in zip(self.state, self._initials, strict=True):
            variable.assign(tf.fill(variable.shape, initial))
        return _ok()

    def begin_round(self, drawn: Tensor | None = None) -> dict[str, Tensor]:
        for anchor, parameter in zip(self._anchors, self._parameters, strict=True):
            anchor.assign(parameter)
        return self.begin_plain(drawn)

    def _present(self) -> list[Tensor]:
        # Read here: a loop cannot take a variable along.
        return [value.read_value() for value in self.values]

    def _next_number(self) -> Tensor:
        if self.seed is None:
            return tf.constant(0)
        self._step.assign_add(1.0)
        return self.seed + tf.cast(self._step, tf.int32)

    def _gradients(
        self, outputs: Sequence[Tensor], trained: Sequence[Tensor], upstream: Sequence[Tensor]
    ) -> list[Tensor]:
        found = gradients(outputs, trained, upstream)
        # Nothing could be learnt for it, and every update would carry its zeros.
        for name, gradient in zip(self._forward.names, found, strict=True):
            if gradient is None:
                raise UnsupportedModelError(name, "a parameter that does not reach the output", "freeze it")
        return found


def _share(sample_weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return what part of the batch's loss each example is, or each position: where a mask is, only those inside count.

    As in Keras, weighted losses are divided by the number of examples, not by their weights.
    """
    counted = tf.cast(sample_weight > 0.0, tf.float32)
    if mask is not None:
        inside = tf.cast(mask, tf.float32)
        sample_weight = _spread(sample_weight, mask.shape.rank) * inside
        counted = _spread(counted, mask.shape.rank) * inside
    # A batch of weights that are all 0 (the filling of a last batch) must not divide by zero.
    return sample_weight / tf.maximum(tf.reduce_sum(counted), 1e-12)


def _spread(values: Tensor, rank: int) -> Tensor:
    """Give a tensor of the first axes as many axes of length 1 as it takes to multiply a tensor of this rank."""
    return tf.reshape(values, [*values.shape, *([1] * (rank - values.shape.rank))])


def _clipped(found: Sequence[Tensor], clip_norm: Tensor) -> list[Tensor]:
    """Scale the gradients so that their joint norm is at most ``clip_norm``; 0 leaves them as they are."""
    norm = tf.sqrt(added([tf.reduce_sum(tf.square(gradient)) for gradient in found]))
    # Selected, not branched: LiteRT would run a condition as two subgraphs.
    scale = tf.where(clip_norm > 0.0, tf.minimum(1.0, clip_norm / tf.maximum(norm, 1e-12)), 1.0)
    return [gradient * scale for gradient in found]


def _access(
    variables: Sequence[Variable], what: str, prefix: str
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
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


def _function(
    function: Callable[..., dict[str, Tensor]], specs: Sequence[tf.TensorSpec]
) -> tf.types.experimental.PolymorphicFunction:
    # Autograph would wrap our errors in its own.
    return tf.function(function, input_signature=specs, autograph=False)


def _ok() -> dict[str, Tensor]:
    return {"ok": tf.constant(1, tf.int32)}


def _check_operators(graph: tf.Graph) -> None:
    for op in graph.get_operations():
        _check_operator(op.name, op.type)
    for function in graph.as_graph_def().library.function:
        for node in function.node_def:
            _check_operator(node.name, node.op)


def _check_operator(name: str, operator: str) -> None:
    if operator not in _CONVERTIBLE:
        layer = name.removeprefix("gradients/")
        advice = next((text for start, text in _INSTEAD.items() if operator.startswith(start)), "choose another")
        raise UnsupportedModelError(layer, f"operator {operator}", f"{advice}; docs/models.md lists what can be")


_INSTEAD = {
    "PartitionedCall": "take the tf.function or jit_compile away",
    "StatefulPartitionedCall": "take the tf.function or jit_compile away",
    "SpaceToBatchND": "use channels last, and strides or dilation, not both",
    "Selu": "use elu or gelu, or give the .keras file",
    "Softplus": "use relu or swish, or give the .keras file",
    "Softsign": "use tanh, or give the .keras file",
    "If": "use keras.ops.where, or masks",
    "StatelessIf": "use keras.ops.where, or masks",
    "Erf": "use keras.activations.gelu or tanh",
    "PyFunc": "write it with keras.ops",
    "EagerPyFunc": "write it with keras.ops",
    "RGBToHSV": "use RandomBrightness and RandomContrast, or change colours in the data loader",
    "LeftShift": "transform images in the data loader",
    "MatrixSolve": "use RandomRotation, RandomTranslation or RandomShear, or take that part into the data loader",
    "MatrixBandPart": "multiply by a constant mask, such as numpy.tril gives",
    "FakeQuant": "train in float: the int8 model has a scale for each channel, and loses nothing worth training for",
    "Stateless": "draw by keras.random with a keras.random.SeedGenerator, as Dropout does",
    "EmptyTensorList": "unroll the loop",
    "ListDiff": "multiply the parts one by one in place of ops.prod",
    "While": "unroll the loop",
    "Conv3D": "use Conv2D",
    "AvgPool3D": "use AveragePooling2D",
    "MaxPool3D": "use MaxPooling2D",
    "FFT": "take the spectrum in the data loader",
    "RFFT": "take the spectrum in the data loader",
    "Lookup": "look words up in the data loader",
    "String": "give numbers: make them of text in the data loader",
    "Image": "transform images in the data loader",
    "TopK": "use softmax in place of sparsemax, and reduce_max in place of a sort",
    "Cholesky": "take that part into the data loader",
    "Xla": "take jit_compile away",
}

_OPERATORS = """
    Abs Add AddN AddV2 All Any ArgMax AssignAddVariableOp AssignSubVariableOp AssignVariableOp AvgPool BatchMatMulV2
    BiasAdd BitwiseXor BroadcastGradientArgs BroadcastTo Cast Ceil ConcatV2 Const Conv2D Conv2DBackpropInput Cos
    Cumsum DepthToSpace DepthwiseConv2dNative DivNoNan Elu Equal Erfc Exp ExpandDims Fill Floor FloorDiv
    FloorMod GatherV2 Greater GreaterEqual Identity IdentityN LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd
    LogicalNot LogicalOr LogicalXor MatMul Max MaxPool Maximum Mean Min Minimum MirrorPad Mul Neg NoOp NotEqual OneHot
    OnesLike Pack Pad PadV2 Placeholder Pow Prod Range ReadVariableOp RealDiv Relu Relu6 Reshape ReverseSequence
    ReverseV2 RightShift Round Rsqrt Select SelectV2 Shape Sigmoid Sign Sin Slice Softmax SpaceToDepth Split SplitV
    Sqrt Square SquaredDifference Squeeze StatelessWhile StopGradient StridedSlice Sub Sum Tanh Tile Transpose
    Unpack UnsortedSegmentSum XlaDynamicUpdateSlice ZerosLike
"""
_CONVERTIBLE = frozenset(_OPERATORS.split())

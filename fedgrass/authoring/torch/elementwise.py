"""Operators that work on each element: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf
import torch

from fedgrass.authoring.torch.registry import OPERATORS, Context, Operand, operator, require
from fedgrass.authoring.torch.values import Value, together

Tensor: TypeAlias = tf.Tensor


def as_float(x: Tensor) -> Tensor:
    """Give whole numbers and truth values as float32."""
    return x if x.dtype.is_floating else tf.cast(x, tf.float32)


def each(context: Context, function: Callable[..., Tensor], *operands: Operand) -> Value:
    """Apply a function to tensors and numbers that are broadcast against each other."""
    values = [context.value(one) for one in operands]
    # PyTorch's rule: a Python number takes the tensor's dtype unless it is a float and the tensor is not.
    numbers = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in operands]
    dtype = _common([v for v, number in zip(values, numbers, strict=True) if not number], operands)
    tensors, order = together(values)
    return Value(function(*(tf.cast(t, dtype) if t.dtype != dtype else t for t in tensors)), order)


def _common(values: list[Value], operands: tuple[Operand, ...]) -> tf.DType:
    floats = any(value.is_float for value in values) or any(isinstance(one, float) for one in operands)
    if floats:
        return tf.float32
    kinds = {value.tensor.dtype for value in values}
    numbers = any(isinstance(one, int) and not isinstance(one, bool) for one in operands)
    return tf.bool if kinds == {tf.bool} and not numbers else tf.int32


def _relu6(x: Tensor) -> Tensor:
    return tf.nn.relu6(x)


def _softplus(x: Tensor) -> Tensor:
    return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))


def _mish(x: Tensor) -> Tensor:
    # tanh(log(1 + e^x)) = ((1 + e^x)² − 1) / ((1 + e^x)² + 1); beyond 20 it is 1 in float32.
    e = tf.exp(tf.minimum(x, 20.0))
    square = e * (e + 2.0)
    return x * square / (square + 2.0)


def _hardsigmoid(x: Tensor) -> Tensor:
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": tf.abs,
    "ceil": tf.math.ceil,
    "cos": tf.cos,
    "erf": lambda x: 2.0 * _cumulative(x * math.sqrt(2.0)) - 1.0,
    "exp": tf.exp,
    "expm1": lambda x: tf.exp(x) - 1.0,
    "floor": tf.floor,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: x * _hardsigmoid(x),
    "log": tf.math.log,
    "log10": lambda x: tf.math.log(x) * (1.0 / math.log(10.0)),
    "log1p": lambda x: tf.math.log(1.0 + x),
    "log2": lambda x: tf.math.log(x) * (1.0 / math.log(2.0)),
    "log_sigmoid": lambda x: -_softplus(-x),
    "mish": _mish,
    "neg": tf.negative,
    "reciprocal": lambda x: 1.0 / x,
    "relu": lambda x: tf.nn.relu(x),
    "relu6": _relu6,
    "round": tf.round,
    "rsqrt": tf.math.rsqrt,
    "selu": lambda x: 1.0507009873554805 * tf.where(x > 0.0, x, 1.6732632423543772 * tf.nn.elu(x)),
    "sigmoid": tf.sigmoid,
    "sign": tf.sign,
    "silu": lambda x: x * tf.sigmoid(x),
    "sin": tf.sin,
    "softsign": lambda x: x / (1.0 + tf.abs(x)),
    "sqrt": tf.sqrt,
    "square": tf.square,
    "tanh": tf.tanh,
    "tanhshrink": lambda x: x - tf.tanh(x),
}
_INTEGER = {"abs", "neg", "sign", "square"}


def _cumulative(x: Tensor) -> Tensor:
    """Φ(x), which LiteRT has only inside its GELU."""
    small = tf.abs(x) < 1e-3
    # Both branches of a where are computed: the division must not meet 0 in the one that is not taken.
    safe = tf.where(small, tf.ones_like(x), x)
    return tf.where(small, 0.5 + x * (1.0 / math.sqrt(2 * math.pi)), tf.nn.gelu(safe) / safe)


def _enter_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    def apply(context: Context, x: Operand, *_: object) -> Value:
        value = context.value(x)
        return value.like(function(value.tensor if name in _INTEGER else as_float(value.tensor)))

    OPERATORS[name] = apply


for _name, _function in _UNARY.items():
    _enter_unary(_name, _function)


def _scaled(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Value]:
    def apply(context: Context, x: Operand, y: Operand, alpha: float = 1) -> Value:
        scaled = y if alpha == 1 else each(context, tf.multiply, y, alpha)
        return each(context, function, x, scaled)

    return apply


OPERATORS["add"] = _scaled(tf.add)
OPERATORS["sub"] = _scaled(tf.subtract)
OPERATORS["rsub"] = _scaled(lambda x, y: y - x)

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bitwise_and": lambda x, y: tf.logical_and(x, y),
    "bitwise_or": lambda x, y: tf.logical_or(x, y),
    "eq": tf.equal,
    "floor_divide": tf.math.floordiv,
    # The sign of the dividend, unlike remainder's.
    "fmod": lambda x, y: x - tf.sign(x) * tf.floor(tf.abs(x / y)) * tf.abs(y),
    "ge": tf.greater_equal,
    "gt": tf.greater,
    "le": tf.less_equal,
    "logical_and": lambda x, y: tf.logical_and(tf.cast(x, tf.bool), tf.cast(y, tf.bool)),
    "logical_or": lambda x, y: tf.logical_or(tf.cast(x, tf.bool), tf.cast(y, tf.bool)),
    "lt": tf.less,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
    "mul": tf.multiply,
    "ne": lambda x, y: tf.logical_not(tf.equal(x, y)),
    "remainder": tf.math.floormod,
}


def _enter_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    def apply(context: Context, x: Operand, y: Operand, *_: object) -> Value:
        return each(context, function, x, y)

    OPERATORS[name] = apply


for _key, _binary in _BINARY.items():
    _enter_binary(_key, _binary)


@operator("logical_not", "bitwise_not")
def _logical_not(context: Context, x: Value, *_: object) -> Value:
    return x.like(tf.logical_not(tf.cast(x.tensor, tf.bool)))


@operator("div", "true_divide")
def _div(context: Context, x: Operand, y: Operand, rounding: str | None = None) -> Value:
    if rounding == "floor":
        return each(context, tf.math.floordiv, x, y)
    found = each(context, lambda a, b: as_float(a) / as_float(b), x, y)
    require(rounding in (None, "trunc"), f"div with rounding_mode={rounding!r}", "use floor")
    return found if rounding is None else found.like(tf.sign(found.tensor) * tf.floor(tf.abs(found.tensor)))


@operator("pow")
def _pow(context: Context, x: Operand, exponent: Operand) -> Value:
    if not isinstance(exponent, (int, float)):
        return each(context, lambda a, b: tf.pow(as_float(a), as_float(b)), x, exponent)
    base = context.value(x)
    value = as_float(base.tensor)
    # The usual exponents have operators of their own, whose gradients are known.
    known = {0.5: tf.sqrt, -0.5: tf.math.rsqrt, 1.0: tf.identity, 2.0: tf.square, -1.0: lambda v: 1.0 / v}
    if exponent in known:
        return base.like(known[float(exponent)](value))
    # A few multiplications have a gradient for every base.
    if float(exponent).is_integer() and 0 < exponent <= 8:
        found = value
        for _ in range(int(exponent) - 1):
            found = found * value
        return base.like(found)
    return base.like(tf.pow(value, float(exponent)))


@operator("addcmul")
def _addcmul(context: Context, x: Operand, a: Operand, b: Operand, value: float) -> Value:
    return each(context, lambda p, q, r: p + value * q * r, x, a, b)


@operator("addcdiv")
def _addcdiv(context: Context, x: Operand, a: Operand, b: Operand, value: float) -> Value:
    return each(context, lambda p, q, r: p + value * q / r, x, a, b)


@operator("lerp")
def _lerp(context: Context, x: Operand, y: Operand, weight: Operand) -> Value:
    return each(context, lambda p, q, w: p + w * (q - p), x, y, weight)


@operator("where")
def _where(context: Context, condition: Operand, x: Operand, y: Operand) -> Value:
    dtype = _common([context.value(one) for one in (x, y)], (x, y))
    operands = [context.value(condition), *(context.value(one) for one in (x, y))]
    (chosen, a, b), order = together(operands)
    return Value(tf.where(chosen, tf.cast(a, dtype), tf.cast(b, dtype)), order)


@operator("masked_fill")
def _masked_fill(context: Context, x: Operand, mask: Operand, value: Operand) -> Value:
    # PyTorch masks with −inf, of which a row that is masked whole makes a softmax of NaN.
    value = max(min(value, 3.0e38), -3.0e38) if isinstance(value, float) else value
    return _where(context, mask, value, x)


def _clamp(context: Context, x: Operand, low: Operand | None = None, high: Operand | None = None) -> Value:
    found = context.value(x)
    if low is not None:
        found = each(context, tf.maximum, found, low)
    return found if high is None else each(context, tf.minimum, found, high)


OPERATORS["clamp"] = OPERATORS["clip"] = OPERATORS["clamp_min"] = OPERATORS["hardtanh"] = _clamp
OPERATORS["clamp_max"] = lambda context, x, high: _clamp(context, x, None, high)


@operator("leaky_relu")
def _leaky_relu(context: Context, x: Value, slope: float) -> Value:
    return x.like(tf.nn.leaky_relu(x.tensor, slope))


@operator("rrelu")
def _rrelu(context: Context, x: Value, low: float, high: float, training: bool, *_: object) -> Value:
    require(not training, "RReLU, which draws its slopes,", "use LeakyReLU")
    return x.like(tf.nn.leaky_relu(x.tensor, (low + high) / 2))


@operator("elu")
def _elu(context: Context, x: Value, alpha: float, scale: float, input_scale: float) -> Value:
    """Scale · (max(0, x) + alpha · (e^(min(0, x) · input_scale) − 1))."""
    if alpha == scale == input_scale == 1:
        return x.like(tf.nn.elu(x.tensor))
    below = alpha * (tf.exp(tf.minimum(x.tensor, 0.0) * input_scale) - 1.0)
    return x.like(scale * (tf.nn.relu(x.tensor) + below))


@operator("celu")
def _celu(context: Context, x: Value, alpha: float) -> Value:
    return _elu(context, x, alpha, 1.0, 1.0 / alpha)


@operator("gelu")
def _gelu(context: Context, x: Value, approximate: str) -> Value:
    if approximate != "tanh":
        return x.like(tf.nn.gelu(x.tensor))
    # Without the product 0.5 · x, which an exact GELU of the same tensor would share: LiteRT then knows it no more.
    inner = math.sqrt(2.0 / math.pi) * (x.tensor + 0.044715 * x.tensor * x.tensor * x.tensor)
    return x.like(x.tensor * (0.5 + 0.5 * tf.tanh(inner)))


@operator("softplus")
def _softplus_of(context: Context, x: Value, beta: float, threshold: float) -> Value:
    return x.like(_softplus(x.tensor * beta) * (1.0 / beta))


@operator("threshold")
def _threshold(context: Context, x: Value, threshold: float, value: float) -> Value:
    return x.like(tf.where(x.tensor > threshold, x.tensor, tf.constant(float(value))))


@operator("hardshrink")
def _hardshrink(context: Context, x: Value, width: float) -> Value:
    return x.like(tf.where(tf.abs(x.tensor) > width, x.tensor, tf.constant(0.0)))


@operator("softshrink")
def _softshrink(context: Context, x: Value, width: float) -> Value:
    return x.like(tf.nn.relu(x.tensor - width) - tf.nn.relu(-x.tensor - width))


@operator("prelu", "_prelu_kernel")
def _prelu(context: Context, x: Value, weight: Operand) -> Value:
    weight = context.value(weight)
    if weight.rank == 1 and x.rank > 1:  # one slope, or one for each channel
        # PyTorch has channels on axis 1.
        weight = Value(tf.reshape(weight.tensor, [-1] + [1] * (x.rank - 2)))
    return each(context, lambda v, w: tf.nn.relu(v) + w * tf.minimum(v, 0.0), x, weight)


@operator("glu")
def _glu(context: Context, x: Value, axis: int) -> Value:
    first, second = tf.split(x.tensor, 2, x.axis(axis))
    return x.like(first * tf.sigmoid(second))


@operator("softmax", "_softmax", "special_softmax")
def _softmax(context: Context, x: Value, axis: int, *_: object) -> Value:
    return _last(x, axis, tf.nn.softmax)


@operator("log_softmax", "_log_softmax")
def _log_softmax(context: Context, x: Value, axis: int, *_: object) -> Value:
    return _last(x, axis, tf.nn.log_softmax)


@operator("softmin")
def _softmin(context: Context, x: Value, axis: int, *_: object) -> Value:
    return _last(x, axis, lambda v: tf.nn.softmax(-v))


def _last(x: Value, axis: int, function: Callable[[Tensor], Tensor]) -> Value:
    """Apply what works along the last axis."""
    axis %= x.rank
    order = [*(a for a in x.order if a != axis), axis]
    return Value(function(as_float(x.laid(order))), order)


@operator("to", "_to_copy", "type_as", "convert_element_type")
def _to(context: Context, x: Value, *options: object) -> Value:
    wanted = next((one for one in options if isinstance(one, torch.dtype)), None)
    require(
        wanted not in (torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        f"a tensor of {wanted}",
        "keep it in float32",
    )
    if wanted is None:
        return x
    dtype = tf.float32 if wanted.is_floating_point else tf.bool if wanted == torch.bool else tf.int32
    return x.like(tf.cast(x.tensor, dtype))


@operator(
    "clone",
    "contiguous",
    "detach_",
    "alias",
    "lift_fresh_copy",
    "lift_fresh",
    "copy",
    "positive",
    "_assert_tensor_metadata",
)
def _same(context: Context, x: Operand, source: object = None, *_: object) -> Value:
    return context.value(source) if isinstance(source, Value) else context.value(x)


@operator("detach")
def _detach(context: Context, x: Value) -> Value:
    return x.like(tf.stop_gradient(x.tensor))

"""Estimators as LiteRT models for the application, where they are made of dense layers; neither TensorFlow nor data are needed.

A ``StandardScaler`` before the estimator is folded into the first layer's weights, which are computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from fedgrass.errors import EngineError
from fedgrass.quantization import packed

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

    from fedgrass.manifest import Manifest
    from fedgrass.tensors import Array

_LINEAR = (ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge, SGDClassifier, SGDRegressor)
_PERCEPTRONS = (MLPClassifier, MLPRegressor)
_HIDDEN = {"relu": "RELU", "tanh": "TANH", "logistic": "LOGISTIC", "identity": ""}


@dataclass(frozen=True)
class Layer:
    """``activation(x @ weights + bias)``: weights [in, out], bias [out], float64; the activation names an operator, if any."""

    weights: Array
    bias: Array
    activation: str = ""


def litert_model(estimator: Any, manifest: Manifest) -> bytes:
    """Return a fitted estimator as a file with the signature ``infer(x) -> y``, as the application's models have it.

    Parameters
    ----------
    estimator
        The estimator, or a pipeline of a ``StandardScaler`` and one.
    manifest
        Of its bundle: shapes of x and of y, which are probabilities or predicted values.

    Returns
    -------
    bytes
        The file, for any number of examples.

    Raises
    ------
    EngineError
        If it is not made of dense layers alone.
    """
    layers, whole = _layers(estimator)
    last = layers[-1]
    if manifest.output.size == 2 and last.weights.shape[1] == 1 and whole == "LOGISTIC":
        # One row tells two classes apart: the other's score is 0, and softmax of both is the same probability.
        last = Layer(np.pad(last.weights, ((0, 0), (1, 0))), np.pad(last.bias, (1, 0)))
        layers, whole = [*layers[:-1], last], "SOFTMAX"
    graph = _Graph()
    value = graph.value("x", manifest.x.shape)
    features = layers[0].weights.shape[0]
    source = value
    if manifest.x.shape != (features,):
        value = graph.reshaped(value, (features,))
    for layer in layers:
        value = graph.dense(value, layer)
    value = _finished(graph, value, whole, last.weights.shape[1])
    if manifest.output.shape != (last.weights.shape[1],):
        value = graph.reshaped(value, manifest.output.shape)
    return graph.file(source, value)


def _finished(graph: _Graph, value: int, whole: str, size: int) -> int:
    """Apply what makes probabilities of all scores; ``SHARES``: of one score against the rest each, as shares of their sum."""
    if whole == "SHARES":
        value = graph.operator("LOGISTIC", [value], (size,))
        total = graph.summed(value)
        return graph.operator("DIV", [value, total], (size,), graph.schema.DivOptionsT())
    if whole == "SOFTMAX":
        options = graph.schema.SoftmaxOptionsT()
        options.beta = 1.0
        return graph.operator("SOFTMAX", [value], (size,), options)
    return graph.operator(whole, [value], (size,)) if whole else value


def _layers(estimator: Any) -> tuple[list[Layer], str]:
    """Return an estimator's layers, and the operator over all outputs."""
    if isinstance(estimator, Pipeline):
        *before, last = (step for _, step in estimator.steps if step is not None and step != "passthrough")
        layers, whole = _layers(last)
        for step in reversed(before):
            layers = [_scaled(step, layers[0]), *layers[1:]]
        return layers, whole
    if type(estimator) in _PERCEPTRONS:
        hidden = _HIDDEN[estimator.activation]
        names = [hidden] * (len(estimator.coefs_) - 1) + [""]
        layers = [
            Layer(np.asarray(weights, np.float64), np.asarray(bias, np.float64), name)
            for weights, bias, name in zip(estimator.coefs_, estimator.intercepts_, names, strict=True)
        ]
        return layers, {"identity": "", "logistic": "LOGISTIC", "softmax": "SOFTMAX"}[estimator.out_activation_]
    if type(estimator) not in _LINEAR:
        known = ", ".join(kind.__name__ for kind in (*_LINEAR, *_PERCEPTRONS))
        raise EngineError(
            f"{type(estimator).__name__}: is not made of dense layers, as a LiteRT file of an estimator is; that can be "
            f"{known}, or a Pipeline of a StandardScaler and one of them. Write .joblib"
        )
    weights = np.atleast_2d(np.asarray(estimator.coef_, np.float64)).T
    bias = np.broadcast_to(np.atleast_1d(np.asarray(estimator.intercept_, np.float64)), weights.shape[1:])
    if not isinstance(estimator, (LogisticRegression, SGDClassifier)):
        return [Layer(weights, bias)], ""
    if weights.shape[1] == 1:
        return [Layer(weights, bias)], "LOGISTIC"
    return [Layer(weights, bias)], "SHARES" if isinstance(estimator, SGDClassifier) else "SOFTMAX"


def _scaled(step: Any, layer: Layer) -> Layer:
    """Fold a scaler into the layer behind it."""
    if type(step) is not StandardScaler:
        raise EngineError(
            f"{type(step).__name__}: only a StandardScaler can be folded into a LiteRT file. Write .joblib"
        )
    count = layer.weights.shape[0]
    scale = np.asarray(step.scale_ if step.with_std else np.ones(count), np.float64)
    mean = np.asarray(step.mean_ if step.with_mean else np.zeros(count), np.float64)
    weights = layer.weights / scale[:, np.newaxis]
    return Layer(weights, layer.bias - mean @ weights, layer.activation)


class _Graph:
    """One subgraph in the making; tensors are known by their number, and their first axis is that of the examples."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated

        self.schema = schema_py_generated
        self._model = self.schema.ModelT()
        self._model.version = 3
        # The first buffer is empty by the format: of all tensors that are computed.
        self._model.buffers = [self.schema.BufferT()]
        self._model.operatorCodes = []
        self._graph = self.schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._codes: list[str] = []

    def value(self, name: str, shape: Sequence[int]) -> int:
        """Add a tensor of examples; returns its number."""
        return self._tensor(name, (1, *shape), (-1, *shape), self.schema.TensorType.FLOAT32, 0)

    def dense(self, value: int, layer: Layer) -> int:
        """Add a dense layer; returns its output."""
        weights, bias = self._constant(layer.weights.T), self._constant(layer.bias)
        options = self.schema.FullyConnectedOptionsT()
        if layer.activation == "RELU":
            options.fusedActivationFunction = self.schema.ActivationFunctionType.RELU
        shape = (layer.weights.shape[1],)
        found = self.operator("FULLY_CONNECTED", [value, weights, bias], shape, options)
        return self.operator(layer.activation, [found], shape) if layer.activation not in ("", "RELU") else found

    def reshaped(self, value: int, shape: Sequence[int]) -> int:
        """Add a RESHAPE of each example."""
        return self.operator("RESHAPE", [value, self._integers([-1, *shape])], shape)

    def summed(self, value: int) -> int:
        """Add the sum of each example's values [1]."""
        options = self.schema.ReducerOptionsT()
        options.keepDims = True
        return self.operator("SUM", [value, self._integers([1])], (1,), options)

    def operator(self, name: str, inputs: list[int], shape: Sequence[int], options: Any = None) -> int:
        """Add an operator; returns its output."""
        if name not in self._codes:
            self._codes.append(name)
            code = self.schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, name)
            code.version = 1
            self._model.operatorCodes.append(code)
        output = self.value(name.lower(), shape)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._codes.index(name)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._graph.operators.append(operator)
        return output

    def file(self, x: int, y: int) -> bytes:
        """Return the file."""
        self._graph.inputs, self._graph.outputs = np.array([x], np.int32), np.array([y], np.int32)
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "infer", 0
        signature.inputs, signature.outputs = [self._named("x", x)], [self._named("y", y)]
        self._model.subgraphs, self._model.signatureDefs = [self._graph], [signature]
        return packed(self._model)

    def _named(self, name: str, tensor: int) -> schema.TensorMapT:
        found = self.schema.TensorMapT()
        found.name, found.tensorIndex = name, tensor
        return found

    def _constant(self, values: Array) -> int:
        return self._stored(np.ascontiguousarray(values, np.float32), self.schema.TensorType.FLOAT32)

    def _integers(self, values: Sequence[int]) -> int:
        return self._stored(np.array(values, np.int32), self.schema.TensorType.INT32)

    def _stored(self, values: Array, kind: int) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(values.astype(values.dtype.newbyteorder("<")).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        return self._tensor("", values.shape, None, kind, len(self._model.buffers) - 1)

    def _tensor(self, name: str, shape: Sequence[int], signature: Sequence[int] | None, kind: int, buffer: int) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, kind, buffer
        tensor.shape = np.array(shape, np.int32)
        if signature is not None:
            tensor.shapeSignature = np.array(signature, np.int32)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

"""A Keras model as a function of its weights."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from fedgrass.authoring import exchanged, heads, progress
from fedgrass.authoring.checks import check
from fedgrass.authoring.errors import UnsupportedModelError, first_line
from fedgrass.authoring.final import Final
from fedgrass.authoring.forward import Forwarded
from fedgrass.authoring.inputs import functional, names
from fedgrass.authoring.operators import recurrent, substituted
from fedgrass.authoring.patching import patched
from fedgrass.authoring.randomness import drawn, is_random
from fedgrass.authoring.recurrence import Recurrence
from fedgrass.bundle import Loss, Parameters, Statistic, TensorDescription
from fedgrass.errors import FedgrassError

Tensor: TypeAlias = tf.Tensor
Call = Callable[[Tensor, Sequence[Tensor], "Tensor | None"], Forwarded]


class Model(Protocol):
    """What authoring makes a bundle of: a function of x and of named values, the trained ones before the statistics."""

    name: str
    x: tf.TensorSpec
    """``tf.TensorSpec`` of the input; its batch axis is open."""
    output_shape: tuple[int, ...]
    """Of one example."""
    inputs: tuple[TensorDescription, ...]
    """Of several inputs, which are one row in x; none of one."""
    outputs: tuple[TensorDescription, ...]
    """Of several outputs, which are one row in what `call` gives; none of one."""
    trained_count: int
    """How many of `values` the optimizer changes; the forward pass changes the rest (statistics)."""
    frozen_names: tuple[str, ...]
    draws_masks: bool

    statistics: dict[str, Statistic]
    """What each of these statistics measures."""
    fixed: tuple[str, ...]
    """Statistics that training leaves as they are: what a layer that normalizes the input was adapted to."""

    def values(self) -> Parameters:
        """Return the present values by name: the trained weights, then the statistics."""
        ...

    def logits(self, losses: Sequence[Loss]) -> Call:
        """Give the model without the final activations that the outputs' losses contain, as `call`."""
        ...

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> Forwarded:
        """Run forward for x [B, …], in operators that train and run fast with variable weights.

        Parameters
        ----------
        values
            In the order of `values`; the frozen weights become constants.
        step
            Number of the training step, int32; none outside training.
        """
        ...

    def infer(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs for inputs [B, …] in the model's own operators, the best ones for constant weights."""
        ...

    def constraints(self) -> Sequence[Callable[[Tensor], Tensor] | None]:
        """Return for each trained value what a step's result is put through, if anything."""
        ...

    def takes(self) -> tuple[int | None, float | None]:
        """Return the number of tokens it knows, if it takes tokens, and the value that masks a step, if one does."""
        ...

    def vocabularies(self) -> dict[str, int]:
        """Return the number of tokens that each of several inputs may be, by name, where it is known."""
        ...

    def place(self, where: str) -> str:
        """Return the layer that a graph node belongs to, in the words of an error."""
        ...


class KerasModel:
    """A built model's weights in three groups: trained, statistics (set by the forward pass in training), and frozen.

    Raises
    ------
    UnsupportedModelError
        If the model as a whole is none that can be exported.
    """

    def __init__(self, model: keras.Model) -> None:
        check(model)
        self.keras = model
        self.name = str(model.name)
        input_names, output_names = names(model)
        self.inputs = (
            heads.described(_tensors(input_names, model.inputs), "input", self.name) if input_names[1:] else ()
        )
        self.outputs = (
            heads.described(_tensors(output_names, model.outputs), "output", self.name) if output_names[1:] else ()
        )
        self.x = tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype, name="x")
        if self.inputs:
            self.x = tf.TensorSpec([None, *heads.row(self.inputs, "x").shape], tf.float32, name="x")
        self.output_shape = heads.row(self.outputs, "y").shape if self.outputs else tuple(model.outputs[0].shape[1:])
        self._layers = list(model._flatten_layers())
        self._layer_of: dict[str, keras.Layer] = {layer.name: layer for layer in self._layers if layer is not model}
        self._trained = list(model.trainable_variables)
        normalizations = [
            layer for layer in self._layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        self._statistics = [v for layer in normalizations for v in (layer.moving_mean, layer.moving_variance)]
        # Keras takes what such a layer was adapted to for constants. As parameters they can be set in a finished bundle.
        self._adapted = [layer for layer in self._layers if _normalizes_input(layer, model.inputs)]
        adapted = [v for layer in self._adapted for v in (layer.adapt_mean, layer.adapt_variance)]
        self._statistics += adapted
        # Taken now: whoever trains the model further must not change what was exported.
        self._constants = [v.numpy() for v in model.non_trainable_variables]
        self.trained_count = len(self._trained)
        self.draws_masks = any(map(is_random, self._layers))
        self._vocabularies = [
            min((layer.input_dim for layer in self._layers if _embeds(layer, tensor)), default=None)
            for tensor in model.inputs
        ]
        self.vocabulary = None if self.inputs else self._vocabularies[0]
        self._names = _named(self.name, [*model.weights, *model.non_trainable_variables])
        moving = {id(variable) for variable in [*self._trained, *self._statistics]}
        kinds: tuple[Statistic, ...] = ("mean", "variance")
        self.statistics = dict(zip(map(self._name, self._statistics), itertools.cycle(kinds)))
        self.fixed = tuple(map(self._name, adapted))
        self.frozen_names = tuple(self._name(weight) for weight in model.weights if id(weight) not in moving)

    def values(self) -> Parameters:
        """Return the present values by name; see `Model.values`."""
        return {
            self._name(variable): np.array(variable.numpy(), dtype=np.float32)
            for variable in [*self._trained, *self._statistics]
        }

    def logits(self, losses: Sequence[Loss]) -> Call:
        """Give the model without the final activations that the losses contain."""
        finals = [Final(self.keras, loss, output) for output, loss in enumerate(losses)]

        def logits(x: Tensor, values: Sequence[Tensor], step: Tensor | None) -> Forwarded:
            # Entered for each trace: the model itself is left as it was.
            with ExitStack() as stack:
                for final in finals:
                    stack.enter_context(final.left_out())
                made, outputs = self._traced(x, values, step)
            given = [final.stripped(output) for final, output in zip(finals, outputs, strict=True)]
            return replace(made, logits=heads.joined(given) if self.outputs else given[0])

        return logits

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> Forwarded:
        """Run forward; see `Model.call`."""
        return self._traced(x, values, step)[0]

    def _traced(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None) -> tuple[Forwarded, Sequence[Tensor]]:
        # Operators and names are pointed elsewhere only while this call is traced.
        with substituted(step), self._noting_layers():
            given = heads.apart(x, self.inputs) if self.inputs else [x]
            return self._call(given, values, training=step is not None)

    def constraints(self) -> list[Callable[[Tensor], Tensor] | None]:
        """Return Keras' own constraint of each trained weight."""
        return [variable.constraint for variable in self._trained]

    def infer(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs in Keras' own operators."""
        # No training, so nothing is kept for gradients; draws are fixed.
        with recurrent(Recurrence()), drawn(None), exchanged.for_inference():
            return self._call(inputs, values, training=False)[1]

    def vocabularies(self) -> dict[str, int]:
        """Return what embeddings of its inputs know; see `Model.vocabularies`."""
        sizes = zip(self.inputs, self._vocabularies, strict=False)
        return {part.name: size for part, size in sizes if size is not None}

    def takes(self) -> tuple[int | None, float | None]:
        """Return what its embeddings and maskings say; see `Model.takes`."""
        sizes = (getattr(layer, name, None) for layer in self._layers for name in ("input_dim", "num_tokens"))
        tokens = [size for size in sizes if isinstance(size, int)]
        masks = [layer.mask_value for layer in self._layers if isinstance(layer, keras.layers.Masking)]
        masks += [0 for layer in self._layers if getattr(layer, "mask_zero", False)]
        return self.vocabulary or min(tokens, default=None), next(iter(masks), None)

    def place(self, where: str) -> str:
        """Return the layer that a graph node belongs to."""
        # Nodes of a gradient carry the forward node's name with `_grad` behind it.
        layer = self._layer_of.get(re.sub(r"^(?:gradients(?:_\d+)?/)?(.*?)_grad/.*", r"\1", where))
        return f"layer {layer.name!r} ({type(layer).__name__})" if layer else where

    def _call(
        self, inputs: Sequence[Tensor], values: Sequence[Tensor], *, training: bool
    ) -> tuple[Forwarded, Sequence[Tensor]]:
        # By identity: Keras lists variables by layer, not trained ones before statistics.
        given = {id(v): value for v, value in zip([*self._trained, *self._statistics], values, strict=True)}
        other = self.keras.non_trainable_variables
        constants = [
            given[id(v)] if id(v) in given else tf.constant(value)
            for v, value in zip(other, self._constants, strict=True)
        ]
        # A Sequential has no structure of its own.
        struct = getattr(self.keras, "_inputs_struct", None)
        x = inputs[0] if struct is None else keras.tree.pack_sequence_as(struct, list(inputs))
        # stateless_call: variables go in and out as tensors, so the graph can hold its own.
        with self._adapted_to(given):
            output, updated, penalties = self.keras.stateless_call(
                list(values[: self.trained_count]), constants, x, training=training, return_losses=True
            )
        # A layer may add a loss for each example; Keras adds those up.
        penalties = [tf.reduce_sum(penalty) for penalty in penalties]
        outputs = keras.tree.flatten(output)
        after = {id(variable): value for variable, value in zip(other, updated, strict=True)}
        if training:
            self._check_moved(constants, updated)
        statistics = [after[id(variable)] for variable in self._statistics]
        masks = [getattr(each, "_keras_mask", None) for each in outputs]
        if not self.outputs:
            self._check_mask(masks[0], outputs[0])
            return Forwarded(outputs[0], statistics, penalties, masks[0]), outputs
        self._check_unmasked(masks)
        return Forwarded(heads.joined(outputs), statistics, penalties), outputs

    @contextmanager
    def _adapted_to(self, given: dict[int, Tensor]) -> Iterator[None]:
        """Have the layers that normalize the input take their mean and variance from parameters."""
        with ExitStack() as stack:
            for layer in self._adapted:
                for name, variable in (("mean", layer.adapt_mean), ("variance", layer.adapt_variance)):
                    value = tf.reshape(given[id(variable)], getattr(layer, name).shape)
                    stack.enter_context(patched(layer, name, value))
            yield

    def _check_unmasked(self, masks: Sequence[Tensor | None]) -> None:
        for part, mask in zip(self.outputs, masks, strict=True):
            if mask is not None:
                raise UnsupportedModelError(
                    f"output {part.name!r}",
                    "a mask that reaches one of several outputs",
                    "let a layer take it up, such as a last LSTM or GlobalAveragePooling1D, or export that output alone",
                )

    def _check_mask(self, mask: Tensor | None, output: Tensor) -> None:
        if mask is not None and list(mask.shape) != list(output.shape[: mask.shape.rank]):
            raise UnsupportedModelError(
                f"the output of {self.name}",
                f"a mask of {list(mask.shape)} beside values of {list(output.shape)}",
                "let the layer that takes the masked steps together return None from compute_mask",
            )

    def _check_moved(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Refuse a layer that changes, in training, a variable which would stay as it is on a device."""
        known = {id(variable) for variable in self._statistics}
        for variable, value, found in zip(self.keras.non_trainable_variables, before, after, strict=True):
            # The tensor that went in comes out again where a layer leaves its variable alone.
            if found is not value and id(variable) not in known and "seed_generator" not in variable.path:
                raise UnsupportedModelError(
                    self._name(variable),
                    "a variable that the layer itself changes in training",
                    "use BatchNormalization or LayerNormalization, or a layer without such a variable",
                )

    @contextmanager
    def _noting_layers(self) -> Iterator[None]:
        """Note which layer makes each node: the node's name alone does not tell ``dense_1`` from the second ``dense``."""
        call, graph = keras.layers.Layer.__call__, tf.compat.v1.get_default_graph()

        def noted(layer: keras.Layer, *args: object, **kwargs: object) -> Tensor:
            before = len(graph.get_operations())
            progress.at(f"traces layer {layer.name!r}")
            try:
                return call(layer, *args, **kwargs)
            except FedgrassError:
                raise
            except Exception as error:
                raise UnsupportedModelError(
                    f"layer {layer.name!r} ({type(layer).__name__})",
                    f"what it does ({first_line(error)})",
                    "use a layer of docs/models.md in its place",
                ) from error
            finally:
                for node in graph.get_operations()[before:] if layer is not self.keras else ():
                    self._layer_of.setdefault(node.name, layer)

        with patched(keras.layers.Layer, "__call__", noted):
            yield

    def _name(self, variable: keras.Variable) -> str:
        return self._names[id(variable)]


def _tensors(names: Sequence[str], tensors: Sequence[keras.KerasTensor]) -> list[tuple[str, Sequence[int], str]]:
    return [(name, tensor.shape[1:], tensor.dtype) for name, tensor in zip(names, tensors, strict=True)]


def _embeds(layer: keras.Layer, x: Tensor) -> bool:
    """Whether a layer looks the model's very input up in its table."""
    return isinstance(layer, keras.layers.Embedding) and _takes(layer, x)


def _normalizes_input(layer: keras.Layer, inputs: Sequence[Tensor]) -> bool:
    """Whether a layer brings the model's only input to mean 0 and variance 1 by figures that it was adapted to."""
    is_adapted = isinstance(layer, keras.layers.Normalization) and layer.input_mean is None and not layer.invert
    return is_adapted and len(inputs) == 1 and _takes(layer, inputs[0])


def _takes(layer: keras.Layer, x: Tensor) -> bool:
    return any(tensor is x for node in layer._inbound_nodes for tensor in node.input_tensors)


def _named(model: str, variables: Sequence[keras.Variable]) -> dict[int, str]:
    """Return a name for each variable: its path, with a number where two layers of a model of one's own share a name."""
    names: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for variable in variables:
        if id(variable) in names:
            continue
        path = str(variable.path.removeprefix(f"{model}/"))
        seen[path] += 1
        names[id(variable)] = path if seen[path] == 1 else f"{path}_{seen[path] - 1}"
    return names


@contextmanager
def frozen(model: keras.Model, layer_names: Sequence[str], given: object = None) -> Iterator[KerasModel]:
    """Give a Keras model with these layers not trainable, besides those that are not anyway.

    ``given`` describes the input of a model that does not know it (`fedgrass.authoring.inputs`).

    Parameters
    ----------
    model
        The Keras model.
    names
        Layers, or the beginnings of their variables' paths.
    given
        Shape of one example, for a model that does not say; see `fedgrass.authoring.inputs.functional`.
    """
    model = functional(model, given)
    layers = {layer.name: layer for layer in model._flatten_layers() if layer is not model}
    unknown = sorted(set(layer_names) - layers.keys())
    if unknown:
        raise UnsupportedModelError(
            model.name, f"freezing {unknown[0]!r}, which it does not have,", f"choose among {', '.join(layers)}"
        )
    with ExitStack() as stack:
        for name in layer_names:
            # Put back afterwards: the caller's model keeps its own settings.
            stack.enter_context(patched(layers[name], "trainable", False))
        yield KerasModel(model)

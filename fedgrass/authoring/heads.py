"""Several inputs and outputs of a model: their descriptions, in one row as the graph takes and gives them, and their losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import tensorflow as tf

from fedgrass.authoring import gradients
from fedgrass.authoring.compiled import Objective, Several, objective
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.losses import LossFunction, PerExample, loss_function
from fedgrass.authoring.windows import concat
from fedgrass.bundle import Head, TensorDescription
from fedgrass.engines.several import spans
from fedgrass.protocol.metrics import LONGEST_OUTPUT, PREFIXES

Tensor: TypeAlias = tf.Tensor


def described(
    tensors: Sequence[tuple[str, Sequence[int], str]], what: str, model: str
) -> tuple[TensorDescription, ...]:
    """Describe several inputs or outputs, by names that arrays, columns and signatures may have.

    Parameters
    ----------
    tensors
        Name, shape of one example and dtype of each.
    what
        ``input`` or ``output``, for messages.
    model
        The model's name, for messages.

    Raises
    ------
    UnsupportedModelError
        If an axis is open, or two have one name.
    """
    found: list[TensorDescription] = []
    for name, shape, dtype in tensors:
        if None in shape:
            raise UnsupportedModelError(
                model, f"{what} {name!r} of shape {list(shape)}", "fix every axis but the first"
            )
        # Signatures, columns of tables and figures allow letters, digits and the underscore.
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or what
        found.append(TensorDescription(name=plain, shape=tuple(shape), dtype=cast(Any, dtype)))
    names = [part.name for part in found]
    if what == "output" and (odd := [n for n in names if len(n) > LONGEST_OUTPUT or f"{n}_".startswith(PREFIXES)]):
        raise UnsupportedModelError(
            f"output {odd[0]!r}",
            "a name that figures cannot begin with",
            f"name its layer with at most {LONGEST_OUTPUT} characters, not beginning with {', '.join(PREFIXES)}",
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UnsupportedModelError(model, f"two {what}s called {twice[0]!r}", "name each differently")
    return tuple(found)


def row(parts: Sequence[TensorDescription], name: str) -> TensorDescription:
    """Describe the row that holds them all."""
    return TensorDescription(name=name, shape=(sum(part.size for part in parts),), dtype="float32")


def apart(rows: Tensor, parts: Sequence[TensorDescription]) -> list[Tensor]:
    """Return the tensors [B, *shape] that rows [B, values] are made of."""
    batch = rows.shape[0]
    return [
        tf.cast(tf.reshape(rows[:, span], [batch, *part.shape]), part.dtype)
        for span, part in zip(spans(parts), parts, strict=True)
    ]


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors [B, …] as rows [B, values]."""
    batch = tensors[0].shape[0]
    with gradients.overridden():
        return concat([tf.reshape(tf.cast(tensor, tf.float32), [batch, -1]) for tensor in tensors], 1)


def head(output: TensorDescription, goal: Objective, weight: float, class_names: Sequence[str]) -> Head:
    """Describe an output with the label that its loss takes.

    Parameters
    ----------
    output
        Name, shape and dtype of the output.
    goal
        Its loss.
    weight
        What the loss is times in the sum of all.
    class_names
        Of its classes, in the order of their numbers; empty if there are none.
    """
    name, loss = output.name, goal.loss
    y = TensorDescription(name=name, shape=output.shape, dtype="float32")
    # The label is a class's number, so it lacks the classes' axis, which is the last.
    if loss == "sparse_categorical_crossentropy":
        if not output.shape:
            raise UnsupportedModelError(f"output {name!r}", f"one value before {loss}", "give one value for each class")
        y = TensorDescription(name=name, shape=output.shape[:-1], dtype="int32")
    return Head(
        output=output,
        y=y,
        loss=loss,
        loss_options=goal.options,
        weight=weight,
        class_names=tuple(class_names),
    )


def loss_of(heads: Sequence[Head]) -> LossFunction:
    """Return the weighted sum of several outputs' losses, over what they give in one row."""
    functions = [loss_function(one.loss, one.loss_options) for one in heads]

    def loss(logits: Tensor, y: Tensor, _: bool) -> PerExample:
        batch = logits.shape[0]
        given, labels = apart(logits, [one.output for one in heads]), apart(y, [one.y for one in heads])
        total, slopes = tf.zeros([batch]), []
        for one, function, output, label in zip(heads, functions, given, labels, strict=True):
            found = function(output, label, False)
            total += one.weight * found.loss
            slopes.append(one.weight * found.gradient)
        # How right several outputs are has no one meaning: 0 says "not counted".
        return PerExample(total, joined(slopes), tf.zeros([batch]))

    return loss


def of_each(given: Any, names: Sequence[str], what: str, default: Any = None) -> list[Any]:
    """Return each output's part of something that is given by name, in order, or once for all.

    Parameters
    ----------
    given
        A mapping by name, a list in order, or one value for all; None takes the default.
    names
        The outputs', in order.
    what
        What is given, for messages.
    default
        Of an output that a mapping leaves out; None: none may be left out.

    Raises
    ------
    UnsupportedModelError
        If it names an output that is not there, leaves one out that has no default, or has another number of entries.
    """
    if isinstance(given, Mapping):
        known = ", ".join(names)
        if strange := [name for name in given if name not in names]:
            raise UnsupportedModelError(
                f"{what} of {strange[0]!r}", "an output that the model does not have", f"it has {known}"
            )
        missing = [name for name in names if name not in given]
        if missing and default is None:
            raise UnsupportedModelError(f"output {missing[0]!r}", f"no {what}", f"give one for each of {known}")
        return [given.get(name, default) for name in names]
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise UnsupportedModelError(
                f"{what}", f"{len(given)} entries for {len(names)} outputs", f"give one for each of {', '.join(names)}"
            )
        return list(given)
    return [default if given is None else given] * len(names)


def losses_of(given: Objective | Several, names: Sequence[str]) -> list[Objective]:
    """Return the loss of each output.

    Parameters
    ----------
    given
        An `Objective` for all, or `Several`.
    names
        The outputs'.

    Raises
    ------
    UnsupportedModelError
        If an output has none, or one that devices cannot train with.
    """
    if isinstance(given, Objective):
        return [given] * len(names)
    return [_objective(loss, name) for loss, name in zip(of_each(given.losses, names, "loss"), names, strict=True)]


def _objective(loss: object, name: str) -> Objective:
    if loss is None:
        raise UnsupportedModelError(f"output {name!r}", "no loss", "give it one, or build a model without that output")
    return objective(loss)


def heads_of(given: Any, outputs: Sequence[TensorDescription], class_names: object) -> tuple[Head, ...]:
    """Return several outputs with their losses, weights and classes, as they were given; see `of_each`.

    Parameters
    ----------
    given
        Losses by output's name, in order, or one for all; a `Several` has weights too.
    outputs
        Name, shape and dtype of each output.
    class_names
        A mapping by output's name; anything else names no classes.

    Returns
    -------
    tuple
        A head for each output, in order.
    """
    names = [output.name for output in outputs]
    weights = of_each(given.weights if isinstance(given, Several) else None, names, "loss_weights", 1.0)
    classes = of_each(class_names if isinstance(class_names, Mapping) else None, names, "class_names", ())
    return tuple(
        head(output, goal, float(weight), labels)
        for output, goal, weight, labels in zip(outputs, losses_of(given, names), weights, classes, strict=True)
    )

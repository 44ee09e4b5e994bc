"""What an object of Flower's keeps from round to round, as arrays: nothing is pickled, and no class is named.

A strategy is made again for each round. What is kept are the attributes that are no longer as its constructor made them: numbers,
text, arrays, Flower's records of them, and lists, tuples, sets and dictionaries of these; the same of the objects that it holds,
a wrapped strategy among them. They are put into the new object. What cannot be kept (a function, a model, a logger) is as the
constructor makes it. An attribute of that kind that only came into being after the constructor is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgrass.errors import AggregationError
from fedgrass.tensors import Array

MODEL_ATTRIBUTES = frozenset(
    {"current_arrays", "current_round_params", "current_weights", "initial_parameters", "pre_weights"}
)
"""Where Flower's own strategies hold the model that a round starts from: always the base, never what is kept."""

_PLAIN = (bool, int, float, str, type(None))
_SEQUENCES: dict[str, type[Any]] = {"list": list, "tuple": tuple, "set": set}
_RECORDS = ("MetricRecord", "ConfigRecord")
_TREE = "flower.tree"
# Levels: a structure that holds itself would never end.
_DEEPEST = 12

Tree = tuple[str, Any]
"""A kind, and what it is made of: values, arrays, and other trees."""


@dataclass(frozen=True)
class Unkept:
    """Stands for a value that cannot be kept."""

    kind: type[Any]
    reason: str


class _CannotBeKeptError(Exception):
    pass


Attributes = dict[str, "Tree | Unkept"]


def attributes(subject: Any, depth: int = 0) -> Attributes:
    """Return an object's attributes as they are now, copied; those that hold the round's model are left out."""
    found: Attributes = {}
    for key, value in vars(subject).items():
        if key in MODEL_ATTRIBUTES:
            continue
        try:
            found[key] = _tree(value, depth)
        except _CannotBeKeptError as error:
            if hasattr(value, "__dict__") and not callable(value) and depth < _DEEPEST:
                # Each object counts four levels, so that objects within objects end after three.
                found[key] = ("object", (type(value), attributes(value, depth + 4)))
            else:
                found[key] = Unkept(type(value), str(error))
    return found


def kept(strategy: Any, made: Attributes, *, name: str) -> dict[str, Array]:
    """Return what a strategy is to know in the next round.

    Parameters
    ----------
    strategy
        As it is after the round.
    made
        `attributes` as the constructor left them.
    name
        Of the strategy, for messages.

    Raises
    ------
    AggregationError
        If an attribute that came into being since cannot be kept.
    """
    arrays: dict[str, Array] = {}
    written = _changes(attributes(strategy), made, arrays, name)
    if written:
        arrays[_TREE] = np.frombuffer(json.dumps(written).encode(), np.uint8).copy()
    return arrays


def restore(strategy: Any, state: Mapping[str, Array], *, name: str) -> None:
    """Give a new strategy what `kept` returned.

    Parameters
    ----------
    strategy
        As its constructor made it; its attributes are set.
    state
        Arrays by name; without any, nothing is changed.
    name
        Of the strategy, for messages.

    Raises
    ------
    AggregationError
        If the state is damaged.
    """
    if _TREE not in state:
        return
    try:
        _fill(strategy, json.loads(state[_TREE].tobytes()), state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AggregationError(f"strategy {name!r}: what was kept of the last round is damaged ({error!r})") from error


def _tree(value: Any, depth: int) -> Tree:
    if depth > _DEEPEST:
        raise _CannotBeKeptError("nested too deeply")
    # By exact type: a subclass would come back as its base.
    if type(value) in _PLAIN:
        return "plain", value
    if isinstance(value, np.ndarray | np.generic):
        return "scalar" if isinstance(value, np.generic) else "array", _numbers(np.array(value))
    if isinstance(value, bytes):
        return "bytes", np.frombuffer(value, np.uint8)
    for kind, of in _SEQUENCES.items():
        if type(value) is of:
            return kind, [_tree(one, depth + 1) for one in value]
    if type(value) is dict:
        return "dict", [(_tree(key, depth + 1), _tree(one, depth + 1)) for key, one in value.items()]
    return _record_tree(value, depth)


def _record_tree(value: Any, depth: int) -> Tree:
    kind = type(value).__name__
    if type(value).__module__.partition(".")[0] == "flwr":
        if kind == "Parameters":
            return kind, [_tree(value.tensor_type, depth + 1), *(_tree(tensor, depth + 1) for tensor in value.tensors)]
        if kind == "ArrayRecord":
            return kind, [(("plain", key), ("array", _numbers(one.numpy()))) for key, one in value.items()]
        if kind in _RECORDS:
            return kind, _tree(dict(value), depth + 1)[1]
    raise _CannotBeKeptError(f"found {kind}")


def _numbers(value: Array) -> Array:
    # What a safetensors file has a name for.
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise _CannotBeKeptError(f"found an array of {value.dtype}")
    return value


def _changes(now: Attributes, made: Attributes, arrays: dict[str, Array], name: str) -> list[Any]:
    changes: list[Any] = []
    for key, after in now.items():
        before = made.get(key)
        if isinstance(after, Unkept) or after[0] == "object":
            if _kind(after) is not _kind(before):
                found = after.reason if isinstance(after, Unkept) else f"found {after[1][0].__name__}"
                raise AggregationError(
                    f"strategy {name!r}: its attribute {key!r} cannot be kept for the next round ({found}); expected "
                    "numbers, text, arrays, and lists and dictionaries of them. Make it in the constructor, if it may begin "
                    "anew in each round"
                )
            if isinstance(after, tuple) and isinstance(before, tuple):
                inner = _changes(after[1][1], before[1][1], arrays, name)
                changes += [[key, ["object", inner]]] if inner else []
        elif not isinstance(before, tuple) or not _same(after, before):
            changes.append([key, _written(after, arrays)])
    return changes


def _kind(attribute: Tree | Unkept | None) -> type[Any] | None:
    """Return the class of a value that is an object; None of any other."""
    if isinstance(attribute, Unkept):
        return attribute.kind
    if attribute is not None and attribute[0] == "object":
        kind: type[Any] = attribute[1][0]
        return kind
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        same_kind = isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
        # By bytes, so that NaN equals itself, and -0.0 does not equal 0.0.
        return same_kind and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _written(tree: Tree, arrays: dict[str, Array]) -> Any:
    """Return a tree as JSON has it, its arrays put aside under names."""
    kind, value = tree
    if isinstance(value, np.ndarray):
        place = f"flower.{len(arrays)}"
        arrays[place] = value
        return [kind, place]
    if isinstance(value, list):
        return [
            kind,
            [
                [_written(a, arrays) for a in one] if isinstance(one[0], tuple) else _written(one, arrays)
                for one in value
            ],
        ]
    return [kind, value]


def _fill(target: Any, changes: Any, state: Mapping[str, Array]) -> None:
    for key, written in changes:
        if written[0] == "object":  # what the constructor made is filled; none is made here
            _fill(getattr(target, key), written[1], state)
        else:
            setattr(target, key, _value(written, state))


def _value(written: Any, state: Mapping[str, Array]) -> Any:
    kind, value = written
    match kind:
        case "plain":
            return value
        case "array":
            return state[value].copy()
        case "scalar":
            return state[value][()]
        case "bytes":
            return state[value].tobytes()
        case "list" | "tuple" | "set":
            return _SEQUENCES[kind](_value(one, state) for one in value)
        case "dict":
            return {_value(key, state): _value(one, state) for key, one in value}
    return _record(kind, value, state)


def _record(kind: str, value: Any, state: Mapping[str, Array]) -> Any:
    if kind == "Parameters":
        from flwr.common import Parameters

        tensor_type, *tensors = (_value(one, state) for one in value)
        return Parameters(tensors, tensor_type)
    from flwr import app

    pairs = {_value(key, state): _value(one, state) for key, one in value}
    if kind == "ArrayRecord":
        return app.ArrayRecord({key: app.Array(one) for key, one in pairs.items()})
    if kind in _RECORDS:
        return getattr(app, kind)(pairs)
    raise ValueError(f"there is no {kind!r}")

"""What ``torch.export`` records of a module's call, and how it is made again in the present TensorFlow graph."""

from __future__ import annotations

import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import tensorflow as tf
import torch

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.torch.registry import OPERATORS, Context
from fedgrass.authoring.torch.values import Value, constant

Tensor: TypeAlias = tf.Tensor
Target: TypeAlias = torch.fx.node.Target
_transformer = torch.nn.modules.transformer

SCOPE = "torch"
"""Of the nodes' names in the graph; the module's path follows."""

_PASSES = 4
"""How often what is not in the table is taken apart, one level at a time."""


@dataclass(frozen=True)
class Program:
    """One traced call. ``statistics`` are the float buffers that it changes, in the state dict's order."""

    exported: torch.export.ExportedProgram
    statistics: tuple[str, ...]
    outputs: tuple[Any, ...]
    output_names: tuple[str, ...]
    changes: Mapping[str, Any]
    """Node of a buffer's new value, by the buffer's name."""

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the outputs, with their batch axis."""
        return tuple(tuple(int(size) for size in output.meta["val"].shape) for output in self.outputs)

    def last_operator(self, output: int) -> str:
        """Return the name of the operator that makes an output."""
        return _name(self.outputs[output]).strip("_")

    def without(self, activations: Sequence[str | None]) -> list[Any]:
        """Return the outputs' nodes, or what goes into those that are made by the activation at their place."""
        return [
            node.args[0] if activation is not None and self.last_operator(at) == activation else node
            for at, (node, activation) in enumerate(zip(self.outputs, activations, strict=True))
        ]

    def draws(self) -> bool:
        """Whether the operators draw random numbers."""
        return any(_draws(node) for node in self.exported.graph.nodes)


def trace(module: torch.nn.Module, inputs: Sequence[torch.Tensor], *, training: bool) -> Program:
    """Record a module's call with these example inputs.

    Parameters
    ----------
    module
        A ``torch.nn.Module``; it is left in the mode that it had.
    inputs
        Example inputs, with the batch axis.
    training
        Whether it is traced in training mode.

    Raises
    ------
    UnsupportedModelError
        If it does not take them, or cannot be recorded, or has an operator that is not in the table; by module path.
    """
    # In one process, Triton (of the CUDA wheel) and TensorFlow abort each other: both bring LLVM. Nothing here needs it.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    _check_normalizations(module)
    before = module.training
    module.train(training)
    try:
        # no_grad: the gradients are TensorFlow's, of the operators that are made again.
        with _quietly(), _following(module) as entered, torch.no_grad():
            try:
                exported = _taken_apart(torch.export.export(module, tuple(inputs), strict=False))
            except UnsupportedModelError:
                raise
            except Exception as error:
                raise _untraceable(module, entered, error) from error
    finally:
        module.train(before)
    return _described(exported, module)


def _check_normalizations(module: torch.nn.Module) -> None:
    for path, part in module.named_modules():
        if (
            isinstance(part, torch.nn.modules.batchnorm._NormBase)
            and part.track_running_stats
            and part.momentum is None
        ):
            raise UnsupportedModelError(
                described(module, path), "momentum=None, a mean over all batches,", "give a momentum, such as 0.1"
            )


@contextmanager
def _quietly() -> Iterator[None]:
    fast, detect = torch.backends.mha.get_fastpath_enabled(), _transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator for a whole layer has no gradient
    # Looks into a mask for whether it is a causal one, which changes nothing but speed.
    _transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _transformer._detect_is_causal_mask = detect


@contextmanager
def _following(module: torch.nn.Module) -> Iterator[list[str]]:
    """Keep the paths of the modules whose call has begun and not ended."""
    entered: list[str] = []
    hooks = []

    def leave(*_: object) -> None:
        entered.pop()

    for path, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda *_, path=path: entered.append(path)))
        hooks.append(part.register_forward_hook(leave))
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _untraceable(module: torch.nn.Module, entered: list[str], error: Exception) -> UnsupportedModelError:
    where = described(module, entered[-1] if entered else "")
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "data-dependent" in str(error).lower() or "GuardOnDataDependent" in type(error).__name__:
        return UnsupportedModelError(where, *_DATA_DEPENDENT)
    return UnsupportedModelError(
        where,
        f"a call that torch.export cannot record ({type(error).__name__}: {text[:300]})",
        'check that EXPORT["input"] is what forward() takes, and that forward() uses tensors alone',
    )


def _taken_apart(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Make it functional, and take operators apart until all are in the table."""
    exported = _decomposed(exported, {})
    # One level at a time: an operator that is in the table must not be taken apart into others that are slower.
    for _ in range(_PASSES):
        unknown = {node.target for node in _calls(exported) if not _is_known(node)}
        if not unknown:
            break
        rules = torch.export.default_decompositions()
        usable = {target: rules[target] for target in unknown if target in rules}
        if not usable:
            usable = _explicit(unknown)
        if not usable:
            break
        exported = _decomposed(exported, usable)
    for node in _calls(exported):
        if not _is_known(node):
            raise _unknown(node)
    return exported


def _decomposed(
    exported: torch.export.ExportedProgram, rules: dict[Any, Callable[..., object]]
) -> torch.export.ExportedProgram:
    try:
        return exported.run_decompositions(rules)
    except Exception as error:
        for node in _calls(exported):  # torch's own passes fail at views of them
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.is_complex():
                raise UnsupportedModelError(
                    _where(node), f"a tensor of {value.dtype}", "keep real and imaginary parts in two float32 tensors"
                ) from error
        raise


def _unknown(node: torch.fx.Node) -> UnsupportedModelError:
    name = _name(node)
    if name.startswith("sym_") or name in ("nonzero", "masked_select", "_local_scalar_dense"):
        return UnsupportedModelError(_where(node), *_DATA_DEPENDENT)
    return UnsupportedModelError(_where(node), f"operator {name}", "use another; docs/models.md lists what can be")


_DATA_DEPENDENT = (
    "control flow or a shape that depends on the data",
    "use torch.where, masks, or sizes known beforehand",
)


def _explicit(unknown: set[Target]) -> dict[Target, Callable[..., object]]:
    """Rules that torch has but does not apply by default."""
    from torch._decomp import get_decompositions

    found: dict[Target, Callable[..., object]] = get_decompositions(
        [target for target in unknown if hasattr(target, "overloadpacket")]
    )
    return {target: rule for target, rule in found.items() if target in unknown}


def _calls(exported: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in exported.graph.nodes if node.op == "call_function"]


def _is_known(node: torch.fx.Node) -> bool:
    return node.target is operator.getitem or _name(node) in OPERATORS or _is_constant(node)


_DRAWN = ("rand", "bernoulli", "dropout", "multinomial", "normal_", "rrelu", "exponential", "uniform")


def _is_constant(node: torch.fx.Node) -> bool:
    """Whether PyTorch can compute it once: it depends on nothing that is given."""
    # A random draw depends on nothing either, and must not be frozen into the graph.
    if any(word in _name(node) for word in _DRAWN) or not hasattr(node.target, "_schema"):
        return False
    return all(_is_constant(source) for source in node.all_input_nodes) if node.op == "call_function" else False


def _name(node: torch.fx.Node) -> str:
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(target if packet is None else packet).removeprefix("aten.")


def _draws(node: torch.fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = _name(node)
    if name == "scaled_dot_product_attention":
        # By position in the schema, as torch.export leaves out what has its default.
        return bool(node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0))
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return bool(node.args[-4] and node.args[-3])
    return any(word in name for word in _DRAWN)


def _path(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _where(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "the model"
    path, kind = list(stack.values())[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"module {path!r} ({kind.split('.')[-1]})" if path else f"the model ({kind.split('.')[-1]})"


def described(module: torch.nn.Module, path: str) -> str:
    """Return a module in the words of an error."""
    try:
        part = module.get_submodule(path)
    except AttributeError:
        return path
    return f"module {path!r} ({type(part).__name__})" if path else f"the model ({type(module).__name__})"


def _described(exported: torch.export.ExportedProgram, module: torch.nn.Module) -> Program:
    outputs = next(node for node in exported.graph.nodes if node.op == "output").args[0]
    changes: dict[str, torch.fx.Node] = {}
    results = []
    for spec, node in zip(exported.graph_signature.output_specs, outputs, strict=True):
        # Exported calls are functional: a buffer that the call changes comes out as one more output.
        if spec.kind.name == "BUFFER_MUTATION":
            changes[spec.target] = node
        elif spec.kind.name == "USER_OUTPUT":
            results.append(node)
        else:
            raise UnsupportedModelError(
                spec.target or "the model", "an input or parameter that the call changes", "change buffers alone"
            )
    if not results or not all(hasattr(result, "meta") for result in results):
        raise UnsupportedModelError(
            described(module, ""), "a module that gives something else than tensors", "give tensors alone"
        )
    if len({id(result) for result in results}) < len(results):
        raise UnsupportedModelError(described(module, ""), "one tensor as two outputs", "give it once")
    # Only buffers of the state dict travel: others are not saved, so nobody would set them on a device.
    state = module.state_dict()
    statistics = tuple(
        name
        for name, value in module.named_buffers()
        if name in changes and value.is_floating_point() and name in state
    )
    return Program(exported, statistics, tuple(results), _output_names(exported, len(results)), changes)


def _output_names(exported: Any, count: int) -> tuple[str, ...]:
    """Return the keys of what the call gives, if that is a dictionary or a named tuple, else numbers."""
    spec = exported.call_spec.out_spec
    names = getattr(spec.context, "_fields", spec.context) if spec is not None else None
    if isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(f"output_{at}" for at in range(count))


@dataclass
class Replay:
    """A program made again around values: by the parameters' and buffers' names, else as PyTorch has them."""

    program: Program
    values: Mapping[str, Tensor]
    context: Context
    known: dict[torch.fx.Node, object] = field(default_factory=dict)

    def run(self, inputs: Sequence[Tensor], wanted: Sequence[torch.fx.Node]) -> list[Value]:
        """Return the values of these nodes."""
        given = iter(inputs)
        specs = iter(self.program.exported.graph_signature.input_specs)
        for node in self.program.exported.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = self._placed(next(specs), given)
            elif node.op == "call_function":
                self.known[node] = self._called(node)
        return [self.context.value(self.known[node]) for node in wanted]

    def _placed(self, spec: torch.export.graph_signature.InputSpec, given: Iterator[Tensor]) -> Value | torch.Tensor:
        if spec.kind.name == "USER_INPUT":
            tensor = next(given)
            # PyTorch's indices are int64; LiteRT looks places up by int32.
            return Value(tf.cast(tensor, tf.int32) if tensor.dtype == tf.int64 else tensor)
        if spec.target in self.values:
            return Value(self.values[spec.target])
        exported = self.program.exported
        held = exported.state_dict.get(spec.target)
        return (exported.constants[spec.target] if held is None else held).detach()

    def _called(self, node: torch.fx.Node) -> object:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: self.known[source])
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = _name(node)
        # Masks and positions that depend on no input: PyTorch computes them now, and the graph holds the result.
        if not any(isinstance(value, Value) for value in _flat([args, kwargs])) and not _draws(node):
            return node.target(*args, **kwargs)
        function = OPERATORS.get(name)
        if function is None:
            raise UnsupportedModelError(
                _where(node), f"operator {name}", "use another; docs/models.md lists what can be"
            )
        # The module's path in the node's name: errors of the converter name nodes, and so the module.
        with tf.name_scope(f"{SCOPE}/{re.sub(r'[^A-Za-z0-9_.-]', '_', _path(node))}/{name}/".replace("//", "/")):
            try:
                return function(self.context, *_bound(node.target, args, kwargs))
            except UnsupportedModelError as error:
                raise error.at(_where(node)) from error
            except (ValueError, TypeError, tf.errors.InvalidArgumentError, NotImplementedError) as error:
                text = str(error).splitlines()[0][:200]
                raise UnsupportedModelError(
                    _where(node), f"operator {name} with such arguments ({text})", "use other arguments"
                ) from error


def _bound(target: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> list[object]:
    """Every argument of the operator's schema, in its order."""
    found: list[object] = []
    for place, argument in enumerate(target._schema.arguments):
        if place < len(args):
            found.append(args[place])
        else:
            found.append(kwargs.get(argument.name, argument.default_value))
    return found


def _flat(values: object) -> list[object]:
    if isinstance(values, Mapping):
        return _flat(list(values.values()))
    if isinstance(values, (list, tuple)):
        return [one for value in values for one in _flat(value)]
    return [values]


__all__ = ["Program", "Replay", "constant", "described", "trace"]

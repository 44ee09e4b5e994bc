"""The application's model, converted so that parameters can be replaced in it without TensorFlow.

The converter stores each parameter as a constant, some with permuted axes. It is run here with distinct random values
in place of the parameters, which makes every constant recognisable; where each one lies goes into the manifest.
"""

from __future__ import annotations

import itertools
from collections.abc import Set
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedgrass.authoring.conversion import converted
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.flatbuffer import holds_others, with_constant_inputs
from fedgrass.authoring.metadata import Description, described
from fedgrass.authoring.model import Model
from fedgrass.bundle import Constant, Parameters, TensorDescription
from fedgrass.engines.signatures import Signature
from fedgrass.inference import with_parameters


def convert(model: Model, parameters: Parameters, about: Description) -> tuple[bytes, tuple[Constant, ...]]:
    """Convert a model to a LiteRT model for one example with signature ``infer(x) -> y``, or several of both by name.

    Parameters
    ----------
    parameters
        As `Model.values` gives them.
    about
        What the file says of itself.

    Returns
    -------
    tuple
        The file's content with ``parameters`` in it, and where they lie.

    Raises
    ------
    UnsupportedModelError
        If a parameter cannot be found again, so that it cannot be replaced.
    """
    generator = np.random.default_rng(0)
    probes = {key: generator.uniform(0.5, 1.5, value.shape).astype(np.float32) for key, value in parameters.items()}
    apart: Set[str] = frozenset()
    while True:
        traced = _traced(model, probes, apart=apart)
        content = described(_convert(traced, _separate(probes, apart)), about)
        constants = _locate_all(content, probes)
        missing = probes.keys() - {constant.parameter for constant in constants}
        more: Set[str] = missing
        # What the converter made of parameters may stay beside them: `Dense(x + 1)` becomes the kernel's product and its sum.
        if not missing and holds_others(content, {one.offset for one in constants}, _constants(traced)):
            right = _agrees(model, with_parameters(content, constants, parameters), parameters)
            more = frozenset() if right else probes.keys()
        # Another conversion, only where this one merged something: most models need one.
        if not more - apart:
            break
        apart = apart | more
    if missing:
        raise UnsupportedModelError(
            min(missing), "a parameter that LiteRT's converter merges with others", "leave it out or freeze it"
        )
    return with_parameters(content, constants, parameters), constants


def _traced(model: Model, parameters: Parameters, *, apart: Set[str]) -> tf.types.experimental.ConcreteFunction:
    """Trace a model; parameters of ``apart`` are inputs, so that the converter cannot merge them (batch normalization)."""
    names = [part.name for part in model.outputs] or ["y"]

    def infer(*inputs: Any) -> dict[str, Any]:
        given = iter(inputs[count:])
        values = [next(given) if key in apart else tf.constant(value) for key, value in parameters.items()]
        return dict(zip(names, model.infer(inputs[:count], values), strict=True))

    # A batch of one: the application infers one example at a time.
    specs = [tf.TensorSpec([1, *part.shape], part.dtype, name=part.name) for part in model.inputs or (_x(model),)]
    count = len(specs)
    specs += [tf.TensorSpec(v.shape, tf.float32, name=name) for name, v in _separate(parameters, apart).items()]
    return tf.function(infer, input_signature=specs, autograph=False).get_concrete_function()


def _separate(parameters: Parameters, apart: Set[str]) -> Parameters:
    return {f"parameter_{i}": value for i, (key, value) in enumerate(parameters.items()) if key in apart}


def _convert(traced: tf.types.experimental.ConcreteFunction, separate: Parameters) -> bytes:
    content = converted(tf.Module(), {"infer": traced})
    return with_constant_inputs(content, separate) if separate else content


def _constants(traced: tf.types.experimental.ConcreteFunction) -> Set[bytes]:
    nodes = traced.graph.get_operations()
    return {tf.make_ndarray(node.get_attr("value")).tobytes() for node in nodes if node.type == "Const"}


def _agrees(model: Model, content: bytes, parameters: Parameters) -> bool:
    """Whether the file infers with these parameters what the model does."""
    from ai_edge_litert.interpreter import Interpreter

    traced, draw = _traced(model, parameters, apart=frozenset()), np.random.default_rng(0)
    # Token 0 is in every vocabulary.
    given = {
        part.name: draw.normal(size=(1, *part.shape)).astype(part.dtype)
        if part.dtype.startswith("float")
        else np.zeros((1, *part.shape), part.dtype)
        for part in model.inputs or (_x(model),)
    }
    expected = traced(*map(tf.constant, given.values()))
    found = Signature(Interpreter(model_content=content).get_signature_runner("infer"))(**given)
    return all(
        np.allclose(found[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max()) for name, value in expected.items()
    )


def _x(model: Model) -> TensorDescription:
    return TensorDescription(name="x", shape=tuple(model.x.shape[1:]), dtype=model.x.dtype.name)


def _locate_all(content: bytes, probes: Parameters) -> tuple[Constant, ...]:
    return tuple(itertools.chain.from_iterable(_locate(content, key, probe) for key, probe in probes.items()))


def _locate(content: bytes, name: str, probe: NDArray[np.generic]) -> list[Constant]:
    """Find every place of the file that holds ``probe``, in any order of its axes."""
    found: dict[int, Constant] = {}
    # Permutations of at most a few axes: the converter turns kernels, never more.
    for axes in itertools.permutations(range(probe.ndim)):
        needle = probe.transpose(axes).tobytes()
        offset = content.find(needle)
        while offset >= 0:
            # Axes of length 1 match in several orders; the first is as good, as the bytes are the same.
            found.setdefault(offset, Constant(parameter=name, offset=offset, axes=axes))
            offset = content.find(needle, offset + len(needle))
    return list(found.values())

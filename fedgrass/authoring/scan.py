"""A recurrence over chunks of a sequence, with its gradient, as two loops.

The loop forwards keeps what is carried into each chunk. The loop backwards runs a chunk again from there and takes its
gradients inside its body. So neither the graph nor what is kept grows with what happens within a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring import loops
from fedgrass.authoring.gradients import gradients

Tensor: TypeAlias = tf.Tensor
Tensors: TypeAlias = list[tf.Tensor]
Chunk = Callable[[Tensor, Tensors, Tensors], tuple[Tensors, Tensors]]
"""``(number [1], slices, carried) -> (carried, outputs)`` of one chunk."""


@dataclass(frozen=True)
class Scan:
    """Run a chunk for each slice of some sequences.

    Parameters
    ----------
    chunk
        Traced twice: it must make the same operations each time.
    slices
        Sequences [N, …] of N chunks.
    carried
        First values.
    outputs
        ``tf.TensorSpec`` of a chunk's outputs.
    """

    chunk: Chunk
    slices: Tensors
    carried: Tensors
    outputs: Sequence[tf.TensorSpec]

    def run(self, *, training: bool) -> tuple[Tensors, Tensors]:
        """Return what is carried after the last chunk, and the outputs [N, …]; with gradients if ``training``."""
        count = len(self.carried)
        # What is carried into each chunk is written down only if gradients will be asked for.
        forward = loops.trace(self.turns, [*self.carried, *self._blank(training)], self.slices, self._forward)
        if not training:
            found = forward.run([*self.carried, *_zeros(self._blank(training))], self.slices, forward.captured)
            return found[:count], found[count:]
        # Only what has a gradient takes part by itself: whole numbers cannot.
        invariants = [x for x in forward.captured if reaches_variable(x)]
        backward = _Backward(self, invariants)

        def run(*inputs: Tensor) -> tuple[Tensors, Callable[..., Tensors]]:
            carried, slices, given = _parts(inputs, count, len(self.slices))
            changing = [*carried, *_zeros(self._blank(training))]
            found = forward.run(changing, slices, _replaced(forward.captured, invariants, given))
            after, kept, outputs = _parts(found, count, count)

            def gradient(*upstream: Tensor) -> Tensors:
                return backward.run(slices, kept, given, upstream)

            return [*after, *outputs], gradient

        # TensorFlow's own gradient of a loop keeps lists of tensors, which LiteRT lacks.
        found = tf.custom_gradient(run)(*self.carried, *self.slices, *invariants)
        return list(found[:count]), list(found[count:])

    @property
    def turns(self) -> int:
        """Number of chunks."""
        return int(self.slices[0].shape[0])

    def _blank(self, training: bool) -> Tensors:
        """What the loop fills: what is carried into each chunk, if its gradient will be asked for, and the outputs."""
        return [_many(self.turns, x) for x in [*(self.carried if training else []), *self.outputs]]

    def _forward(self, number: Tensor, changing: Tensors, slices: Tensors) -> Tensors:
        count = len(self.carried)
        carried, filled = changing[:count], changing[count:]
        after, outputs = self.chunk(number, [loops.read(x, number) for x in slices], carried)
        values = [*carried, *outputs][-len(filled) :]
        return [*after, *(loops.write(whole, part, number) for whole, part in zip(filled, values, strict=True))]


class _Backward:
    """Gradients by what is carried, the sequences and the ``invariants``, which are among what a chunk captures."""

    def __init__(self, scan: Scan, invariants: Sequence[Tensor]) -> None:
        self._scan, self._invariants = scan, invariants
        self._sequences = [place for place, x in enumerate(scan.slices) if reaches_variable(x)]
        fixed = [*scan.slices, *(_many(scan.turns, x) for x in [*scan.carried, *scan.outputs])]
        self._loop = loops.trace(scan.turns, [*scan.carried, *self._blank()], fixed, self._body)

    def run(self, slices: Tensors, kept: Tensors, invariants: Tensors, upstream: Sequence[Tensor]) -> Tensors:
        """Return the gradients; None for a sequence behind which there is no variable.

        Parameters
        ----------
        slices
            Sequences [N, …] that the turns read, one place each.
        kept
            What was carried into each turn.
        invariants
            Tensors that every turn reads.
        upstream
            Gradients that arrive at what was carried and given.
        """
        count = len(self._scan.carried)
        found = self._loop.run(
            [*upstream[:count], *_zeros(self._blank())],
            [*slices, *kept, *upstream[count:]],
            _replaced(self._loop.captured, self._invariants, invariants),
        )
        carried, by_slice, by_invariant = _parts(found, count, len(self._sequences))
        placed = dict(zip(self._sequences, by_slice, strict=True))
        return [*carried, *(placed.get(place) for place in range(len(slices))), *by_invariant]

    def _blank(self) -> Tensors:
        specs = [self._scan.slices[place] for place in self._sequences]
        return [tf.TensorSpec(x.shape, x.dtype) for x in [*specs, *self._invariants]]

    def _body(self, number: Tensor, changing: Tensors, fixed: Tensors) -> Tensors:
        scan, count = self._scan, len(self._scan.carried)
        # Gradients run from the last turn to the first.
        place = scan.turns - 1 - number
        slices, carried, upstream = _parts([loops.read(x, place) for x in fixed], len(scan.slices), count)
        # The turn is made again instead of kept: its inner tensors would cost memory for every turn at once.
        after, outputs = scan.chunk(place, slices, carried)
        # An invariant is another tensor inside the body; its gradient is asked for by that one.
        inside = {id(x): tensor for x, tensor in tf.compat.v1.get_default_graph().captures}
        invariants = [inside.get(id(x)) for x in self._invariants]
        by = [*carried, *(slices[i] for i in self._sequences), *(x for x in invariants if x is not None)]
        later, by_slice, by_invariant = _parts(changing, count, len(self._sequences))
        found = iter(gradients([*after, *outputs], by, [*later, *upstream]))
        new_carried = [_or_zeros(next(found), x) for x in carried]
        # A slice is written once, a place in its sequence; an invariant's gradient is summed over all turns.
        new_slices = [_or_same(whole, next(found), place) for whole in by_slice]
        sums = [
            _plus(total, next(found) if x is not None else None)
            for total, x in zip(by_invariant, invariants, strict=True)
        ]
        return [*new_carried, *new_slices, *sums]


def reaches_variable(tensor: Tensor) -> bool:
    """Whether a variable, or an argument of the loop around, is behind a tensor by way of numbers that have gradients."""
    pending, seen = [tensor], set()
    while pending:
        # Integers carry no gradient, so nothing behind them counts.
        x = pending.pop()
        if id(x.op) in seen or not x.dtype.is_floating:
            continue
        seen.add(id(x.op))
        if x.op.type == "ReadVariableOp" or (x.op.type == "Placeholder" and loops.is_body(x.graph)):
            return True
        pending.extend(x.op.inputs)
    return False


def _parts(values: Sequence[Tensor], first: int, second: int) -> tuple[Tensors, Tensors, Tensors]:
    return list(values[:first]), list(values[first : first + second]), list(values[first + second :])


def _replaced(captured: Sequence[Tensor], known: Sequence[Tensor], given: Sequence[Tensor]) -> Tensors:
    """``captured`` with what is given instead of those that are known."""
    instead = {id(have): value for have, value in zip(known, given, strict=True)}
    return [instead.get(id(x), x) for x in captured]


def _many(turns: int, like: tf.TensorSpec) -> tf.TensorSpec:
    return tf.TensorSpec([turns, *like.shape], like.dtype)


def _zeros(specs: Sequence[tf.TensorSpec]) -> Tensors:
    return [tf.zeros(spec.shape, spec.dtype) for spec in specs]


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return tf.zeros(like.shape, like.dtype) if gradient is None else gradient


def _or_same(whole: Tensor, gradient: Tensor | None, place: Tensor) -> Tensor:
    return whole if gradient is None else loops.write(whole, gradient, place)


def _plus(total: Tensor, gradient: Tensor | None) -> Tensor:
    return total if gradient is None else total + gradient

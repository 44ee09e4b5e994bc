"""Noise of a tree: rounds share it, so that the noise of what they have learnt together is that of a few sums.

Rounds are leaves, numbered from 1; a node stands for 2^level rounds, and has noise of its own. What the first t rounds have
learnt is the sum of the nodes that t is made of as a binary number (Honaker, "Efficient use of differentially private binary
trees", 2015; Kairouz et al., ICML 2021, https://arxiv.org/abs/2103.00039). A round releases what it adds to that: its own sum,
the noise of the node that ends with it, less the noise of the nodes which that one takes the place of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

Node = tuple[int, int]
"""Level, and the last round that it stands for."""


def nodes_of(step: int) -> list[Node]:
    """Return the nodes that make up the first ``step`` rounds.

    Examples
    --------
    >>> nodes_of(6)
    [(2, 4), (1, 6)]
    """
    levels = range(step.bit_length() - 1, -1, -1)
    return [(level, step >> level << level) for level in levels if step >> level & 1]


def changes(step: int) -> Iterator[tuple[Node, int]]:
    """Yield the nodes whose noise a round adds (1) or takes back (-1).

    Examples
    --------
    >>> list(changes(4))
    [((2, 4), 1), ((1, 2), -1), ((0, 3), -1)]
    """
    now, before = nodes_of(step), nodes_of(step - 1)
    yield from ((node, 1) for node in now if node not in before)
    yield from ((node, -1) for node in before if node not in now)


def node_seed(seed: bytes, node: Node) -> bytes:
    """Return the seed of a node's noise, which follows from the tree's.

    Parameters
    ----------
    seed
        The tree's, secret.
    node
        The node.
    """
    level, last = node
    return hashlib.sha256(b"fedgrass tree 1" + seed + bytes([level]) + last.to_bytes(8, "big")).digest()

"""Einstein's notation in operators that LiteRT has is NumPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from fedgrass.authoring.einsum import einsum  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402

EQUATIONS = """
    BTNH,BSNH->BNTS BNTS,BSNH->BTNH abc,cde->abde abcd,cde->abe ij,jk ij,jk->ki i,j->ij ij,ij-> ij->j ij->ji ij-> ba
    abc,abc->ab abc,b->ac ab,bc,cd->ad ab,ac,ad->bcd abcde,aebf->adbcf ij,ij->ij a,ab->b ab,c->c a,->a
"""


@pytest.mark.parametrize("equation", EQUATIONS.split())
def test_every_kind_of_sum_of_products_is_numpys(equation: str) -> None:
    generator, labels = np.random.default_rng(0), sorted(set(equation) - set(",->"))
    sizes = {label: 2 + place for place, label in enumerate(labels)}
    terms = equation.partition("->")[0].split(",")
    operands = [generator.normal(size=[sizes[label] for label in term]).astype(np.float32) for term in terms]
    expected = np.einsum(equation, *operands)
    terms_of_each = math.prod(sizes.values()) / max(expected.size, 1)
    found = einsum(equation, *map(tf.constant, operands)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * terms_of_each)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("...ij,...jk->...ik", [(2, 3, 4, 5), (2, 3, 5, 6)]),
        ("...ij,jk", [(2, 3, 4, 5), (5, 6)]),
        ("a...,...a->...", [(2, 3, 4), (3, 4, 2)]),
        ("...i,...i->...", [(2, 3, 4), (3, 4)]),
        ("...ij,...jk->...ik", [(1, 3, 4, 5), (2, 1, 5, 6)]),
    ],
)
def test_axes_without_letters_are_numpys(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes]
    np.testing.assert_allclose(
        einsum(equation, *map(tf.constant, operands)).numpy(), np.einsum(equation, *operands), atol=1e-5
    )


def test_a_diagonal_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match=r"diagonal.*identity"):
        einsum("ii->i", tf.eye(3))

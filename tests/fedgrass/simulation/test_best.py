"""The figures that a simulation's gate holds a new model against."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from fedgrass.cloud.aggregator.release_gate import raised
from fedgrass.protocol.report import Evaluation
from fedgrass.simulation import best
from fedgrass.simulation.best import BestSoFar


def figures(rng: random.Random) -> Evaluation:
    # Few different values, so that equal ones occur.
    return Evaluation(
        loss=rng.randrange(9) / 8,
        accuracy=rng.choice([None, rng.randrange(9) / 8]),
        examples=8,
        metrics={name: rng.randrange(9) / 8 for name in ("auc", "mae", "f1") if rng.random() < 0.8},
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_rounds_told_piece_by_piece_is_that_of_all_of_them(seed: int) -> None:
    rng = random.Random(seed)
    rounds: list[Any] = [SimpleNamespace(before=rng.choice([None, figures(rng)])) for _ in range(30)]
    # The first piece is what an earlier run had done; a piece may be empty, as where a round has no model.
    ends = sorted(rng.choices(range(31), k=12))
    found, forgetting = BestSoFar(forgets=False), BestSoFar(forgets=True)
    for end in ends:
        standing = figures(rng)
        expected = alone = raised(None, standing, best._KEPT_BACK)
        for one in rounds[:end]:
            if one.before is not None:
                expected = raised(expected, one.before, best._KEPT_BACK)
        assert found.of(standing, rounds[:end]) == expected
        assert forgetting.of(standing, rounds[:end]) == alone

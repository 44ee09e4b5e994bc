"""The soak tells a process that grows from one that does not."""

from __future__ import annotations

import pytest

from tests.soak.lives import JUDGED_ROUNDS, WARM_UP_ROUNDS, Sample, Samples, life_of


def samples(rounds: int, *, mb_per_round: float = 0.0, sockets_per_round: float = 0.0, pid: int = 1) -> Samples:
    return [
        (n, Sample(pid, 80 + mb_per_round * n + n % 2, 6, 3 + int(sockets_per_round * n), 5)) for n in range(rounds)
    ]


def test_a_process_that_holds_the_same_is_flat_although_its_memory_goes_up_and_down() -> None:
    life = life_of(samples(200))
    assert (life.verdict, life.lives, life.rounds) == ("flat", 1, 180)
    assert life.mb_per_100_rounds == pytest.approx(0, abs=0.1)
    assert life.spread_mb == pytest.approx(0.5, abs=0.01)


def test_a_process_that_gains_a_tenth_of_a_megabyte_a_round_grows() -> None:
    life = life_of(samples(200, mb_per_round=0.1))
    assert life.mb_per_100_rounds == pytest.approx(10, abs=0.1)
    assert life.verdict == "grows"


def test_a_process_that_loses_a_socket_now_and_then_grows() -> None:
    assert life_of(samples(200, sockets_per_round=0.02)).verdict == "grows"


def test_what_fills_in_the_first_rounds_is_no_growth() -> None:
    filling = [(n, Sample(1, 40 + 2 * n, 6, 3, 5)) for n in range(WARM_UP_ROUNDS)]
    assert life_of(filling + samples(200)[WARM_UP_ROUNDS:]).verdict == "flat"


def test_the_longest_life_is_judged_and_none_that_is_short() -> None:
    killed = samples(WARM_UP_ROUNDS + JUDGED_ROUNDS, pid=1) + samples(10, mb_per_round=5, pid=2)
    assert (life_of(killed).verdict, life_of(killed).lives) == ("flat", 2)
    assert life_of(samples(WARM_UP_ROUNDS + JUDGED_ROUNDS - 1)).verdict == "too short"
    assert life_of(samples(1)).verdict == "too short"

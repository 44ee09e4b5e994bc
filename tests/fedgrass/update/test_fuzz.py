from __future__ import annotations

from tests.fuzz_updates import fuzz


def test_mutated_updates_are_accepted_or_refused_with_a_reason_in_bounded_time_and_memory() -> None:
    found = fuzz(1500, seed=7)
    assert found["memory_grew_mb"] < 50
    assert len(found["verdicts"]) >= 5

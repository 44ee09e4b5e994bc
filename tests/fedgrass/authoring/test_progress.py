"""A long export says where it is; a short one says nothing."""

from __future__ import annotations

import pytest

from fedgrass.authoring import progress


def test_a_place_is_told_after_a_silence_and_not_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [100.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress.at("nowhere")
    with progress.reported(told.append):
        for seconds, where in ((5, "first"), (6, "second"), (1, "third"), (12, "fourth")):
            now[0] += seconds
            progress.at(where)
    progress.at("after")
    assert told == ["11 s: second", "24 s: fourth"]

"""Settings are strict: a misspelt or impossible one is named before a round starts."""

from __future__ import annotations

from typing import Any

import pytest

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import FleetSettings


def test_overrides_are_laid_over_key_by_key() -> None:
    base = FleetSettings().overridden({"fit": {"epochs": 3, "learning_rate": 0.5}})
    changed = base.overridden({"rounds": 5, "fit": {"epochs": 4}})
    assert (changed.rounds, changed.fit.epochs, changed.fit.learning_rate) == (5, 4, 0.5)


def test_no_override_changes_nothing() -> None:
    assert FleetSettings().overridden({}) == FleetSettings()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 3}, "epochs"),
        ({"fit": {"epoch": 3}}, "fit.epoch"),
        ({"fit": {"epochs": 0}}, "fit.epochs"),
        ({"fit": 3}, "fit"),
        ({"quorum": 1.5}, "quorum"),
        ({"min_updates": 5, "min_devices": 2}, "min_updates"),
    ],
)
def test_what_is_unknown_or_impossible_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        FleetSettings().overridden(changes)

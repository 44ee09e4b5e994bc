"""Settings are strict: a misspelt or impossible one is named before a round starts."""

from __future__ import annotations

from typing import Any

import pytest

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.strategy_settings import Strategy
from fedgrass.strategies.dp_ftrl import DpFtrl


def test_overrides_are_laid_over_key_by_key() -> None:
    base = FleetSettings().overridden({"fit": {"epochs": 3, "learning_rate": 0.5}})
    changed = base.overridden({"rounds": 5, "fit": {"epochs": 4}})
    assert (changed.rounds, changed.fit.epochs, changed.fit.learning_rate) == (5, 4, 0.5)


class OwnTree(DpFtrl):
    """A strategy of somebody's own, whose rounds share a tree of noise."""


def test_a_strategy_by_its_class_whose_rounds_share_noise_is_refused_where_it_is_made() -> None:
    asked = Strategy(name=f"{__name__}:OwnTree", options={"rounds": 8})
    assert asked.tree == 0  # settings import nobody's module
    with pytest.raises(ConfigurationError, match=r"OwnTree: its rounds share a tree of noise \(8\).*use dp_ftrl"):
        asked.made()
    assert Strategy(name="dp_ftrl", options={"rounds": 8}).made().tree == 8


def test_no_override_changes_nothing() -> None:
    assert FleetSettings().overridden({}) == FleetSettings()


@pytest.mark.parametrize(
    ("given", "back"),
    [
        ({"cohort": {"where": {"site": ["north"]}, "size": 20}}, {"cohort": {}}),
        ({"cohort": {"where": {"site": ["north"]}}}, {"cohort": {"where": {}}}),
        ({"until": {"target": 0.9, "patience": 3}}, {"until": {}}),
        ({"fit": {"config": {"lr": 0.1}}}, {"fit": {"config": {}}}),
        ({"strategy": {"name": "trimmed_mean", "options": {"attackers": 0.3}}}, {"strategy": {}}),
    ],
)
def test_an_empty_object_takes_back_what_is_below_it(given: dict[str, Any], back: dict[str, Any]) -> None:
    changed = FleetSettings().overridden({"rounds": 7}).overridden(given)
    assert changed != FleetSettings().overridden({"rounds": 7})
    assert changed.overridden(back) == FleetSettings().overridden({"rounds": 7})


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


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("flwr.server.strategy:FedXgbBagging", {}, "file of trees"),
        ("flwr.serverapp.strategy:DifferentialPrivacyClientSideFixedClipping", {}, "use privacy.mode"),
        ("flower:flwr.server.strategy:QFedAvg", {}, "weighs by what its evaluate_fn says.*on a fleet nothing"),
        (
            "flower:mine.strategies:Own",
            {"evaluate_fn": "mine:evaluate"},
            "evaluate_fn has no part.*APP --fleet FLEET` honours",
        ),
        ("flwr.serverapp.strategy:FedAvg", {"fraction_train": 0.5}, "fraction_train has no part.*use fraction"),
        (
            "flwr.server.strategy:DifferentialPrivacyServerSideFixedClipping",
            {"strategy": {"name": "flwr.server.strategy:FedAvg", "options": {"on_fit_config_fn": "mine:config"}}},
            "on_fit_config_fn has no part.*use fit.config",
        ),
        ("flwr.server.strategy:FaultTolerantFedAvg", {"strategy": "flwr.server.strategy:FedAvgAndroid"}, "Android"),
    ],
)
def test_what_a_strategy_of_flowers_would_lose_is_refused_where_flower_is_not_installed(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        FleetSettings().overridden({"strategy": {"name": name, "options": options}})


def test_arguments_that_say_nothing_are_no_fault_and_another_class_may_call_its_own_as_it_likes() -> None:
    taken = {"fraction_fit": 1.0, "min_fit_clients": 2, "evaluate_fn": None, "accept_failures": False}
    for name, options in (("flwr.server.strategy:FedAvg", taken), ("mine:Strategy", {"evaluate_fn": "mine:evaluate"})):
        assert FleetSettings().overridden({"strategy": {"name": name, "options": options}}).strategy.known() is None

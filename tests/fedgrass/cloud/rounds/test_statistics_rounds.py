"""Rounds of statistics: what is announced, what is counted, and with which settings there is none."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from fedgrass.cloud.rounds.abort_round import ExecutionEnd, execution_ended
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import ConfigurationError, RoundRefusedError
from fedgrass.protocol.exposure import against_round
from fedgrass.protocol.fleet_state import STATE_KEY
from fedgrass.protocol.message import MAX_MESSAGE_BYTES
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import ProfileReference, profile_key
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_state
from fedgrass.protocol.writes import change, update_item
from tests.fedgrass.cloud.rounds.harness import EXECUTION, FLEET, Fleet


def announced(fleet: Fleet) -> Announcement:
    return Announcement.decode(fleet.announcement or b"")


def keep(fleet: Fleet, **changes: Any) -> ProfileReference:
    state = load_state(fleet.rounds, FLEET)
    assert state.model is not None
    fields = {"round": 1, "key": profile_key(FLEET, 1), "sha256": "a" * 64, "bytes": 9}
    kept = ProfileReference(**{**fields, "graph_sha256": state.model.graph_sha256, **changes})
    put = change(put={"profile": kept.model_dump(mode="json")})
    update_item(fleet.rounds, Key={"fleet": FLEET, "key": STATE_KEY}, **put)
    return kept


def test_devices_are_told_what_to_measure_and_files_are_counted(fleet: Fleet) -> None:
    fleet.open(task="statistics", statistics={"bins": 32})
    found = announced(fleet)
    assert found.task == "statistics"
    assert found.statistics is not None
    assert (found.statistics.bins, found.statistics.profile) == (32, None)
    assert len(fleet.announcement or b"") <= MAX_MESSAGE_BYTES
    for thing in "abc":
        assert record_update(fleet.services, fleet.update(thing)) == "counted"
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    [job] = fleet.sagemaker.jobs.values()
    assert job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 1


def test_the_newest_profile_of_this_graph_gives_the_bounds(fleet: Fleet) -> None:
    kept = keep(fleet)
    fleet.open(task="statistics")
    assert announced(fleet).statistics.profile == kept  # type: ignore[union-attr]


@pytest.mark.parametrize(("kept", "wanted"), [({"graph_sha256": "b" * 64}, {}), ({}, {"low": -1.0, "high": 1.0})])
def test_another_graphs_profile_or_the_operators_bounds_leave_it_out(
    fleet: Fleet, kept: dict[str, Any], wanted: dict[str, Any]
) -> None:
    keep(fleet, **kept)
    fleet.open(task="statistics", statistics=wanted)
    assert announced(fleet).statistics.profile is None  # type: ignore[union-attr]


def test_a_training_round_says_nothing_of_statistics(fleet: Fleet) -> None:
    keep(fleet)
    fleet.open()
    assert announced(fleet).statistics is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"update": {"figures": "left_out"}}, "update.figures"),
        ({"privacy": {"mode": "central", "adaptive_clip": {}}}, "privacy.adaptive_clip"),
        (
            {"privacy": {"mode": "central"}, "strategy": {"name": "dp_ftrl", "options": {"rounds": 4}}},
            "strategy dp_ftrl",
        ),
    ],
)
def test_settings_that_statistics_do_not_fit_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        FleetSettings().overridden({**settings, "task": "statistics"})


SECURE = {"helpers": [{"name": name, "key": base64.b64encode(name.encode() * 32).decode()} for name in "ab"]}
PRIVACY = {"mode": "local", "noise_multiplier": 2.0, "epsilon_budget": 8.0}
NOISY: dict[str, Any] = {"task": "statistics", "privacy": PRIVACY}


def test_with_noise_devices_tell_bounded_sums_and_the_round_is_charged_as_any(fleet: Fleet) -> None:
    with pytest.raises(RoundRefusedError, match=r"statistics\.low"):
        fleet.open(**NOISY)
    bounded = {**NOISY, "statistics": {"low": 0.0, "high": 1.0, "max_rows": 50}}
    record = fleet.open(**bounded)
    told = announced(fleet)
    assert told.statistics is not None
    assert told.statistics.max_rows == 50
    assert (told.update.noise_multiplier, told.update.clip_norm, told.update.codec) == (2.0, 1.0, "float32")
    assert told.update.hides_figures
    trained = record.privacy
    assert trained is not None
    assert trained.rounds == 1
    execution_ended(fleet.services, ExecutionEnd(executionArn=record.execution, status="ABORTED"))
    fleet.step_functions.statuses[EXECUTION + "2"] = "RUNNING"
    with pytest.raises(RoundRefusedError, match="budget"):
        fleet.open(execution=EXECUTION + "2", **{**bounded, "privacy": {**PRIVACY, "epsilon_budget": 0.1}})


@pytest.mark.parametrize("changes", [{"privacy": {"mode": "central"}}, {"secure": SECURE}])
def test_with_noise_or_masks_elsewhere_no_figure_goes_beside_the_sums(changes: dict[str, Any]) -> None:
    settings = FleetSettings().overridden({"task": "statistics", **changes})
    assert settings.announced_update.hides_figures
    assert settings.promised_noise == (1.0 if "privacy" in changes else None)
    assert not FleetSettings().overridden({"task": "statistics"}).announced_update.hides_figures


def test_a_profile_gives_the_bounds_of_a_round_with_noise(fleet: Fleet) -> None:
    kept = keep(fleet)
    fleet.open(**NOISY)
    found = announced(fleet).statistics
    assert found is not None
    assert (found.profile, found.max_rows) == (kept, 1000)


@pytest.mark.parametrize("wanted", [{"low": 1.0}, {"high": 1.0}, {"low": 1.0, "high": 1.0}, {"bins": 1}])
def test_bounds_that_are_none_are_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="statistics"):
        FleetSettings().overridden({"statistics": wanted})


def test_an_owner_who_asks_for_noise_or_masks_is_not_measured(fleet: Fleet) -> None:
    fleet.open(task="statistics")
    asked = announced(fleet)
    assert "exact figures" in against_round(asked, least=1.0)
    assert "secureHelpers" in against_round(asked, least=0.0, helpers=["key"])
    assert against_round(asked, least=0.0) == ""

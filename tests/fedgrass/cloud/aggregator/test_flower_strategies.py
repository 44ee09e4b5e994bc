"""Flower's own strategies in our aggregation, against Flower's own loop on the same updates, over rounds; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.flower_strategies import (
    LEGACY,
    MESSAGES,
    PEERS,
    REFUSED,
    Fleet,
    Peer,
    compared,
    deltas,
    refusal,
    table,
)
from fedgrass.errors import AggregationError, ConfigurationError
from fedgrass.strategies import strategy_named
from tests.fixtures.places import ROOT

flwr = pytest.importorskip("flwr", reason="flwr is not installed: scripts/torch_tests tries it")

from flwr.app import ArrayRecord, Message, MetricRecord  # noqa: E402
from flwr.server.strategy import FedAdam, FedAvg, Strategy  # noqa: E402
from flwr.serverapp.strategy import FedAvg as MessageFedAvg  # noqa: E402


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_strategy_of_flowers_gives_what_it_gives_in_flower(peer: Peer) -> None:
    adapter, ours = compared(peer)
    assert adapter <= 1e-6
    if ours is not None:
        assert (ours <= 1e-6) != bool(peer.why), "ours of the same idea is equal, or it is said why not"


def test_every_strategy_of_flowers_is_compared_or_refused() -> None:
    for tree in (LEGACY, MESSAGES):
        module = __import__(tree, fromlist=["__all__"])
        kinds = set(module.__all__) - {"Strategy", "Result", "FedOpt"}
        assert kinds == {peer.kind for peer in PEERS if peer.tree == tree} | set(REFUSED[tree])
        assert all(refusal(tree, kind) for kind in REFUSED[tree])


def test_the_documents_table_is_what_is_found() -> None:
    lines: list[str] = []
    table(lines.append)
    assert "\n".join(lines) in (ROOT / "docs/strategies.md").read_text()


class Bolder(FedAdam):  # type: ignore[misc]
    """A user's own, which does not say what it starts from."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), (server_round, len(results), len(failures))]
        return super().aggregate_fit(server_round, results, failures)


def test_a_subclass_of_fedadam_starts_from_the_base(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, f"flower:{__name__}:Bolder", {"eta": 0.01}, start=5.0)
    for _ in range(3):
        fleet.round(np.full((3, 40), 0.01, np.float32))
    assert (np.abs(fleet.model - 5.0) < 0.1).all()
    found = fleet.round(np.full((3, 40), 0.01, np.float32), ("gone",))
    assert (
        found.state["flower.tree"].tobytes().decode().count("plain") >= 12
    )  # four rounds of (round, results, failures)
    assert '[["plain", 4], ["plain", 3], ["plain", 1]]' in found.state["flower.tree"].tobytes().decode()


def test_a_changed_option_holds_from_the_next_round_on(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "flower:flwr.server.strategy:FedAdam", {"eta": 0.1})
    fleet.round(deltas(1))
    before = fleet.model
    fleet.options = {"eta": 0.0}
    fleet.round(deltas(2))
    np.testing.assert_array_equal(fleet.model, before)


class Scheduling(FedAvg):  # type: ignore[misc]
    def configure_fit(self, *arguments: Any, **named: Any) -> Any:
        return super().configure_fit(*arguments, **named)


class Evaluating(MessageFedAvg):  # type: ignore[misc]
    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_evaluate(server_round, replies)


class Direct(Strategy):  # type: ignore[misc]
    """All that Flower asks of a strategy, and half of the mean."""

    def initialize_parameters(self, client_manager: Any) -> Any:
        return None

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        self.started_from = parameters
        return []

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays

        found = [parameters_to_ndarrays(fit.parameters) for _, fit in results]
        old = parameters_to_ndarrays(self.started_from)
        return ndarrays_to_parameters(
            [o + (np.mean(new, axis=0) - o) / 2 for o, *new in zip(old, *found, strict=True)]
        ), {}

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return []

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
        return None, {}

    def evaluate(self, server_round: int, parameters: Any) -> Any:
        return None


def test_a_strategy_that_is_written_from_nothing_runs(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, f"flower:{__name__}:Direct", {})
    fleet.round(deltas(1))
    np.testing.assert_allclose(fleet.model, deltas(1).astype(np.float64).mean(axis=0) / 2, rtol=1e-5, atol=1e-6)


class Hoarding(FedAvg):  # type: ignore[misc]
    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.door: Callable[[], int] = lambda: 1
        return super().aggregate_fit(server_round, results, failures)


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match="'door' cannot be kept"):
        Fleet(tmp_path, f"flower:{__name__}:Hoarding", {}).round(deltas(1))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("flwr.server.strategy:FedAvg", {"fraction_fit": 0.5}, "fraction_fit .* use fraction"),
        ("flwr.server.strategy:FedAdam", {"min_available_clients": 9}, "min_available_clients .* use min_devices"),
        ("flwr.server.strategy:FedAvg", {"on_fit_config_fn": "a:b"}, "on_fit_config_fn .* use fit.config"),
        ("flwr.serverapp.strategy:FedAvg", {"min_train_nodes": 3}, "min_train_nodes"),
        ("flwr.serverapp.strategy:FedAvg", {"fraction": 3}, "cannot be made"),
        ("flwr.server.strategy:QFedAvg", {}, "evaluate_fn"),
        ("flwr.server.strategy:FedXgbBagging", {}, "trees"),
        ("flwr.serverapp.strategy:FedXgbCyclic", {}, "trees"),
        ("flwr.server.strategy:DPFedAvgFixed", {}, "bound in each round"),
        ("flwr.serverapp.strategy:DifferentialPrivacyClientSideFixedClipping", {}, "bound in each round"),
        ("flwr.server.strategy:FedAvg", {"evaluate_fn": "a:b"}, "evaluate_fn"),
        (f"{__name__}:Scheduling", {}, r"configure_fit\(\) has no part"),
        (f"{__name__}:Evaluating", {}, r"aggregate_evaluate\(\) has no part"),
    ],
)
def test_what_a_fleet_would_ignore_is_refused_by_name_before_a_round(name: str, options: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        strategy_named(f"flower:{name}", **options)


def test_arguments_as_flower_has_them_by_default_are_no_fault() -> None:
    strategy_named("flower:flwr.server.strategy:FedAvg", fraction_fit=1.0, min_fit_clients=2, accept_failures=False)


def test_failures_reach_a_strategy_that_minds_them(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "flower:flwr.server.strategy:FedAvg", {"accept_failures": False})
    fleet.round(deltas(1))
    declined = fleet.round(deltas(2), ("device t99: out of memory",))
    assert declined.parameters is None
    assert "nothing of 11 updates and 1 failures" in declined.problem
    assert not declined.not_finite


class Careless(MessageFedAvg):  # type: ignore[misc]
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        good: list[Message] = [one for one in replies if not one.has_error()]
        record: ArrayRecord = good[0].content["arrays"]
        assert isinstance(good[0].content["metrics"], MetricRecord)
        return ArrayRecord(list(record.to_numpy_ndarrays())[:1]), None


def test_an_error_of_a_strategys_own_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match=r"Careless.*failed on 11 updates .KeyError"):
        Fleet(tmp_path, f"flower:{__name__}:Careless", {}).round(deltas(1))

"""Strategies' objects as a fleet's settings, what an app asks of a round, and what has no counterpart, by its name."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: scripts/torch_tests tries it")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import FitIns, ndarrays_to_parameters
from flwr.server import strategy as legacy
from flwr.serverapp import strategy as newer

from benchmarks.flower_strategies import PEERS, REFUSED, Peer
from fedgrass.cloud.flower.asked import Answers, Asked, Reported
from fedgrass.cloud.flower.messages import MessageApp
from fedgrass.cloud.flower.nodes import FleetGrid, FleetManager
from fedgrass.cloud.flower.results import ResultApp
from fedgrass.cloud.flower.translated import remembered, translated
from fedgrass.engines.flower_node import Node
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import FleetSettings
from fedgrass.strategies import strategy_named
from fedgrass.strategies.arithmetic import flower_options

THINGS = ("a", "b", "c")
MODEL = {"0000": np.zeros(2, np.float32)}
EXACT = {"fedavg", "fedavgm", "fedadagrad", "fedyogi", "median"}


def made(peer: Peer) -> Any:
    """The strategy as an app makes it."""
    kind = getattr(importlib.import_module(peer.tree), peer.kind)
    given = dict(peer.options)
    if peer.is_legacy:
        given["initial_parameters"] = ndarrays_to_parameters(list(MODEL.values()))
    if peer.kind.startswith("Differential"):
        given.pop("initial_parameters", None)
        tree = importlib.import_module(peer.tree)
        given["strategy"] = tree.FedAvg()
    return kind(**given)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_strategy_becomes_settings_that_make_the_same(peer: Peer) -> None:
    with remembered():
        strategy = made(peer)
    found = translated(strategy)
    settings = FleetSettings().overridden({"strategy": found.setting}).strategy
    if found.name in EXACT:
        assert peer.ours in {found.name, "fedprox"}
        assert not peer.why
        known = settings.known()
        assert known is not None
        for name, value in peer.ours_options.items():
            assert getattr(known.options, name) == pytest.approx(value)
        return
    assert found.name == f"flower:{peer.name}"
    assert found.needs == "Flower"
    # What is left out is as Flower has it by default.
    defaults = flower_options.arguments(getattr(importlib.import_module(peer.tree), peer.kind))
    for name, value in peer.options.items():
        assert found.options.get(name, defaults.get(name)) == value
    strategy_named(found.name, **found.options)


@pytest.mark.parametrize(("tree", "kind"), [(tree, kind) for tree, kinds in REFUSED.items() for kind in kinds[:4]])
def test_what_has_no_counterpart_is_refused_by_name(tree: str, kind: str) -> None:
    cls = getattr(importlib.import_module(tree), kind)
    with pytest.raises(ConfigurationError, match=kind):
        translated(cls.__new__(cls))


class Saving(newer.FedAvg):  # type: ignore[misc]
    """An app's own aggregation: only where its code is."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, replies)


class Watching(newer.FedAdam):  # type: ignore[misc]
    """An app's own, whose aggregation is Flower's."""

    def __init__(self, patience: int) -> None:
        super().__init__(eta=0.25)
        self.patience = patience

    def summary(self) -> None:
        """Say nothing."""


def test_an_own_class_is_what_aggregates_in_it() -> None:
    with remembered():
        strategy = Watching(3)
    found = translated(strategy)
    assert found.name == "flower:flwr.serverapp.strategy:FedAdam"
    assert found.options == {"eta": 0.25}
    own = translated(Saving())
    assert own.name == f"flower:{__name__}:Saving"
    assert __name__ in own.needs
    with remembered():
        strict = legacy.FedAvg(accept_failures=False)
    minds = translated(strict)
    assert (minds.name, minds.options) == ("flower:flwr.server.strategy:FedAvg", {"accept_failures": False})
    with pytest.raises(ConfigurationError, match="weighted_by_key is 'steps'"):
        translated(newer.FedAvg(weighted_by_key="steps"))


def message_app(strategy: Any, **given: Any) -> MessageApp:
    arrays = ArrayRecord({name: Array(value) for name, value in MODEL.items()})
    return MessageApp(strategy, FleetGrid(lambda: THINGS), arrays, 2, 60.0, given, given, None)


def test_a_strategy_says_how_many_are_asked_and_with_what_and_is_told_what_they_said() -> None:
    def total(contents: list[RecordDict], weight: str) -> MetricRecord:
        return MetricRecord({"total": sum(one["metrics"]["loss"] * one["metrics"][weight] for one in contents)})

    strategy = newer.FedAvg(fraction_train=0.5, min_train_nodes=1, fraction_evaluate=0.0, train_metrics_aggr_fn=total)
    app = message_app(strategy, lr=0.5, name="w")
    assert app.train(3, MODEL) == Asked(1, {"lr": 0.5, "name": "w"})
    assert app.evaluate(3, MODEL) is None
    answers = Answers(
        [Reported("a", 2, {"loss": 0.5, "only": 1.0}), Reported("b", 4, {"loss": 1.0})], ["c failed: no disk"]
    )
    assert app.trained(3, answers) == {"total": 5.0}
    assert app.evaluated(3, answers) == {"loss": pytest.approx(5 / 6)}
    prox = message_app(newer.FedProx(proximal_mu=0.25)).train(1, MODEL)
    assert prox == Asked(3, {"proximal-mu": 0.25})


class Uneven(newer.FedAvg):  # type: ignore[misc]
    """Configures each participant for itself."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        for node in grid.get_node_ids():
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"node": node & 0xFFFF})})
            yield Message(content, dst_node_id=node, message_type="train")


class Scaled(newer.FedAvg):  # type: ignore[misc]
    """Sends something else than the model."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        return super().configure_train(server_round, ArrayRecord([np.ones(2, np.float32)]), config, grid)


def test_what_a_round_cannot_say_is_refused_before_it_opens() -> None:
    with pytest.raises(ConfigurationError, match="Uneven: configures devices differently"):
        message_app(Uneven()).train(1, MODEL)
    with pytest.raises(ConfigurationError, match="Scaled: sends devices other arrays"):
        message_app(Scaled()).train(1, MODEL)
    query = Message(RecordDict(), dst_node_id=Node("a").number, message_type="query")
    with pytest.raises(ConfigurationError, match="of kind query"):
        FleetGrid(lambda: THINGS).send_and_receive([query])


def test_a_strategy_from_before_messages_is_asked_as_flowers_server_asks_it() -> None:
    strategy = legacy.FedAvg(
        fraction_fit=0.7,
        initial_parameters=ndarrays_to_parameters(list(MODEL.values())),
        on_fit_config_fn=lambda number: {"lr": 0.5 / number},
        on_evaluate_config_fn=lambda number: {"steps": number},
        evaluate_fn=lambda number, arrays, config: (0.25, {"number": number, "size": len(arrays[0])}),
        fit_metrics_aggregation_fn=lambda metrics: {"all": sum(count for count, _ in metrics)},
    )
    app = ResultApp(strategy, FleetManager(lambda: THINGS), 2, None)
    np.testing.assert_array_equal(app.initial()["0000"], MODEL["0000"])
    assert app.train(2, MODEL) == Asked(2, {"lr": 0.25})
    assert app.evaluate(2, MODEL) == Asked(3, {"steps": 2})
    assert app.judged(2, MODEL) == {"loss": 0.25, "number": 2, "size": 2}
    answers = Answers([Reported("a", 1, {"loss": 1.0}), Reported("b", 3, {"loss": 2.0})])
    assert app.trained(2, answers) == {"all": 4}
    assert app.evaluated(2, answers) == {"loss": 1.75}
    with pytest.raises(ConfigurationError, match="has no initial_parameters"):
        ResultApp(legacy.FedAvg(), FleetManager(lambda: THINGS), 1, None).initial()


class PerClient(legacy.FedAvg):  # type: ignore[misc]
    """Configures each client for itself."""

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return [(one, FitIns(parameters, {"cid": cid})) for cid, one in client_manager.all().items()]


def test_clients_that_are_configured_one_by_one_have_no_counterpart() -> None:
    with pytest.raises(ConfigurationError, match="PerClient: configures devices differently"):
        ResultApp(PerClient(), FleetManager(lambda: THINGS), 1, None).train(1, MODEL)

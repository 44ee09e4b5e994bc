"""Flower apps as their users write them, run by the engine: contexts, configurations, state, mods, and what is said of faults."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.data import DataSettings, load
from fedgrass.edge.admission import judge
from fedgrass.engines.base import FitSettings
from fedgrass.engines.flower import FlowerEngine
from fedgrass.engines.flower_node import Node, StateFiles, join
from fedgrass.engines.registry import open_engine
from fedgrass.errors import EngineError, NoFiguresError
from fedgrass.fitting import fit
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, Upload
from fedgrass.protocol.settings import FleetSettings

pytest.importorskip("flwr", reason="flwr is not installed: scripts/torch_tests tries it")

PROJECT = Path(__file__).parent / "flower_project"
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
CONFIG = {"whole": 3, "part": 3.0, "on": True, "word": "w", "many": [1, 2]}


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROJECT))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    scalar = TensorDescription(name="x", shape=(1,), dtype="float32")
    return new_bundle(
        tmp_path / "bundle",
        NewModel(
            engine="flower",
            name="counting",
            parameters={"layer.weight": np.zeros((2, 3), np.float32), "layer.bias": np.zeros((), np.float32)},
            x=scalar,
            y=scalar,
            output=scalar,
            loss="mean_squared_error",
            batch_size=1,
        ),
    )


def opened(bundle: Bundle, name: str, node: Node) -> FlowerEngine:
    engine = join(open_engine("flower", bundle, builder=f"counting.client_app:{name}"), node)
    assert isinstance(engine, FlowerEngine)
    return engine


def settings(number: int, **config: Any) -> FitSettings:
    return FitSettings(round=number, config=config)


def data(bundle: Bundle) -> Any:
    return load(DataSettings(loader="own"), bundle.manifest)


def test_an_app_trains_with_its_names_its_shapes_and_its_own_configuration(bundle: Bundle) -> None:
    engine = opened(bundle, "app", Node("t", {"partition-id": 4, "num-partitions": 9}))
    found = engine.fit(data(bundle).train, settings(1, **CONFIG))
    assert list(found.parameters) == ["layer.weight", "layer.bias"]
    np.testing.assert_array_equal(found.parameters["layer.weight"], np.full((2, 3), 0.5, np.float32))
    assert found.parameters["layer.bias"].shape == ()
    assert found.num_examples == 7
    assert (found.metrics["loss"], found.metrics["partition"], found.metrics["typed"]) == (0.25, 4.0, 1.0)
    judged = engine.evaluate(data(bundle).validation)
    assert (judged["loss"], judged["accuracy"], judged["examples"]) == (0.5, 0.75, 3.0)


def test_the_operators_configuration_lies_over_the_apps(bundle: Bundle) -> None:
    engine = opened(bundle, "app", Node("t"))
    found = engine.fit(data(bundle).train, settings(1, **{"local-epochs": 5, "step": 2.0}))
    assert found.metrics["epochs"] == 5
    assert found.parameters["layer.bias"] == 2.0


def test_state_outlives_rounds_and_restarts_and_a_round_that_is_repeated_begins_alike(
    bundle: Bundle, tmp_path: Path
) -> None:
    node = Node("t", folder=tmp_path / "state")
    for number in (1, 2, 2, 5):  # the second is repeated, as after a power cut; between them rounds without this device
        engine = opened(bundle, "app", node)
        metrics = engine.fit(data(bundle).train, settings(number)).metrics
        expected = {1: 1, 2: 2, 5: 3}[number]
        assert (metrics["calls"], metrics["total"]) == (expected, expected)
        assert engine.evaluate(data(bundle).validation)["calls"] == expected
    assert len(list((tmp_path / "state").iterdir())) == 2
    # A fleet that begins anew begins with no state.
    assert opened(bundle, "app", node).fit(data(bundle).train, settings(1)).metrics["calls"] == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-000001.pb"]


def test_state_of_one_node_is_not_anothers(bundle: Bundle, tmp_path: Path) -> None:
    engine = opened(bundle, "app", Node("a"))
    for name, expected in (("a", 1), ("b", 1), ("a", 2)):
        join(engine, Node(name, folder=tmp_path / name))
        assert engine.fit(data(bundle).train, settings(1 + expected)).metrics["calls"] == expected


def test_state_that_is_damaged_or_too_large_is_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node("t", folder=tmp_path / "state")
    opened(bundle, "app", node).fit(data(bundle).train, settings(1))
    (tmp_path / "state/state-000001.pb").write_bytes(b"\x0a\xff\xff\xff no state")
    with pytest.raises(EngineError, match=r"state-000001\.pb: is not a client app's state"):
        opened(bundle, "app", node).fit(data(bundle).train, settings(2))
    monkeypatch.setattr("fedgrass.engines.flower_node.MAX_STATE_BYTES", 10)
    with pytest.raises(EngineError, match="more than"):
        StateFiles(tmp_path / "state").before(2)
    (tmp_path / "state/state-000001.pb").unlink()
    with pytest.raises(EngineError, match="at most"):
        opened(bundle, "app", node).fit(data(bundle).train, settings(1))


def test_a_round_that_only_evaluates_says_which_it_is(bundle: Bundle) -> None:
    seen = {}

    class Asking:
        def fit(self, parameters: Any, config: Any) -> Any: ...

        def evaluate(self, parameters: Any, config: Any) -> Any:
            seen.update(config)
            return 0.5, 1, {}

    engine = FlowerEngine(bundle, builder=Asking())
    join(engine, Node("t", round=8, given={"lr": 0.5})).evaluate(data(bundle).validation)
    assert (seen["server_round"], seen["lr"]) == (8, 0.5)


def test_mods_are_honoured(bundle: Bundle) -> None:
    found = opened(bundle, "modded", Node("t")).fit(data(bundle).train, settings(1))
    assert found.parameters["layer.bias"] == 1.0


@pytest.mark.parametrize(("name", "step"), [("legacy", 0.5), ("client_fn", 0.5), ("plain", 1.0), ("whole", 2.0)])
def test_clients_from_before_messages_run_too(bundle: Bundle, name: str, step: float) -> None:
    engine = opened(bundle, name, Node("t"))
    found = engine.fit(data(bundle).train, settings(6))
    np.testing.assert_array_equal(found.parameters["layer.weight"], np.full((2, 3), step, np.float32))
    assert (found.num_examples, found.metrics["round"]) == (5, 6)
    judged = engine.evaluate(data(bundle).validation)
    assert (judged["loss"], judged["accuracy"], judged["examples"]) == (0.125, 0.5, 4.0)


def test_an_app_that_does_not_say_of_how_many_examples_is_told_so(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"reply to train has no metric 'num-examples'.*found loss"):
        opened(bundle, "bare", Node("t")).fit(data(bundle).train, settings(1))


def test_an_app_that_does_not_evaluate_trains_and_its_models_are_admitted_without_being_compared(
    bundle: Bundle,
) -> None:
    engine = opened(bundle, "silent", Node("t"))
    with pytest.raises(NoFiguresError, match="No evaluate function registered"):
        engine.evaluate(data(bundle).validation)
    announced = Announcement(
        fleet="f",
        round=1,
        opened_at=NOW,
        deadline=NOW,
        base=Base.of(bundle.manifest, "f"),
        cohort=Cohort(salt="s"),
        upload=Upload(bucket="bucket", prefix="p/"),
    )
    fitted = fit(engine, bundle.manifest, data(bundle), announced, "t")
    assert (fitted.header.metrics["train_loss"], fitted.num_examples) == (0.25, 7)
    assert not any(name.startswith("validation") for name in fitted.header.metrics)
    for active in (None, bundle):
        verdict = judge(bundle, active, tolerance=0.1, load=lambda _: data(bundle), open_engine=lambda _: engine)
        assert "sound; not compared (client app: No evaluate function registered" in verdict.reason


def test_a_torch_state_dict_loads_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: scripts/torch_tests tries it")
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Any, context: Any) -> Any:
        module.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=True)
        content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    scalar = TensorDescription(name="x", shape=(1,), dtype="float32")
    parameters = {key: value.numpy() for key, value in module.state_dict().items()}
    made = NewModel(
        engine="flower", name="net", parameters=parameters, x=scalar, y=scalar, output=scalar,
        loss="mean_squared_error", batch_size=1,
    )  # fmt: skip
    engine = FlowerEngine(new_bundle(tmp_path / "net", made), builder=app)
    found = engine.fit(data(Bundle.open(tmp_path / "net")).train, settings(1))
    assert {key: value.shape for key, value in found.parameters.items()} == {k: v.shape for k, v in parameters.items()}


def test_configuration_keeps_its_types_through_settings_and_messages() -> None:
    chosen = FleetSettings.model_validate({"fit": {"config": CONFIG}})
    again = FleetSettings.model_validate_json(chosen.model_dump_json())
    sent = FitTask.model_validate_json(again.fit.model_dump_json())
    assert sent.config == CONFIG
    assert [type(value) for value in sent.config.values()] == [int, float, bool, str, list]
    for wrong in ({"a": None}, {"a": {"b": 1}}, {"a": [1, "b"]}, {"a": "x" * 201}, {"": 1}, {"a": 1 << 63}):
        with pytest.raises(ValueError, match=r"fit\.config"):
            FleetSettings.model_validate({"fit": {"config": wrong}})

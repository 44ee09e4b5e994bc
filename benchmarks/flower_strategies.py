"""Each of Flower's strategies on the same updates three times: in Flower's own loop, in our aggregation, and as our counterpart.

``python -m benchmarks.flower_strategies`` runs four rounds of eleven devices and prints one line of JSON: of each strategy the
largest difference of any parameter from Flower's own loop, as ``adapter``, and that of our strategy of the same idea, as
``ours``. With ``--table`` it prints the table of docs/strategies.md. It needs ``flwr`` (constraints-flower.txt).
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, Parameters, TensorDescription
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate
from fedgrass.cloud.aggregator.server_state import STATE, read_state, write_state
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.check_settings import Checks
from fedgrass.simulation.model import in_folder
from fedgrass.simulation.updates import VirtualUpdates
from fedgrass.strategies import strategy_named
from fedgrass.update.header import UpdateHeader

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
DEVICES, ROUNDS, SIZES = 11, 4, (30, 10)
EXAMPLES = tuple(range(1, DEVICES + 1))
LEGACY, MESSAGES = "flwr.server.strategy", "flwr.serverapp.strategy"
# Nothing is bounded: what is compared is the strategy.
OPEN = Checks(max_examples_over_median=0, clip_norm_over_median=0, clip_loss_over_median=0)

_CORRECTED = "Flower corrects Adam's bias by the round's number, Reddi et al. (algorithm 2) and ours do not"
_WEIGHTED = "Flower weighs the chosen by their examples, which are claims; ours counts them alike"
_AT_ONCE = "this one of Flower's chooses all by one pass of Krum, the paper and ours one after the other"
_NOISE = "noise is drawn at random; privacy.mode takes its place"


@dataclass(frozen=True)
class Peer:
    """A strategy of Flower's, with its options in settings; ours of the same idea, and why the two differ, if they do."""

    tree: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    ours: str = ""
    ours_options: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def name(self) -> str:
        """As settings have it, after ``flower:``."""
        return f"{self.tree}:{self.kind}"

    @property
    def is_legacy(self) -> bool:
        """Whether it is of the older tree."""
        return self.tree == LEGACY


def _both(
    kind: str, *rest: Any, legacy: dict[str, Any] | None = None, newer: dict[str, Any] | None = None
) -> list[Peer]:
    return [Peer(LEGACY, kind, legacy or {}, *rest), Peer(MESSAGES, kind, newer or legacy or {}, *rest)]


_STEP = {"eta": 0.1, "tau": 1e-3}
_ADAM = {**_STEP, "beta_1": 0.9, "beta_2": 0.99}
_OURS = {"learning_rate": 0.1, "tau": 1e-3}
_TWO = 2 / DEVICES
_DP = {"noise_multiplier": 0.01, "num_sampled_clients": DEVICES}

PEERS: list[Peer] = [
    *_both("FedAvg", "fedavg"),
    *_both(
        "FedAvgM",
        "fedavgm",
        {"momentum": 0.9, "learning_rate": 0.5},
        legacy={"server_momentum": 0.9, "server_learning_rate": 0.5},
    ),
    *_both("FedAdagrad", "fedadagrad", _OURS, legacy=_STEP),
    *_both("FedAdam", "fedadam", {**_OURS, "beta_1": 0.9, "beta_2": 0.99}, _CORRECTED, legacy=_ADAM),
    *_both("FedYogi", "fedyogi", {**_OURS, "beta_1": 0.9, "beta_2": 0.99}, legacy=_ADAM),
    *_both("FedProx", "fedprox", legacy={"proximal_mu": 0.1}),
    *_both("FedMedian", "median"),
    # 1e-9: Flower cuts by int(), and a rounding below 2 would cut one.
    *_both("FedTrimmedAvg", "trimmed_mean", {"attackers": _TWO}, legacy={"beta": _TWO + 1e-9}),
    *_both("Krum", "krum", {"attackers": _TWO}, legacy={"num_malicious_clients": 2}, newer={"num_malicious_nodes": 2}),
    Peer(
        MESSAGES,
        "MultiKrum",
        {"num_malicious_nodes": 2, "num_nodes_to_select": 9},
        "multi_krum",
        {"attackers": _TWO},
        _WEIGHTED,
    ),
    Peer(LEGACY, "Bulyan", {"num_malicious_clients": 2, "to_keep": 0}, "bulyan", {"attackers": _TWO}),
    Peer(MESSAGES, "Bulyan", {"num_malicious_nodes": 2}, "bulyan", {"attackers": _TWO}, _AT_ONCE),
    Peer(
        MESSAGES,
        "QFedAvg",
        {"q": 1.0, "client_learning_rate": 0.1, "train_loss_key": "loss"},
        "qfedavg",
        {"q": 1.0, "learning_rate": 0.1, "max_loss": 100.0},
    ),
    Peer(LEGACY, "FaultTolerantFedAvg", {}, "fedavg"),
    *_both("DifferentialPrivacyServerSideFixedClipping", "", {}, _NOISE, legacy={**_DP, "clipping_norm": 0.5}),
    *_both(
        "DifferentialPrivacyServerSideAdaptiveClipping", "", {}, _NOISE, legacy={**_DP, "initial_clipping_norm": 0.5}
    ),
]
"""Those that a fleet's settings take."""

REFUSED = {
    LEGACY: (
        "QFedAvg", "FedXgbBagging", "FedXgbCyclic", "FedXgbNnAvg", "FedAvgAndroid", "DPFedAvgFixed", "DPFedAvgAdaptive",
        "DifferentialPrivacyClientSideFixedClipping", "DifferentialPrivacyClientSideAdaptiveClipping",
    ),
    MESSAGES: (
        "FedXgbBagging", "FedXgbCyclic", "DifferentialPrivacyClientSideFixedClipping",
        "DifferentialPrivacyClientSideAdaptiveClipping",
    ),
}  # fmt: skip
"""Those that they refuse by name."""


def deltas(number: int) -> Floats:
    """Return what the devices learn in a round [devices, size]."""
    drawn = np.random.default_rng(number).normal(size=(DEVICES, sum(SIZES))).astype(np.float32)
    return np.asarray(drawn / 10, np.float32)


def losses(device: int) -> float:
    """Return what a device says of its loss."""
    return 0.5 + device


def alone(peer: Peer, rounds: int = ROUNDS) -> Doubles:
    """Return the model that Flower's own loop makes [size], with nothing of ours in between."""
    # Strategies with noise draw from NumPy's global generator.
    np.random.seed(0)
    arrays = [np.zeros(size, np.float32) for size in SIZES]
    return _by_server(peer, arrays, rounds) if peer.is_legacy else _by_grid(peer, arrays, rounds)


def _made(peer: Peer, **more: Any) -> Any:
    module = importlib.import_module(peer.tree)
    quiet = {"fraction_evaluate": 0.0, "min_evaluate_clients": 0} if peer.is_legacy else {"fraction_evaluate": 0.0}
    if peer.kind.startswith("DifferentialPrivacy"):
        return getattr(module, peer.kind)(module.FedAvg(**quiet, **more), **peer.options)
    return getattr(module, peer.kind)(**quiet, **more, **peer.options)


def _trained(arrays: Sequence[Any], number: int, device: int) -> list[Any]:
    pieces = np.split(deltas(number)[device], np.cumsum(SIZES)[:-1])
    return [old + piece for old, piece in zip(arrays, pieces, strict=True)]


def _by_server(peer: Peer, arrays: list[Any], rounds: int) -> Doubles:
    common = importlib.import_module("flwr.common")
    server = importlib.import_module("flwr.server.server")
    managers = importlib.import_module("flwr.server.client_manager")
    proxies = importlib.import_module("flwr.server.client_proxy")

    class Proxy(proxies.ClientProxy):  # type: ignore[name-defined,misc]
        def fit(self, ins: Any, timeout: Any, group_id: Any) -> Any:
            del timeout
            device = int(self.cid)
            local = _trained(common.parameters_to_ndarrays(ins.parameters), group_id, device)
            return common.FitRes(
                common.Status(common.Code.OK, ""),
                common.ndarrays_to_parameters(local),
                EXAMPLES[device],
                {"loss": losses(device)},
            )

        get_properties = get_parameters = evaluate = reconnect = fit

    manager = managers.SimpleClientManager()
    for device in range(DEVICES):
        manager.register(Proxy(str(device)))
    strategy = _made(peer, initial_parameters=common.ndarrays_to_parameters(arrays))
    combine = strategy.aggregate_fit
    # Its threads end in any order, and some rules break ties by it.
    strategy.aggregate_fit = lambda number, results, failed: combine(
        number, sorted(results, key=lambda one: int(one[0].cid)), failed
    )
    loop = server.Server(client_manager=manager, strategy=strategy)
    loop.set_max_workers(1)
    loop.fit(rounds, None)
    return np.concatenate([one.ravel() for one in common.parameters_to_ndarrays(loop.parameters)]).astype(np.float64)


def _by_grid(peer: Peer, arrays: list[Any], rounds: int) -> Doubles:
    app = importlib.import_module("flwr.app")
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, 1, 1

    class Grid:
        def get_node_ids(self) -> list[int]:
            return list(range(1, DEVICES + 1))

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Any]:
            del timeout
            replies = []
            for message in messages:
                device, number = message.metadata.dst_node_id - 1, message.content["config"]["server-round"]
                sent = message.content["arrays"]
                local = _trained(sent.to_numpy_ndarrays(), number, device)
                record = app.ArrayRecord({key: app.Array(one) for key, one in zip(sent, local, strict=True)})
                figures = app.MetricRecord({"loss": losses(device), "num-examples": EXAMPLES[device]})
                replies.append(app.Message(app.RecordDict({"arrays": record, "metrics": figures}), reply_to=message))
            return replies

    result = _made(peer).start(Grid(), app.ArrayRecord(arrays), num_rounds=rounds)
    return np.concatenate([one.ravel() for one in result.arrays.to_numpy_ndarrays()]).astype(np.float64)


class Fleet:
    """Rounds of our aggregation that go on from what the last one left in files, as the aggregator's job does."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any], start: float = 0.0) -> None:
        self.folder, self.name, self.options = folder, name, options
        scalar = TensorDescription(name="x", shape=(1,), dtype="float32")
        parameters = {f"w{i}": np.full(size, start, np.float32) for i, size in enumerate(SIZES)}
        self.base: Bundle = new_bundle(
            folder,
            NewModel(
                engine="flower", name="tiny", parameters=parameters, x=scalar, y=scalar, output=scalar,
                loss="mean_squared_error", batch_size=1,
            ),
        )  # fmt: skip
        self.number = 0

    def round(self, updates: Floats, failures: Sequence[str] = ()) -> Aggregation:
        """Aggregate a round's differences [devices, size], and make its model the next base."""
        self.number += 1
        strategy, manifest = strategy_named(self.name, **self.options), self.base.manifest
        source = VirtualUpdates(self.folder)
        for device, delta in enumerate(updates):
            source.put(self.number, f"t{device:02d}", self._file(delta, device))
        references = [UpdateReference(thing=one.thing, key=one.key, bytes=one.bytes) for one in source.list()]
        state = read_state(self.folder / STATE, manifest.parameters_sha256, strategy)
        expected = Expected(manifest.parameters_sha256, manifest.graph_sha256, "mill", self.number, checks=OPEN)
        options = AggregationOptions(state=state, failures=failures)
        found = aggregate(self.base, source, references, strategy, expected, options)
        if found.parameters is not None:
            self.base = in_folder(manifest, found.parameters, self.folder, version=manifest.version)
            if found.state:
                write_state(self.folder / STATE, self.base, found.state, strategy.name)
        return found

    def _file(self, delta: Floats, device: int) -> bytes:
        manifest = self.base.manifest
        header = UpdateHeader(
            fleet="mill", round=self.number, thing=f"t{device:02d}", base_sha256=manifest.parameters_sha256,
            graph_sha256=manifest.graph_sha256, num_examples=EXAMPLES[device], metrics={"loss": losses(device)},
        )  # fmt: skip
        specs = [(p.name, np.dtype("<f4"), p.shape) for p in manifest.parameters]
        return tensors.encode_header(specs, header.to_metadata()) + delta.tobytes()

    @property
    def model(self) -> Doubles:
        """The present model [size]."""
        return _flat(self.base.parameters())


def in_fleet(name: str, options: dict[str, Any], rounds: int = ROUNDS) -> Doubles:
    """Return the model that our aggregation makes [size] with a strategy."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), name, options)
        np.random.seed(0)
        for number in range(1, rounds + 1):
            found = fleet.round(deltas(number))
            if found.parameters is None:
                raise SystemExit(f"{name}: {found.problem}")
        return fleet.model


_FOUND: dict[str, tuple[float, float | None]] = {}


def compared(peer: Peer) -> tuple[float, float | None]:
    """Return the largest difference from Flower's own loop: of Flower's strategy in our aggregation, and of ours."""
    if peer.name not in _FOUND:
        _FOUND[peer.name] = _compared(peer)
    return _FOUND[peer.name]


def _compared(peer: Peer) -> tuple[float, float | None]:
    wanted = alone(peer)
    adapter = float(np.abs(in_fleet(f"flower:{peer.name}", peer.options) - wanted).max())
    ours = float(np.abs(in_fleet(peer.ours, peer.ours_options) - wanted).max()) if peer.ours else None
    return adapter, ours


def refusal(tree: str, kind: str) -> str:
    """Return why settings refuse one of Flower's strategies; empty if they do not."""
    try:
        strategy_named(f"flower:{tree}:{kind}")
    except ConfigurationError as error:
        return str(error).partition(": ")[2]
    return ""


def table(said: Callable[[str], None]) -> None:
    """Print the table of docs/strategies.md."""
    said("| Flower's strategy | in ours, from Flower's own loop | our own of the same idea | its difference |")
    said("| --- | --- | --- | --- |")
    for peer in PEERS:
        adapter, ours = compared(peer)
        difference = peer.why if ours is None else _told(ours) + (f": {peer.why}" if ours > _EQUAL else "")
        said(f"| `{peer.name}` | {_told(adapter)} | {f'`{peer.ours}`' if peer.ours else '–'} | {difference} |")
    for tree, kinds in REFUSED.items():
        for kind in kinds:
            said(f"| `{tree}:{kind}` | refused | – | {refusal(tree, kind).partition('. fedgrass flower')[0]} |")


_EQUAL = 1e-6


def _told(difference: float) -> str:
    return "equal" if difference <= _EQUAL else f"{difference:.1g}"


def _flat(parameters: Parameters) -> Doubles:
    return np.concatenate([value.ravel() for value in parameters.values()]).astype(np.float64)


def main() -> None:
    """Compare all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    importlib.import_module("flwr.supercore.logger").FLOWER_LOGGER.setLevel("WARNING")
    parser.add_argument("--table", action="store_true", help="Print the table of docs/strategies.md.")
    if parser.parse_args().table:
        table(print)
        return
    found = {}
    for peer in PEERS:
        adapter, ours = compared(peer)
        found[peer.name] = {"adapter": adapter, **({"ours": ours} if ours is not None else {})}
    print(json.dumps({"rounds": ROUNDS, "devices": DEVICES, "strategies": found}))


if __name__ == "__main__":
    main()

"""Flower and pfl-research for `benchmarks.simulation`: run by an interpreter that has them, and needs nothing of ours.

Both get the very examples that each device takes in each epoch, in their order, and start from the same parameters; a first round
that is not timed warms them up. Each trains the same PyTorch module by plain SGD, and evaluates it after each round.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = ("hidden.weight", "hidden.bias", "digit.weight", "digit.bias")


class Net(torch.nn.Module):  # type: ignore[misc]
    """The perceptron of the workload."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(sizes[0], sizes[1])
        self.digit = torch.nn.Linear(sizes[1], sizes[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.digit(torch.relu(self.hidden(x)))


@functools.cache
def work(folder: str) -> dict[str, Any]:
    """Read what is to be done, once in each process."""
    # One thread a process: several would fight over the processors that other processes use.
    torch.set_num_threads(1)
    with np.load(Path(folder) / "work.npz") as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return found | {"learning_rate": float(found["learning_rate"]), "batch_size": int(found["batch_size"])}


def initial(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parameters to start from, as PyTorch has them."""
    return dict(zip(NAMES, (given["w0"].T, given["b0"], given["w1"].T, given["b1"]), strict=True))


def make_net(given: dict[str, Any]) -> Net:
    """Return the module with those parameters."""
    net = Net((given["w0"].shape[0], given["w0"].shape[1], given["w1"].shape[1]))
    # contiguous: PyTorch's weights are Keras' transposed.
    net.load_state_dict({name: value.contiguous() for name, value in initial(given).items()})
    return net


def batches(given: dict[str, Any], examples: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield an epoch's batches; the last may be short."""
    x, y, size = given["x"][examples], given["y"][examples], given["batch_size"]
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def evaluate(net: Net, given: dict[str, Any]) -> float:
    """Return the accuracy on the examples that no device has."""
    with torch.no_grad():
        return float((net(given["kept_x"]).argmax(1) == given["kept_y"]).float().mean())


def norm(parameters: Any) -> float:
    """Return the L2 norm of all parameters together."""
    return float(np.sqrt(sum(float((np.asarray(value, np.float64) ** 2).sum()) for value in parameters)))


@functools.cache
def _client(folder: str) -> Net:
    return make_net(work(folder))


def _train(folder: str, row: int, position: int, state: dict[str, torch.Tensor]) -> Net:
    given, net = work(folder), _client(folder)
    net.load_state_dict(state)
    optimizer = torch.optim.SGD(net.parameters(), lr=given["learning_rate"])
    for examples in given["examples"][row, position]:
        for x, y in batches(given, examples):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net


def run_flower(folder: str) -> dict[str, Any]:
    """Run Flower's simulation engine, on Ray, with its message API and FedAvg."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    given = work(folder)
    rows, cohort = given["examples"].shape[:2]
    devices = int(given["devices"])
    result: dict[str, Any] = {}

    class OnGivenExamples(FedAvg):  # type: ignore[misc]
        """Each node that is sampled trains as the next of the cohort."""

        first_row = 0

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for position, message in enumerate(messages):
                task = ConfigRecord({"row": self.first_row + server_round - 1, "position": position})
                message.content = RecordDict({"arrays": arrays, "config": task})
            return messages

    client, server = ClientApp(), ServerApp()

    @client.train()  # type: ignore[untyped-decorator]
    def train(message: Message, _context: Context) -> Message:
        task = message.content["config"]
        state = message.content["arrays"].to_torch_state_dict()
        net = _train(folder, int(task["row"]), int(task["position"]), state)
        metrics = MetricRecord({"num-examples": int(work(folder)["examples"].shape[-1])})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, _context: Context) -> None:
        net = make_net(given)
        strategy = OnGivenExamples(
            fraction_train=cohort / devices, fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=devices
        )

        def judge(_round: int, arrays: Any) -> Any:
            net.load_state_dict(arrays.to_torch_state_dict())
            return MetricRecord({"accuracy": evaluate(net, given)})

        strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=1)
        strategy.first_row = 1
        result["ready_at"] = time.time()
        start = time.perf_counter()
        found = strategy.start(grid, ArrayRecord(make_net(given).state_dict()), num_rounds=rows - 1, evaluate_fn=judge)
        result["seconds"] = time.perf_counter() - start
        result["norm"] = norm(found.arrays.to_numpy_ndarrays())
        result["accuracy"] = evaluate(net, given)

    run_simulation(
        server,
        client,
        num_supernodes=devices,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count(), "include_dashboard": False},
        },
    )
    return result


def run_pfl(folder: str) -> dict[str, Any]:
    """Run pfl-research's simulated backend; under ``torchrun`` its processes share the cohort."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.central_evaluation import CentralEvaluationCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops.selector import get_default_framework_module
    from pfl.metrics import Weighted
    from pfl.model.pytorch import PyTorchModel

    given = work(folder)
    rows, cohort, epochs, count = given["examples"].shape
    criterion = torch.nn.functional.cross_entropy

    class PflNet(Net):
        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return criterion(self(x), y)

        def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
            with torch.no_grad():
                output = self(x)
            right = int((output.argmax(1) == y).sum())
            return {"loss": Weighted(float(criterion(output, y)) * len(y), len(y)), "accuracy": Weighted(right, len(y))}

    class Examples(Dataset):  # type: ignore[misc]
        """A device's examples, each epoch in its own order."""

        def __init__(self, place: int) -> None:
            self._orders = iter(given["examples"][place // cohort, place % cohort])
            super().__init__((torch.empty(count),), user_id=str(place))

        def iter(self, _batch_size: int | None) -> Iterator[Any]:
            yield from batches(given, next(self._orders))

    class Algorithm(FederatedAveraging):  # type: ignore[misc]
        """Does not evaluate on the devices, which pfl does in the first round of each run."""

        def get_next_central_contexts(self, *arguments: Any) -> Any:
            contexts, model, metrics = super().get_next_central_contexts(*arguments)
            if contexts is not None:
                contexts = tuple(replace(context, do_evaluation=False) for context in contexts)
            return contexts, model, metrics

    net = PflNet((given["w0"].shape[0], given["w0"].shape[1], given["w1"].shape[1]))

    def run(first: int, rounds: int) -> None:
        net.load_state_dict(make_net(given).state_dict())
        places = iter(range(first * cohort, (first + rounds) * cohort))
        training = FederatedDataset(Examples, lambda: next(places))
        model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
        kept = Dataset((given["kept_x"], given["kept_y"]))
        Algorithm().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=rounds,
                evaluation_frequency=rounds + 1,
                train_cohort_size=cohort,
                val_cohort_size=0,
            ),
            backend=SimulatedBackend(training, training, postprocessors=[WeightByDatapoints()]),
            model=model,
            model_train_params=NNTrainHyperParams(
                local_num_epochs=epochs,
                local_learning_rate=given["learning_rate"],
                local_batch_size=given["batch_size"],
            ),
            model_eval_params=NNEvalHyperParams(local_batch_size=None),
            callbacks=[CentralEvaluationCallback(kept)],
            send_metrics_to_platform=False,
        )

    run(0, 1)
    ready_at = time.time()
    start = time.perf_counter()
    run(1, rows - 1)
    seconds = time.perf_counter() - start
    if get_default_framework_module().distributed.global_rank:
        raise SystemExit(0)
    found = [value.detach().numpy() for value in net.parameters()]
    return {"ready_at": ready_at, "seconds": seconds, "norm": norm(found), "accuracy": evaluate(net, given)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    # Ray's processes must be able to import what they are sent, and what is in __main__ they cannot.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    peers: Any = importlib.import_module(Path(__file__).stem)
    contender = {"flower": peers.run_flower, "pfl": peers.run_pfl}[arguments.contender]
    outcome = contender(str(arguments.folder))
    (arguments.folder / "result.json").write_text(json.dumps(outcome))

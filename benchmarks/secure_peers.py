"""Flower's SecAgg+ for `benchmarks.secure`: its workflow and its client mod, joined by a loop in this process.

Run by an interpreter that has flwr; it needs nothing of ours. Nothing goes over a network, and messages are not serialised:
that favours it.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.logger import FLOWER_LOGGER
from flwr.supercore.task_identity import TaskIdentity

FLOWER_LOGGER.setLevel("ERROR")
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0


class Proxy(ClientProxy):  # type: ignore[misc]
    """A client that is known and never called: the loop below calls the mod."""

    def __init__(self, number: int) -> None:
        super().__init__(str(number))
        self.node_id = number

    def _unused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _unused


class Everyone(FedAvg):  # type: ignore[misc]
    """Asks all clients; hands the workflow's mean on."""

    def __init__(self, proxies: list[Proxy]) -> None:
        super().__init__()
        self._proxies = proxies

    def configure_fit(self, _round: int, parameters: Parameters, _manager: Any) -> Any:
        """Ask everyone."""
        return [(proxy, FitIns(parameters, {})) for proxy in self._proxies]


class Loop:
    """Flower's grid, as far as the workflow uses it: each message goes to its client at once."""

    def __init__(self, updates: dict[int, Any], gone: set[int]) -> None:
        self._updates = updates
        self._gone = gone
        self._contexts = {
            number: Context(run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={})
            for number in updates
        }
        self.messages = 0
        self.seconds = self.copying = self.copying_processor = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Have the clients answer; those that are gone stay silent from the third message on."""
        del timeout
        self.messages += 1
        found = []
        for message in messages:
            number = message.metadata.dst_node_id
            if self.messages >= 3 and number in self._gone:
                continue
            began, processor = time.perf_counter(), time.process_time()
            message = copy.deepcopy(message)  # the mod takes its configuration apart, and messages share one
            self.copying += time.perf_counter() - began
            self.copying_processor += time.process_time() - processor
            began = time.perf_counter()
            answer = secaggplus_mod(message, self._contexts[number], self._call)
            self.seconds += time.perf_counter() - began
            answer.metadata._src_node_id = number
            found.append(answer)
        return found

    def _call(self, message: Message, _context: Context) -> Message:
        parameters = ndarrays_to_parameters(self._updates[message.metadata.dst_node_id])
        result = FitRes(Status(Code.OK, ""), parameters, 100, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def main() -> None:
    """Aggregate once, and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--dropped", type=int, required=True)
    parser.add_argument("--shares", type=int, required=True)
    given = parser.parse_args()
    shapes = [given.parameters // 10] * 10
    updates = {}
    for number in range(1, given.clients + 1):
        draws = np.random.default_rng(number)
        updates[number] = [draws.standard_normal(size, np.float32) * np.float32(0.01) for size in shapes]
    gone = set(range(1, given.dropped + 1))
    manager, proxies = SimpleClientManager(), [Proxy(number) for number in updates]
    for proxy in proxies:
        manager.register(proxy)
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        strategy=Everyone(proxies),
        client_manager=manager,
    )
    from flwr.app import ConfigRecord

    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    start = ndarrays_to_parameters([np.zeros(size, np.float32) for size in shapes])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(start, True)
    loop = Loop(updates, gone)
    workflow = SecAggPlusWorkflow(given.shares, given.shares // 2 + 1, clipping_range=0.1, max_weight=100.0)
    began, processor = time.perf_counter(), time.process_time()
    workflow(loop, context)
    seconds = time.perf_counter() - began - loop.copying
    processor = time.process_time() - processor - loop.copying_processor
    found = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True)
    from flwr.common import parameters_to_ndarrays

    stayed = [updates[number] for number in updates if number not in gone]
    expected = [np.mean([one[index] for one in stayed], axis=0) for index in range(len(shapes))]
    error = max(float(np.abs(a - b).max()) for a, b in zip(parameters_to_ndarrays(found), expected, strict=True))
    print(
        json.dumps(
            {
                "clients": given.clients,
                "dropped": given.dropped,
                "shares": given.shares,
                "seconds": round(seconds, 2),
                "processor_seconds": round(processor, 2),
                "seconds_of_clients": round(loop.seconds, 2),
                "messages_a_client": loop.messages,
                "largest_error": error,
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        )
    )


if __name__ == "__main__":
    main()

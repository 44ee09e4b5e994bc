"""Clients of both kinds, as Flower's users write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

app = ClientApp()


def doubled(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A mod: what the app answers, with its parameters doubled."""
    reply = call_next(message, context)
    arrays = reply.content["arrays"]
    reply.content["arrays"] = ArrayRecord({key: Array(np.asarray(2 * array.numpy())) for key, array in arrays.items()})
    return reply


modded = ClientApp()


@modded.train(mods=[doubled])
@app.train()
def train(message: Message, context: Context) -> Message:
    """Add the step; the state counts how often it was called."""
    config, state = message.content["config"], context.state
    if "seen" not in state:
        state["seen"] = ConfigRecord({"rounds": []})
        state["sum"] = ArrayRecord({"x": Array(np.zeros(2, np.float64))})
    seen = state["seen"]
    seen["rounds"] = [*seen["rounds"], config["server-round"]]
    state["sum"]["x"] = Array(state["sum"]["x"].numpy() + 1)
    arrays = {
        key: Array(np.asarray(array.numpy() + context.run_config["step"], array.numpy().dtype))
        for key, array in message.content["arrays"].items()
    }
    metrics = {
        "train_loss": 0.25,
        "num-examples": 7,
        "calls": len(seen["rounds"]),
        "total": float(state["sum"]["x"].numpy()[0]),
        "partition": float(context.node_config.get("partition-id", -1)),
        "epochs": float(context.run_config["local-epochs"]),
        "typed": float(
            all(
                type(config.get(key)) is kind
                for key, kind in (("whole", int), ("part", float), ("on", bool), ("word", str), ("many", list))
            )
        ),
    }
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Tell of the state that training left."""
    calls = len(context.state["seen"]["rounds"]) if "seen" in context.state else 0
    metrics = MetricRecord({"eval_loss": 0.5, "eval_acc": 0.75, "num-examples": 3, "calls": calls})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who one is."""
    metrics = MetricRecord({"partition": int(context.node_config["partition-id"])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


silent = ClientApp()
silent.train()(train)

bare = ClientApp()


@bare.train()
def bare_train(message: Message, context: Context) -> Message:
    """Forget to say of how many examples."""
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"loss": 1.0})}
    return Message(RecordDict(content), reply_to=message)


class Client(NumPyClient):
    """A client that knows its context only through what ``client_fn`` gives it."""

    def __init__(self, step: float) -> None:
        self.step = step

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        """Add the step."""
        return [array + np.float32(self.step) for array in parameters], 5, {"round": config.get("server_round", 0)}

    def evaluate(self, parameters, config):  # type: ignore[no-untyped-def]
        """Know nothing."""
        return 0.125, 4, {"accuracy": 0.5}


def client_fn(context: Context):  # type: ignore[no-untyped-def]
    """Make a client."""
    return Client(float(context.run_config["step"])).to_client()


legacy = ClientApp(client_fn=client_fn)
plain = Client(1.0)
whole = Client(2.0).to_client()

"""The participants: least squares by gradient descent, in NumPy."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def points(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Return those of this participant, by its number in a simulation, or by its thing's name on a fleet."""
    config = context.node_config
    number = int(config["partition-id"]) if "partition-id" in config else int(str(config["thing"])[-1])
    x = np.linspace(-1, 1, 10 + 2 * number)
    return x, float(context.run_config["slope"]) * x + 0.1 * number


@app.train()
def train(message: Message, context: Context) -> Message:
    """Descend; the state counts the rounds."""
    x, y = points(context)
    arrays, config = message.content["arrays"], message.content["config"]
    weight, bias = (array.numpy() for array in arrays.values())
    for _ in range(int(config["steps"])):
        error = weight * x + bias - y
        weight, bias = weight - config["lr"] * np.mean(error * x), bias - config["lr"] * np.mean(error)
    calls = int(context.state["seen"]["calls"]) + 1 if "seen" in context.state else 1
    context.state["seen"] = ConfigRecord({"calls": calls})
    content = {
        "arrays": ArrayRecord(
            {name: Array(np.asarray(value, np.float32)) for name, value in zip(arrays, (weight, bias), strict=True)}
        ),
        "metrics": MetricRecord(
            {
                "train_loss": float(np.mean(error**2)),
                "calls": calls,
                "told": config["server-round"],
                "num-examples": len(x),
            }
        ),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Tell the mean squared error."""
    x, y = points(context)
    weight, bias = (array.numpy() for array in message.content["arrays"].values())
    metrics = {"eval_loss": float(np.mean((weight * x + bias - y) ** 2)), "num-examples": len(x)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

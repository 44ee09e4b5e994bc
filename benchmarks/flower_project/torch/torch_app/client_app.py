"""A perceptron in PyTorch."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

app = ClientApp()
torch.set_num_threads(1)


def net() -> torch.nn.Module:
    """Make the model."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def initial() -> ArrayRecord:
    """Return the parameters to begin with."""
    return ArrayRecord(net().state_dict())


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train two epochs."""
    digits = load_digits()
    part = slice(int(context.node_config["partition-id"]), None, int(context.node_config["num-partitions"]))
    x = torch.tensor(digits.data[part] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target[part])
    model = net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for order in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[order]), y[order])
            loss.backward()
            optimizer.step()
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(x)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

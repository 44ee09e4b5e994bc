"""Logistic regression in scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

app = ClientApp()
warnings.filterwarnings("ignore", message="lbfgs failed to converge")


def initial() -> ArrayRecord:
    """Return the parameters to begin with."""
    return ArrayRecord([np.zeros((10, 64)), np.zeros(10)])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Go a few steps from the given coefficients."""
    digits = load_digits()
    part = slice(int(context.node_config["partition-id"]), None, int(context.node_config["num-partitions"]))
    x, y = digits.data[part] / 16, digits.target[part]
    model = LogisticRegression(max_iter=5, warm_start=True)
    model.classes_ = np.arange(10)
    model.coef_, model.intercept_ = message.content["arrays"].to_numpy_ndarrays()
    model.fit(x, y)
    metrics = MetricRecord({"accuracy": model.score(x, y), "num-examples": len(x)})
    arrays = ArrayRecord([model.coef_, model.intercept_])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

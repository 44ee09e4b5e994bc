"""A Flower ``ClientApp`` as a client: messages in, messages out, with its mods and its context, as a SuperNode runs it.

Both kinds: apps with ``@app.train()``, ``@app.evaluate()`` and ``@app.query()``, and those with a ``client_fn(context)``.
Parameters are an ``ArrayRecord`` with the model's names, shapes and dtypes, so ``to_torch_state_dict`` gives what
``load_state_dict`` takes.
https://flower.ai/docs/framework/ref-api/flwr.clientapp.ClientApp.html
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgrass.engines.flower_node import Node, Scalar, StateFiles
from fedgrass.errors import EngineError, NoFiguresError
from fedgrass.tensors import Array

ARRAYS, CONFIG = "arrays", "config"
EXAMPLES = "num-examples"
# `val_acc`, `eval_accuracy`, `accuracy` … as Flower's examples call it.
_ACCURACY = re.compile(r"(^|[_-])acc(uracy)?$")


def app_of(found: Any) -> Any | None:
    """Return the ``ClientApp`` that an object is, or makes of a context; None if it is neither.

    A ``Client`` that is no ``NumPyClient`` becomes an app, too, and so does a function of one argument that is called ``context``
    or is said to be a ``Context``.
    """
    # Nobody can hand over an object of Flower's classes without having imported it; plain NumPyClients work without.
    if "flwr" not in sys.modules:
        return None
    clientapp, client = importlib.import_module("flwr.clientapp"), importlib.import_module("flwr.client")
    if isinstance(found, clientapp.ClientApp):
        return found
    if isinstance(found, client.Client):
        return clientapp.ClientApp(client_fn=lambda context: found)
    return clientapp.ClientApp(client_fn=found) if _takes_context(found) else None


def _takes_context(found: Any) -> bool:
    if isinstance(found, type) or not callable(found):
        return False
    parameters = list(inspect.signature(found).parameters.values())
    return len(parameters) == 1 and (parameters[0].name == "context" or "Context" in str(parameters[0].annotation))


def project_of(module: str) -> Path | None:
    """Return the folder of the Flower app that a module lies in; None if there is no pyproject.toml of one above it."""
    file = getattr(sys.modules.get(module), "__file__", None)
    for folder in Path(file).resolve().parents if file else ():
        place = folder / "pyproject.toml"
        if place.is_file() and "[tool.flwr.app" in place.read_text(errors="replace"):
            return folder
    return None


def run_config_of(folder: Path | None) -> dict[str, Scalar]:
    """Return an app's ``[tool.flwr.app.config]``, flat: a dot between the names of tables.

    Raises
    ------
    EngineError
        If its pyproject.toml is damaged.
    """
    if folder is None:
        return {}
    config = importlib.import_module("flwr.common.config")
    try:
        project = config.get_project_config(folder)
        found: dict[str, Scalar] = config.flatten_dict(project["tool"]["flwr"]["app"].get("config", {}))
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{folder / 'pyproject.toml'}: is no Flower app's ({error})") from error
    return found


class AppClient:
    """An app with the methods of a ``NumPyClient``, for a model whose parameters have names.

    Parameters
    ----------
    app
        The ``ClientApp``.
    names
        Of the parameters, in order.
    run_config
        The app's own.
    """

    def __init__(self, app: Any, names: Sequence[str], run_config: Mapping[str, Scalar]) -> None:
        self._app = app
        self._names = list(names)
        self._run_config = dict(run_config)
        self.given: dict[str, Any] = {}
        """What the operator lays over the app's ``run_config``."""
        # Kept in memory only where no folder is given; see `_ask`.
        self._state = importlib.import_module("flwr.app").RecordDict()

    def fit(
        self, arrays: Sequence[Array], config: Mapping[str, Any], node: Node, number: int
    ) -> tuple[list[Array], int, dict[str, Any]]:
        """Have the app train in a round.

        Parameters
        ----------
        arrays
            The model's parameters, in its order.
        config
            Of the round, as the app gets it.
        node
            Whom the app runs as.
        number
            The round: the app's state is kept by it.

        Returns
        -------
        tuple
            The app's arrays in the model's order, its number of examples, and its metrics.

        Raises
        ------
        EngineError
            If the app answers with an error, or its reply lacks what a round needs.
        """
        reply = self._ask("train", arrays, config, node, number)
        records = list(reply.array_records.values())
        if len(records) != 1:
            raise EngineError(f"client app: its reply to train has {len(records)} ArrayRecords; expected one")
        [found] = records
        # Old client functions return lists, whose arrays Flower numbers.
        if list(found) != self._names and len(found) == len(self._names) and self._legacy:
            found = dict(zip(self._names, found.values(), strict=True))  # a list of arrays has no names
        missing = [name for name in self._names if name not in found]
        if missing or len(found) != len(self._names):
            raise EngineError(
                f"client app: its arrays are {', '.join(list(found)[:5])}, …; expected the model's "
                f"{', '.join(self._names[:5])}, …"
            )
        if self._legacy:
            told = importlib.import_module("flwr.compat.common.recorddict_compat").recorddict_to_fitres(
                reply, keep_input=True
            )
            examples, metrics = told.num_examples, _with_accuracy(dict(told.metrics))
        else:
            examples, metrics = _figures(reply, "train")
        return [found[name].numpy() for name in self._names], examples, metrics

    def evaluate(
        self, arrays: Sequence[Array], config: Mapping[str, Any], node: Node, number: int
    ) -> tuple[float, int, dict[str, Any]]:
        """Have the app evaluate; returns its loss, its examples and its metrics.

        Parameters
        ----------
        arrays
            The model's parameters, in its order.
        config
            Of the round, as the app gets it.
        node
            Whom the app runs as.
        number
            The round: the app sees the state that training in it left.

        Returns
        -------
        tuple
            Loss, number of examples, and metrics.

        Raises
        ------
        NoFiguresError
            If the app does not evaluate, or tells no loss.
        EngineError
            If it answers with an error, or does not say of how many examples.
        """
        try:
            reply = self._ask("evaluate", arrays, config, node, number)
        except ValueError as error:
            # Flower's own words, for which it has no class.
            if str(error).startswith("No evaluate function registered"):
                raise NoFiguresError(f"client app: {error}") from error
            raise
        if self._legacy:
            compat = importlib.import_module("flwr.compat.common.recorddict_compat")
            found = compat.recorddict_to_evaluateres(reply)
            return found.loss, found.num_examples, _with_accuracy(dict(found.metrics))
        examples, metrics = _figures(reply, "evaluate")
        if "loss" not in metrics:
            raise NoFiguresError("client app: its reply to evaluate has no metric with 'loss' in its name")
        return float(metrics["loss"]), examples, metrics

    @property
    def _legacy(self) -> bool:
        # Private, but the one sign that tells a `client_fn` app from one with handlers.
        return self._app._call is not None

    def _ask(self, kind: str, arrays: Sequence[Array], config: Mapping[str, Any], node: Node, number: int) -> Any:
        flower = importlib.import_module("flwr.app")
        told = int(config.get("server_round", 0))
        record = flower.ArrayRecord(
            {name: flower.Array(array) for name, array in zip(self._names, arrays, strict=True)}
        )
        content = flower.RecordDict({ARRAYS: record, CONFIG: flower.ConfigRecord({**config, "server-round": told})})
        if self._legacy:
            content = _instruction(kind, list(arrays), config)
        files = StateFiles(node.folder) if node.folder is not None else None
        if files is not None:
            # A training begins with the state from before its round, even when it is repeated; an evaluation sees
            # what training left.
            self._state = files.before(number) if kind == "train" else files.after(number)
        had_state = bool(len(self._state))
        context = flower.Context(
            run_id=1,
            node_id=node.number,
            node_config=dict(node.config),
            state=self._state,
            run_config={**self._run_config, **self.given},
        )
        reply = answered(self._app, flower_message(content, kind, node.number, told), context)
        self._state = context.state
        # Most apps keep nothing; an app that emptied its state must have that kept, too.
        if files is not None and (len(context.state) or had_state):
            files.keep(number, context.state)
        return reply.content


def flower_message(content: Any, kind: str, node: int, number: int) -> Any:
    """Return a message to a node, as a SuperLink would hand it over.

    Parameters
    ----------
    content
        A ``RecordDict``.
    kind
        ``train`` or ``evaluate``.
    node
        The node's id.
    number
        The round, which becomes the message's group; 0 for none.

    Returns
    -------
    Message
        Flower's.
    """
    # Flower refuses to make a message without one, which a SuperLink sets otherwise. The numbers mean nothing here.
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, 1, 1
    flower = importlib.import_module("flwr.app")
    return flower.Message(content, dst_node_id=node, message_type=kind, group_id=str(number) if number else "")


def answered(app: Any, message: Any, context: Any) -> Any:
    """Have an app answer a message; raises `EngineError` with what it said if its answer is an error. What it raises passes.

    Parameters
    ----------
    app
        A ``flwr.clientapp.ClientApp``.
    message
        What it is asked.
    context
        Its state, which it may change.

    Returns
    -------
    flwr.app.Message
        Its reply.
    """
    reply = app(message, context)
    if reply.has_error():
        raise EngineError(f"client app: {reply.error.reason or 'an error without a reason'}")
    return reply


def _instruction(kind: str, arrays: list[Array], config: Mapping[str, Any]) -> Any:
    common = importlib.import_module("flwr.common")
    compat = importlib.import_module("flwr.compat.common.recorddict_compat")
    parameters = common.ndarrays_to_parameters(arrays)
    # Their config holds scalars alone.
    scalars = {key: value for key, value in config.items() if not isinstance(value, list)}
    if kind == "train":
        return compat.fitins_to_recorddict(common.FitIns(parameters, scalars), keep_input=True)
    return compat.evaluateins_to_recorddict(common.EvaluateIns(parameters, scalars), keep_input=True)


def _figures(reply: Any, kind: str) -> tuple[int, dict[str, Any]]:
    """Return examples and metrics of a reply's records; ``loss`` and ``accuracy`` also where the app calls them otherwise."""
    # Whatever the app calls its record.
    metrics = {key: value for record in reply.metric_records.values() for key, value in record.items()}
    examples = next((metrics.pop(key) for key in (EXAMPLES, "num_examples") if key in metrics), None)
    if examples is None:
        raise EngineError(
            f"client app: its reply to {kind} has no metric {EXAMPLES!r}, by which updates are weighed "
            f"(found {', '.join(metrics)})"
        )
    # Flower's templates answer with train_loss and eval_loss.
    losses = [key for key in metrics if "loss" in key]
    if "loss" not in metrics and losses:
        metrics["loss"] = metrics[losses[0]]
    return int(examples), _with_accuracy(metrics)


def _with_accuracy(metrics: dict[str, Any]) -> dict[str, Any]:
    found = [key for key in metrics if _ACCURACY.search(key)]
    return {"accuracy": metrics[found[0]], **metrics} if found else metrics

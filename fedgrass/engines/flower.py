"""Train with the user's own Flower code: a ``ClientApp``, a ``client_fn(context)``, a ``Client`` or a ``NumPyClient``.

``builder`` names, as ``module:object``, one of these, which have their data already, or a function (or class) that makes a
NumPyClient from a `Dataset`: it is called again for each training and each evaluation. For such Flower itself need not be
installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fedgrass.bundle import Bundle, Parameters, check_parameters
from fedgrass.engines.base import Dataset, FitResult, FitSettings, FitState, Hooks, Metrics
from fedgrass.engines.builders import named, require_builder
from fedgrass.engines.checks import check_dataset
from fedgrass.engines.flower_app import AppClient, app_of, project_of, run_config_of
from fedgrass.engines.flower_node import Node
from fedgrass.errors import DataError, DivergedError, EngineError
from fedgrass.native import as_native
from fedgrass.own_code import own_code
from fedgrass.tensors import Array

_METHODS = ("fit", "evaluate")

Client = Any


def initial_parameters(client: Client, names: list[str] | None = None) -> Parameters:
    """Return a client's own parameters, called ``0000``, ``0001``, … if no names are given."""
    arrays = [np.asarray(array) for array in client.get_parameters({})]
    return dict(zip(names or [f"{index:04d}" for index in range(len(arrays))], arrays, strict=True))


class FlowerEngine:
    """A Flower client that is given the bundle's parameters, and the round's settings as its ``config``.

    ``config`` holds ``server_round``, ``epochs``, ``batch_size``, ``learning_rate``, ``proximal_mu``, ``clip_norm`` and ``seed``,
    and what the operator adds by ``fit.config``, which is laid over these, and over an app's ``run_config``. So ``server_round``
    is the fleet's number of the round, unless ``fit.config`` has another: an app that drives the fleet counts its own.
    A client trains all epochs in one call: it cannot be paused or checkpointed between them.

    Parameters
    ----------
    threads
        Not used: a client looks after its own.
    """

    takes_builder = True
    node = Node("device")
    """Whom the client runs as; whoever opens the engine says so (`fedgrass.engines.flower_node.join`)."""

    def __init__(self, bundle: Bundle, *, threads: int = 1, builder: str | Client = "") -> None:
        del threads
        bundle.verify()
        self.manifest = bundle.manifest
        require_builder("flower", builder)
        self._client = named(builder, setting="builder") if isinstance(builder, str) else builder
        self._config: dict[str, Any] = {}
        self._round = 0
        self._app = self._app_client(builder)
        # A class or a plain function makes clients; an object with `fit` is one.
        self._makes_clients = isinstance(self._client, type) or not hasattr(self._client, "fit")
        if self._app is not None:
            self._makes_clients = False
        if self._makes_clients and not callable(self._client):
            raise EngineError(f"builder {builder!r}: is neither a Flower NumPyClient nor a function that makes one")
        self._parameters = bundle.parameters()

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        return {name: value.copy() for name, value in self._parameters.items()}

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        self._parameters = {name: value.copy() for name, value in check_parameters(parameters, self.manifest).items()}

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        """Have the Flower client train from the present parameters; see `fedgrass.engines.base.Engine.fit`.

        Parameters
        ----------
        data
            The examples, which the client was made with.
        settings
            Given to the client as its ``config``.
        hooks
            Called after the training: a client trains in one call.
        resume
            Where an earlier process came to; a training is whole or was not begun.

        Returns
        -------
        FitResult
            The parameters; the client says how many examples they come from.

        Raises
        ------
        DataError
            If the client trained on no examples.
        DivergedError
            If its parameters are not finite.
        """
        # The training was over before the restart: a Flower client must not be asked twice for the same round.
        if resume is not None and resume.epoch >= settings.epochs:
            self.set_parameters(dict(resume.parameters))
            metrics = {"loss": resume.losses[-1]} if resume.losses else {}
            return FitResult(dict(resume.parameters), len(data), metrics, resume.steps)
        # Flower's own names and types: scalars alone, which is why class_weight is JSON.
        config = {
            # Before the operator's own keys: an app that drives the fleet sends its own number (`fedgrass.cloud.flower`).
            "server_round": settings.round,
            "epochs": settings.epochs,
            "batch_size": self.manifest.batch_size,
            "learning_rate": settings.learning_rate,
            "proximal_mu": settings.proximal_mu,
            "clip_norm": settings.clip_norm,
            "seed": settings.seed,
            **({"class_weight": json.dumps(settings.class_weight)} if settings.class_weight else {}),
            **settings.config,
        }
        self._config, self._round = config, settings.round
        if self._app is not None:
            self._app.given = dict(settings.config)
            arrays, examples, metrics = self._app.fit(self._arrays(), config, self.node, settings.round)
        else:
            arrays, examples, metrics = self._client_for(data).fit(self._arrays(), config)
        parameters = self._named(arrays)
        # Metrics of the client go no further than this unless they are finite numbers: messages refuse others.
        found = _floats(metrics)
        for name, value in parameters.items():
            if not np.isfinite(value).all():
                raise DivergedError(
                    f"model {self.manifest.name!r}: {name!r} is no longer finite; the base parameters are kept. "
                    "Use a smaller learning_rate or a clip_norm"
                )
        if examples < 1:
            raise DataError(f"model {self.manifest.name!r}: its Flower client trained on {examples} examples")
        # A client that counts its steps knows better.
        steps = int(found.get("steps", settings.epochs * math.ceil(examples / self.manifest.batch_size)))
        if hooks is not None:
            losses = [found["loss"]] if "loss" in found else []
            hooks.after_epoch(FitState(settings.epochs, parameters, losses=losses, steps=steps))
        self.set_parameters(parameters)
        return FitResult(parameters, int(examples), found, steps)

    def evaluate(self, data: Dataset) -> Metrics:
        """Return the client's ``loss``, ``examples``, and its own metrics (``accuracy`` among them, if it gives one)."""
        asked = {"server_round": self.node.round, **self.node.given}
        config = {"batch_size": self.manifest.batch_size, **(self._config or asked)}
        if self._app is not None:
            # A training in this process has set them already; a device that only evaluates has them from its node.
            self._app.given = self._app.given or dict(self.node.given)
            number = self._round if self._config else self.node.round
            loss, examples, metrics = self._app.evaluate(self._arrays(), config, self.node, number)
        else:
            loss, examples, metrics = self._client_for(data).evaluate(self._arrays(), config)
        if examples < 1:
            raise DataError(f"no examples to evaluate model {self.manifest.name!r} on")
        return {**_floats(metrics), "loss": float(loss), "examples": float(examples)}

    def check(self, data: Dataset) -> None:
        """Make the client, and compare its own parameters with the model's, if it tells them: an app has none to tell.

        Raises
        ------
        EngineError
            If it cannot be made, or has another number of parameters.
        BundleError
            If one of them has another shape.
        """
        if self._app is not None:
            return
        with own_code("making the client"):
            client = self._client_for(data)
            try:
                arrays: object = client.get_parameters({}) if hasattr(client, "get_parameters") else []
            except NotImplementedError:
                return
        # Flower's own NumPyClient, unless it is told otherwise, has an empty list.
        if isinstance(arrays, list) and arrays:
            self._named([np.asarray(array) for array in arrays])

    def _app_client(self, builder: str | Client) -> AppClient | None:
        app = app_of(self._client)
        if app is None:
            return None
        module = builder.partition(":")[0] if isinstance(builder, str) else ""
        names = [parameter.name for parameter in self.manifest.parameters]
        return AppClient(app, names, run_config_of(project_of(module)))

    def _client_for(self, data: Dataset) -> Client:
        if not self._makes_clients:
            return self._client
        # Only here: a client that loads its own data never sees these.
        check_dataset(data, self.manifest)
        maker: Callable[[Dataset], Client] = self._client
        client = maker(data)
        missing = [method for method in _METHODS if not callable(getattr(client, method, None))]
        if missing:
            raise EngineError(
                f"builder: gave {type(client).__name__} without {missing[0]}(); expected a Flower NumPyClient"
            )
        return client

    def _arrays(self) -> list[Array]:
        native = self.manifest.native or {}
        return [as_native(value, native.get(name)) for name, value in self._parameters.items()]

    def _named(self, arrays: list[Array]) -> Parameters:
        expected = self.manifest.parameters
        if len(arrays) != len(expected):
            raise EngineError(
                f"model {self.manifest.name!r}: its Flower client gave {len(arrays)} arrays, the model has {len(expected)}"
            )
        # By position: a NumPyClient returns a list, whose order is that of the parameters it was given.
        named_arrays = {p.name: np.asarray(array, p.dtype) for p, array in zip(expected, arrays, strict=True)}
        return check_parameters(named_arrays, self.manifest, name="Flower client")


def _floats(metrics: Any) -> Metrics:
    """Keep what is a finite number: a client's metrics may be strings and bytes too."""
    numbers = {name: float(np.asarray(value).item()) for name, value in metrics.items() if _is_number(value)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _is_number(value: object) -> bool:
    """Tell whether it is a Python or NumPy number, or an array of one."""
    if isinstance(value, (bool, int, float)):
        return True
    array = np.asarray(value) if hasattr(value, "dtype") else np.empty(0)
    return array.size == 1 and array.dtype.kind in "biuf"


engine = FlowerEngine

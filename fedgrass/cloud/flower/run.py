"""A Flower app from its directory to its end, on a fleet."""

from __future__ import annotations

import importlib
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgrass.account import Account
from fedgrass.builder_archive import pack_builder
from fedgrass.cloud.aggregator.manual_release import fleet_clients
from fedgrass.cloud.flower.asked import App
from fedgrass.cloud.flower.drive import drive
from fedgrass.cloud.flower.messages import MessageApp
from fedgrass.cloud.flower.model import AppModels, beginning_of, have_devices_run
from fedgrass.cloud.flower.nodes import FleetGrid, FleetManager
from fedgrass.cloud.flower.results import ResultApp
from fedgrass.cloud.flower.rounds import FleetRounds, Shown, able_devices
from fedgrass.cloud.flower.translated import remembered, translated
from fedgrass.engines.flower_node import Scalar
from fedgrass.engines.flower_project import Project, require_flower
from fedgrass.errors import ConfigurationError, EngineError, FedgrassError
from fedgrass.strategies.arithmetic.flower_trees import identify

_NAMED = (
    "which devices are asked: the fleet draws them, as many as the strategy wants",
    "updates without bounds: the fleet's own checks hold (fedgrass fleet settings, checks)",
)

_TOLD = 3
"""Devices whose reasons are told, where all of them refuse a model."""


@dataclass(frozen=True)
class RanOnFleet:
    """What came of a run."""

    fleet: str
    version: str
    rounds: int
    trained: Mapping[int, Mapping[str, Any]]
    evaluated: Mapping[int, Mapping[str, Any]]
    judged: Mapping[int, Mapping[str, Any]]


def run_on_fleet(
    folder: Path,
    account: Account,
    *,
    run_config: Mapping[str, Scalar] | None = None,
    replace_model: bool = False,
    anew: bool = False,
    said: Callable[[str], None] = lambda _: None,
    shown: Shown = lambda _: None,
) -> RanOnFleet:
    """Run an app: its ServerApp here, each round of its strategy as a round of the fleet, its ClientApp on the devices.

    Parameters
    ----------
    folder
        The app's directory, with its pyproject.toml.
    account
        The fleet's account.
    run_config
        Laid over the app's ``[tool.flwr.app.config]``, here and on the devices.
    replace_model
        Whether a model of the fleet's that is not this app's makes way.
    anew
        Whether to begin again where a run of the same app and configuration is under way or done.
    said
        Told of what happens.
    shown
        Told of the open round as it goes on.

    Returns
    -------
    RanOnFleet
        The figures, and the version of the last model.

    Raises
    ------
    ConfigurationError
        If the directory is no app's, or something in it has no counterpart: before the first round opens.
    RoundRefusedError
        If a round is refused, fails or is cancelled. The same call goes on from there.
    EngineError
        If the ServerApp raises.
    """
    require_flower()
    project = Project.read(folder, run_config or {})
    run = _Run(project, account, dict(run_config or {}), said, shown, replace_model=replace_model, anew=anew)
    flower = importlib.import_module("flwr.app")
    context = flower.Context(
        run_id=1, node_id=1, node_config={}, state=flower.RecordDict(), run_config=dict(project.run_config)
    )
    # Before the app is imported: a module may make its strategy at once.
    with remembered(), _driven_by(run):
        server = project.load(project.server_app, "ServerApp")
        try:
            server(run.grid, context)
        # These say what to do; anything else is the app's own error, and its author needs the traceback.
        except FedgrassError:
            raise
        except Exception as error:
            said("".join(traceback.format_exception(error)))
            raise EngineError(f"server app {project.server_app}: {type(error).__name__}: {error}") from error
    if run.ran is None:
        raise ConfigurationError(
            f"server app {project.server_app}: ended without a strategy's start(); on a fleet only its rounds have a counterpart"
        )
    return run.ran


class _Run:
    def __init__(
        self,
        project: Project,
        account: Account,
        given: Mapping[str, Scalar],
        said: Callable[[str], None],
        shown: Shown,
        *,
        replace_model: bool,
        anew: bool,
    ) -> None:
        self._project = project
        self._account = account
        self._clients = fleet_clients(account)
        self._given = given
        self._replace = replace_model
        self._anew = anew
        self._said = said
        self._shown = shown
        self._fleet: FleetRounds | None = None
        self._refused: set[str] = set()
        identify()  # an app may make messages before it starts a strategy
        self.grid = FleetGrid(self._able, importlib.import_module("flwr.supercore.run").Run.create_empty(1))
        self.manager = FleetManager(self._able)
        self.ran: RanOnFleet | None = None

    def start(self, app: App) -> Any:
        """Do what a strategy's ``start`` does; returns what it returns."""
        # The models of a second one would follow those of the first, and neither run could go on later.
        if self.ran is not None:
            raise ConfigurationError("server app: starts a second strategy; a run on a fleet is one strategy's")
        strategy = translated(app.strategy)
        said = self._said
        said(
            f"Strategy {type(app.strategy).__name__}: aggregated by {strategy.name} {dict(strategy.options) or ''}".rstrip()
        )
        if strategy.needs:
            said(f"The aggregator's image has to have {strategy.needs} (docs/strategies.md); a round fails without.")
        said("No counterpart: " + "; ".join(_NAMED) + ".")
        archive = pack_builder(self._project.folder)
        models = AppModels(self._clients, archive, beginning_of(self._project.name, archive, self._given, app.rounds))
        major = "" if self._anew else models.going_on()
        # First: a device that has the model and not the setting could not train.
        have_devices_run(self._clients, models.beginning.code, self._project.client_app)
        said(
            f"Devices may run the app's code ({models.beginning.code[:12]}…) as {self._project.client_app}, by their deployment."
        )
        if not major:
            with tempfile.TemporaryDirectory(prefix="fedgrass-") as place:
                version = models.begin(app.initial(), Path(place), replace=self._replace)
            said(f"The app's initial model is version {version} of fleet {self._account.fleet!r}, with its code.")
            major = version.partition(".")[0]
        self._fleet = FleetRounds(
            self._account,
            self._clients,
            major,
            strategy.setting,
            given=self._given,
            seconds=app.seconds,
            least=_least(app.strategy),
            shown=self._shown,
        )
        have, there = self._fleet.await_model()
        said(f"{have} of {there} devices have the app's model.")
        if refusals := [] if have else self._fleet.refusals():
            # The fleet may have its former model again by now, which is none of the app's.
            raise ConfigurationError(
                f"no device of fleet {self._account.fleet!r} takes the app's model; {'; '.join(refusals[:_TOLD])}. Mend that, "
                "and run the same command with --anew"
            )
        found = drive(app, self._fleet, said)
        self.ran = RanOnFleet(
            self._account.fleet, self._fleet.version, app.rounds, found.trained, found.evaluated, found.judged
        )
        return app.result(found)

    def _able(self) -> list[str]:
        if self._fleet is None:
            # No model yet: an app may ask for nodes before it starts its strategy.
            return able_devices(self._account)
        # Each once: a strategy asks for nodes again and again.
        for refusal in self._fleet.refusals():
            if refusal not in self._refused:
                self._refused.add(refusal)
                self._said(f"Device does not take the app's model: {refusal}")
        return self._fleet.able()


def _least(strategy: Any) -> int:
    found = [getattr(strategy, name, 1) for name in ("min_available_nodes", "min_available_clients")]
    return max(1, *(int(one) for one in found if isinstance(one, int)))


@contextmanager
def _driven_by(run: _Run) -> Iterator[None]:
    """Have strategies started by ServerApps run on the fleet, in this process."""
    # Each strategy of the newer tree inherits start; a ServerApp without main calls start_grid by this module's name.
    base: Any = importlib.import_module("flwr.serverapp.strategy").Strategy
    module: Any = importlib.import_module("flwr.serverapp.server_app")
    own_start, own_grid = base.start, module.start_grid

    def start(
        strategy: Any,
        grid: Any,
        initial_arrays: Any,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: Any = None,
        evaluate_config: Any = None,
        evaluate_fn: Any = None,
    ) -> Any:
        app = MessageApp(
            strategy, grid, initial_arrays, num_rounds, timeout, train_config or {}, evaluate_config or {}, evaluate_fn
        )
        return run.start(app)

    def start_grid(
        *, grid: Any, server: Any = None, config: Any = None, strategy: Any = None, client_manager: Any = None
    ) -> Any:
        del grid
        for name, one in (("server", server), ("client_manager", client_manager)):
            if one is not None:
                raise ConfigurationError(f"server app: its own {name} has no counterpart on a fleet; leave it out")
        # What Flower takes where no strategy is given.
        made = strategy or importlib.import_module("flwr.server.strategy").FedAvg()
        rounds, seconds = (config.num_rounds, config.round_timeout) if config is not None else (1, None)
        return run.start(ResultApp(made, run.manager, rounds, seconds))

    base.start, module.start_grid = start, start_grid
    try:
        yield
    finally:
        base.start, module.start_grid = own_start, own_grid

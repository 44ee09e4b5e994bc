"""How the fleet's live data stand to its profile, and what their drift has started: one item, and some executions by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from fedgrass.account import Account
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.index import DeviceSnapshot
from fedgrass.errors import ConfigurationError
from fedgrass.protocol import tables
from fedgrass.protocol.drift import STEPS, Drift, Step
from fedgrass.protocol.drift_settings import DriftSettings
from fedgrass.protocol.fleet_state import DriftRecord, FleetState
from fedgrass.rounds_api import execution_named

Stand = Literal["drifted", "not drifted", "not compared"]
_WORDS: Mapping[Step, str] = {"evaluate": "evaluate the model", "statistics": "make a new profile", "fit": "train"}
STANDS: tuple[Stand, ...] = get_args(Stand)


@dataclass(frozen=True)
class Started:
    """A round that a drift has started: ``round`` is None until its execution has told it."""

    step: Step
    at: datetime
    status: str
    round: int | None = None
    outcome: str = ""


@dataclass(frozen=True)
class Drifting:
    """The fleet's drift: what counts, by which profile, and what the last look found."""

    settings: DriftSettings
    profile: int | None
    record: DriftRecord

    @property
    def watched(self) -> bool:
        """Whether devices are asked to compare, and have something to compare with."""
        return self.settings.action != "off" and self.profile is not None

    @property
    def is_drift(self) -> bool:
        """Whether the last look found one."""
        return self.record.in_a_row > 0

    @property
    def words(self) -> Mapping[Step, str]:
        """What each round is for."""
        return _WORDS

    @property
    def again(self) -> float | None:
        """When the next drift may start rounds at the earliest, in epoch milliseconds; None while one is at it."""
        if self.record.begun_at is None or self.record.step is not None:
            return None
        return self.record.begun_at + 3_600_000 * self.settings.cool_down_hours

    def stand(self, drift: Drift | None, *, alive: bool) -> Stand:
        """Say how a device stands, as looks count it: a figure of another profile says nothing, nor does a silent device."""
        if not alive or drift is None or drift.profile != self.profile:
            return "not compared"
        return "drifted" if drift.has_drifted(self.settings) else "not drifted"

    def counts(self, look: DeviceSnapshot) -> dict[Stand, int]:
        """Count the devices of a look by how they stand."""
        found = dict.fromkeys(STANDS, 0)
        for one in look.devices:
            found[self.stand(one.drift, alive=one.alive(look.at_ms))] += 1
        return found


def drifting(context: Context, state: FleetState) -> Drifting:
    """Read how the fleet stands."""
    account = context.account
    record = tables.load_drift(account.rounds_table, account.fleet)
    try:
        settings = tables.load_settings(account.rounds_table, account.fleet).drift
    except ConfigurationError:
        settings = DriftSettings()  # the page of settings says what is wrong with them
    profile = state.profile.round if state.profile else None
    return Drifting(settings, profile, record)


def started(account: Account, record: DriftRecord) -> list[Started]:
    """Find the rounds that the last drift has started, by the names of their executions: a request for each."""
    if record.begun_at is None:
        return []
    found = []
    client = account.step_functions
    for step in STEPS:
        try:
            described = client.describe_execution(executionArn=execution_named(account, record.execution_name(step)))
        except (client.exceptions.ExecutionDoesNotExist, client.exceptions.InvalidArn):
            continue  # not its turn yet, not asked for, or longer ago than Step Functions remembers
        result = _result(described.get("output"))
        found.append(
            Started(
                step,
                described["startDate"],
                str(described["status"]).lower().replace("_", " "),
                result.get("round"),
                str(result.get("outcome", "")),
            )
        )
    return found


def _result(output: str | None) -> dict[str, Any]:
    """Return what an execution's output says of its only round."""
    told = json.loads(output or "{}")
    results = told.get("rounds") if isinstance(told, dict) else None
    return results[0] if isinstance(results, list) and results and isinstance(results[0], dict) else {}

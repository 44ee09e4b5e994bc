"""A fleet's rounds, opened one by one for an app: what is asked, what was answered, and the model as it is then.

What an app's rounds have done stands in the fleet's own records: each has the app's round number in ``fit.config``. So an
interrupted run goes on from there, whoever goes on with it, and from whichever machine.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedgrass.account import Account
from fedgrass.bundle import Parameters
from fedgrass.cloud.aggregator.download import download_bundle
from fedgrass.cloud.aggregator.failed_devices import SERVER_ROUND
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.flower.asked import Answers, Asked, Reported
from fedgrass.cloud.rounds.cohorts import is_wanted
from fedgrass.errors import RoundRefusedError
from fedgrass.failures import in_words, require_begun
from fedgrass.polling import poll
from fedgrass.protocol.members import FleetMember, fleet_members
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.roster import is_silo, may_count
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round, load_settings, load_state, rounds_between
from fedgrass.rounds_api import is_running, start_rounds

# What a device adds to an app's figures of training.
_ADDED = frozenset({"steps"})
# Seconds between two looks at the fleet's tables.
_LOOK_SECONDS = 1.0
_ENDED_BADLY = frozenset({"failed", "cancelled"})

Task = Literal["fit", "evaluate"]
Shown = Callable[[RoundRecord], None]


@dataclass
class FleetRounds:
    """The fleet as an app drives it.

    Parameters
    ----------
    account, clients
        The fleet's account, and what its models are reached through.
    major
        Of the versions of the app's models.
    strategy
        The override of a round's ``strategy``.
    given
        Laid under each round's ``fit.config``: what the user lays over the app's ``run_config``.
    seconds
        How long a round waits for devices; None: as the fleet's settings say.
    least
        Devices without which no round opens.
    shown
        Is told of an open round as it goes on.
    sleep
        Waits so many seconds.
    """

    account: Account
    clients: FleetClients
    major: str
    strategy: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    least: int = 1
    shown: Shown = lambda _: None
    sleep: Callable[[float], None] = time.sleep

    @property
    def settings(self) -> FleetSettings:
        """The fleet's own."""
        return load_settings(self.account.rounds_table, self.account.fleet)

    def done(self, task: Task) -> dict[int, RoundRecord]:
        """Return the records of the app's ended rounds of a task, by the app's number."""
        last = load_state(self.account.rounds_table, self.account.fleet).last
        records = rounds_between(self.account.rounds_table, self.account.fleet, 1, last)
        # The newest record of a number counts: the records come newest first, and the last entry stays.
        return {
            int(record.settings.fit.config[SERVER_ROUND]): record  # type: ignore[arg-type]
            for record in reversed(records)
            if record.settings.task == task
            and SERVER_ROUND in record.settings.fit.config
            and record.base.version.partition(".")[0] == self.major
            and record.outcome is not None
            and record.outcome not in _ENDED_BADLY
        }

    def finish_open(self) -> None:
        """Wait for a round of the app's that an interrupted run has left open."""
        lock = load_state(self.account.rounds_table, self.account.fleet).open
        if lock is None or not is_running(self.account, lock.execution):
            return
        record = load_round(self.account.rounds_table, self.account.fleet, lock.round)
        if SERVER_ROUND in record.settings.fit.config:
            self._wait(lock.execution)

    def run(self, task: Task, number: int, asked: Asked) -> RoundRecord:
        """Open a round and wait for its end; returns its record.

        Parameters
        ----------
        task
            Whether devices train or evaluate.
        number
            The app's number of it.
        asked
            What the strategy asks.

        Raises
        ------
        ConfigurationError
            If the configuration is none that devices can be sent.
        RoundRefusedError
            If it is refused, fails or is cancelled.
        """
        started = start_rounds(self.account, self._overrides(task, number, asked))
        require_begun(self.account, started.execution)
        self._wait(started.execution)
        record = load_round(self.account.rounds_table, self.account.fleet, started.round)
        # An execution may also end without a word in the record, such as one that was stopped.
        ended = self.account.step_functions.describe_execution(executionArn=started.execution)
        if ended["status"] != "SUCCEEDED" or record.outcome in _ENDED_BADLY:
            why = record.reason or in_words(ended.get("cause"))
            raise RoundRefusedError(
                f"round {number} of the app (round {record.round} of fleet {self.account.fleet!r}) ended as "
                f"{record.outcome or ended['status']}: {why}. The same command goes on from there"
            )
        return record

    def answers(self, record: RoundRecord) -> Answers:
        """Return what devices said in a round in time."""
        parts = [
            part
            # A read that may lag could miss the last answer of a round that has just ended.
            for part in participations(self.account.rounds_table, self.account.fleet, record.round, consistent=True)
            if not part.late
        ]
        good = [part for part in parts if part.status in {"uploaded", "evaluated"}]
        bad = [part for part in parts if part.status in {"failed", "declined"}]
        return Answers(
            [Reported(part.thing, part.num_examples, _own(part.metrics)) for part in good],
            [f"{part.thing} {part.status}: {part.reason}" for part in bad],
        )

    @property
    def version(self) -> str:
        """Of the fleet's current model."""
        state = load_state(self.account.rounds_table, self.account.fleet)
        return state.model.version if state.model is not None else ""

    def parameters(self) -> Parameters:
        """Download the fleet's current model."""
        state = load_state(self.account.rounds_table, self.account.fleet)
        if state.model is None:
            raise RoundRefusedError(f"fleet {self.account.fleet!r} has no model any more")
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
            return download_bundle(self.clients.bucket, state.model, Path(folder) / "model").parameters()

    def able(self) -> list[str]:
        """Return the devices that are alive, can train and have one of the app's models."""
        return able_devices(self.account, self.major)

    def await_model(self) -> tuple[int, int]:
        """Wait until the devices that are there have the app's model or refuse it, as long as a roll-out is waited for.

        Returns
        -------
        tuple
            How many have it, and how many are alive and able.
        """
        until = time.monotonic() + self.settings.rollout.wait_seconds
        return poll(
            lambda: (len(self.able()), len(able_devices(self.account))),
            # A device that refuses the model will not get it by waiting.
            lambda found: 0 < found[1] <= found[0] + len(self.refusals()),
            until=lambda: until,
            pause=_LOOK_SECONDS,
            sleep=self.sleep,
        )

    def refusals(self) -> list[str]:
        """Return what devices say that do not take the app's model."""
        members = fleet_members(self.account.devices_table, self.account.fleet)
        return [
            f"{member.thing}: {member.model.reason}"
            for member in members
            if member.model is not None
            and member.model.outcome == "refused"
            and member.model.version.partition(".")[0] == self.major
        ]

    def _overrides(self, task: Task, number: int, asked: Asked) -> dict[str, Any]:
        # A strategy that asks for fewer devices than the fleet's least number of updates could never end a round.
        few = min(self.settings.min_updates, asked.devices)
        everybody = asked.devices >= len(self.able())
        # The strategy has drawn its share already: neither a fraction nor spare devices come on top.
        return {
            "rounds": 1,
            "task": task,
            "fraction": 1.0,
            "cohort": {
                **({"size": 0} if everybody else {"size": asked.devices, "over_ask": 1.0}),
                "by_loss": {"candidates": 1.0},
            },
            "min_updates": few,
            "min_devices": max(few, self.least),
            # The app's number last: by it an interrupted run finds its rounds again, so no configuration may replace
            # it.
            "fit": {"config": {**self.given, **asked.config, SERVER_ROUND: number}},
            **({"strategy": dict(self.strategy)} if task == "fit" else {}),
            **({} if self.seconds is None else {"deadline_seconds": max(1, math.ceil(self.seconds))}),
        }

    def _wait(self, execution: str) -> None:
        # No `poll`: each turn shows the round.
        while is_running(self.account, execution):
            # Until the round is open, and after its end, the lock is nobody's or another round's.
            lock = load_state(self.account.rounds_table, self.account.fleet).open
            if lock is not None and lock.execution == execution:
                self.shown(load_round(self.account.rounds_table, self.account.fleet, lock.round))
            self.sleep(_LOOK_SECONDS)


def _own(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what the app itself reported: a device adds its steps, what it kept back says, and names that all engines have."""
    named = {
        name: value for name, value in metrics.items() if name not in _ADDED and not name.startswith("validation_")
    }
    # All engines report a loss and an accuracy; where the app has them as eval_loss or train_acc, they are there twice.
    for name in ("loss", "accuracy"):
        others = [value for other, value in named.items() if other != name and name[:3] in other]
        if name in named and named[name] in others:
            del named[name]
    return named


def able_devices(account: Account, major: str = "") -> list[str]:
    """Return the devices that are alive and can train.

    Parameters
    ----------
    account
        The fleet's account.
    major
        If given: they also have a model with this major version; silos get theirs with a round.
    """
    settings = load_settings(account.rounds_table, account.fleet)
    members = fleet_members(account.devices_table, account.fleet, consistent=True)
    return [
        member.thing
        for member in members
        if may_count(member.thing, settings.silos)
        and member.alive(time.time() * 1000)
        and is_wanted(member, settings)
        and member.heartbeat is not None
        and member.heartbeat.able
        and (not major or is_silo(member.thing) or _has(member, major))
    ]


def _has(member: FleetMember, major: str) -> bool:
    if member.model is None:
        return False
    # One that was refused is not the device's, though its report is of that version.
    refused = member.model.outcome == "refused"
    version = member.model.active_version or ("" if refused else member.model.version)
    return version.partition(".")[0] == major

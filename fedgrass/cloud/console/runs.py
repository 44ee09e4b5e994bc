"""What a run has come to: how far it is, why it is over, and its rounds without reading all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fedgrass.account import Account
from fedgrass.cloud.console import charts, streams
from fedgrass.cloud.console.context import Context
from fedgrass.failures import in_words
from fedgrass.protocol import tables
from fedgrass.protocol.metrics import is_share, label
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import RunRounds, first_round
from fedgrass.protocol.run_settings import Run, watched
from fedgrass.protocol.runs import metric_of
from fedgrass.rounds_api import run_so_far

_MOST_POINTS = 100  # of a curve: one BatchGetItem, however long the run
_SURE = 8  # the newest rounds are all drawn
_WORDS = {"ABORTED": ("cancelled", "bad"), "FAILED": ("failed", "bad"), "TIMED_OUT": ("failed", "bad")}


@dataclass(frozen=True)
class Progress:
    """How much of something that a run may have is used up."""

    name: str
    value: float
    most: float
    says: str


@dataclass(frozen=True)
class State:
    """Whether a run goes on; if not, how it ended and why."""

    goes_on: bool
    word: str
    kind: str
    why: str = ""


@dataclass(frozen=True)
class RunView:
    """A run as its page shows it: ``last`` is its newest round, ``records`` those that were read, by number."""

    run: Run
    last: RoundRecord
    rounds: RunRounds
    records: dict[int, RoundRecord]
    state: State
    hours: float

    @property
    def metric(self) -> str:
        """Name of the figure that it goes by."""
        return metric_of(self.run, self.last)

    @property
    def is_share(self) -> bool:
        """Whether that is shown in percent."""
        return is_share(self.metric)

    def figure(self, record: RoundRecord) -> float | None:
        """Return a round's value of it."""
        return watched(record, self.metric)[1]

    def is_best(self, record: RoundRecord) -> bool:
        """Whether the next round began with this one's model, and none was better so far."""
        best = self.run.standing.best
        return record.adopted and best is not None and self.figure(record) == best

    @property
    def progress(self) -> list[Progress]:
        """How far it is."""
        standing, settings = self.run.standing, self.last.settings
        most = "at most " if settings.may_end_early else ""
        found = [
            Progress("Rounds", standing.done, settings.rounds, f"{standing.done:,} of {most}{settings.rounds:,}"),
        ]
        if patience := settings.until.patience:
            says = f"{standing.since:,} of {patience:,} in a row no better than the best"
            found.append(Progress("Patience", standing.since, patience, says))
        if hours := settings.until.hours:
            says = f"{self.hours:.3g} of {hours:g} since its first round opened"
            found.append(Progress("Hours", self.hours, hours, says))
        if dollars := settings.until.dollars:
            says = f"about {standing.cost.dollars:.3g} of {dollars:g} by list prices; not AWS's bill"
            found.append(Progress("Dollars", standing.cost.dollars, dollars, says))
        return found

    @property
    def ends(self) -> dict[str, Any]:
        """What ends it, as the settings have it."""
        return self.last.settings.until.model_dump(mode="json", exclude_defaults=True)

    @property
    def schedule(self) -> dict[str, Any]:
        """What changes over its rounds, as the settings have it."""
        return self.last.settings.schedule.model_dump(mode="json", exclude_defaults=True)

    def charts(self) -> list[charts.Chart]:
        """Return the curves of its figure, and of what its schedule changes."""
        drawn = [self.records[number] for number in _spread(self.rounds) if number in self.records]
        marks = {"target": self.last.settings.until.target, "best": self.run.standing.best}
        # A model that no round begins with is none of the run's.
        values = [(record.round, self.figure(record) if record.adopted else None) for record in drawn]
        found = [
            charts.line(label(self.metric), values, percent=self.is_share, marks=marks),
            _changing("Learning rate", [(record.round, record.settings.fit.learning_rate) for record in drawn]),
            _changing("Epochs", [(record.round, float(record.settings.fit.epochs)) for record in drawn]),
            *streams.curves(drawn),
        ]
        return [chart for chart in found if chart is not None]


def view_run(context: Context, record: RoundRecord, rounds: RunRounds, shown: Sequence[int]) -> RunView:
    """Read what a run's page shows: some of its rounds, and as many as its curves have.

    Parameters
    ----------
    context
        The fleet.
    record
        Any of its rounds.
    rounds
        Its rounds.
    shown
        Numbers of those that the page lists.
    """
    account = context.account
    [last] = rounds.at([rounds.count - 1])
    numbers = sorted({last, *shown, *_spread(rounds)})
    found = tables.rounds_numbered(account.rounds_table, account.fleet, numbers)
    records = {one.round: one for one in found if first_round(one) == first_round(record)}
    newest = records.get(last, record)
    run = run_so_far(newest)
    state = state_of(account, newest)
    now = datetime.fromtimestamp(context.now_ms / 1000, timezone.utc)
    end = now if state.goes_on else newest.closed_at or now
    return RunView(run, newest, rounds, records, state, (end - run.started_at).total_seconds() / 3600)


def state_of(account: Account, last: RoundRecord) -> State:
    """Say whether a run goes on, given its newest round; if not, why: in the words of its last execution."""
    described = _described(account, last.execution)
    output = _output(described)
    if following := output.get("next"):
        # It has opened no round yet, or would be the newest round's.
        described = _described(account, str(following))
        output = _output(described)
    status = described.get("status", "")
    if status in {"RUNNING", "PENDING_REDRIVE"}:
        return State(True, "goes on", "plain")
    if status in _WORDS:
        return State(False, *_WORDS[status], in_words(described.get("cause")))
    if ended := output.get("ended"):
        return State(False, "ended", "good", f"No more rounds: {ended}.")
    # Step Functions forgets an execution after 90 days.
    return state_by_record(last)


def state_by_record(last: RoundRecord) -> State:
    """Say how a run that does not go on has ended, as far as its newest round tells."""
    if last.outcome in {"cancelled", "failed"}:
        return State(False, last.outcome, "bad", last.reason)
    if last.ended:
        return State(False, "ended", "good", f"No more rounds: {last.ended}.")
    if run_so_far(last).standing.done >= last.settings.rounds:
        return State(False, "ended", "good", "It has had all its rounds.")
    return State(False, "over", "plain")


def _described(account: Account, execution: str) -> dict[str, Any]:
    client = account.step_functions
    try:
        return dict(client.describe_execution(executionArn=execution))
    except (client.exceptions.ExecutionDoesNotExist, client.exceptions.InvalidArn):
        return {}


def _output(described: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(described.get("output") or "{}")
    return found if isinstance(found, dict) else {}


def _spread(rounds: RunRounds) -> list[int]:
    """Return the numbers of the rounds that curves are drawn of: all, or some at even distances and the newest."""
    count = rounds.count
    if count <= _MOST_POINTS:
        return rounds.at(range(count))
    even = _MOST_POINTS - _SURE
    positions = {round(step * (count - 1) / (even - 1)) for step in range(even)} | {*range(count - _SURE, count)}
    return rounds.at(sorted(positions))


def _changing(title: str, values: list[tuple[int, float | None]]) -> charts.Chart | None:
    return charts.line(title, values) if len({value for _, value in values}) > 1 else None

"""All runs of the fleet, a page at a time, each with a link to its own page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flask import Blueprint, render_template, request

from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.panel import live_panel
from fedgrass.cloud.console.runs import State, state_by_record
from fedgrass.protocol import tables
from fedgrass.protocol.metrics import is_share
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import RunPiece, first_round, newest_runs
from fedgrass.protocol.run_settings import Run
from fedgrass.protocol.runs import metric_of
from fedgrass.rounds_api import run_so_far

_PER_PAGE = 25


@dataclass(frozen=True)
class RunEntry:
    """A run in the list: its newest piece, and the record of its newest round."""

    piece: RunPiece
    last: RoundRecord
    goes_on: bool

    @cached_property
    def run(self) -> Run:
        """What it has come to."""
        return run_so_far(self.last)

    @property
    def state(self) -> State:
        """Whether it goes on; if not, how it ended, as far as its newest round tells."""
        return State(True, "goes on", "plain") if self.goes_on else state_by_record(self.last)

    @property
    def is_alone(self) -> bool:
        """Whether it is one round."""
        return self.last.settings.rounds == 1

    @property
    def metric(self) -> str:
        """Name of the figure that it goes by."""
        return metric_of(self.run, self.last)

    @property
    def is_share(self) -> bool:
        """Whether that is shown in percent."""
        return is_share(self.metric)

    @property
    def kind_of(self) -> str:
        """What its rounds are about."""
        settings = self.last.settings
        return "stream" if settings.is_asynchronous else {"fit": "training"}.get(settings.task, settings.task)

    @property
    def seconds(self) -> float | None:
        """From its first opening to its end; None while it goes on."""
        ended = None if self.goes_on else self.last.closed_at
        return None if ended is None else (ended - self.run.started_at).total_seconds()


def add_list(blueprint: Blueprint, context: Context) -> None:
    """Add the page to those of the runs."""
    account = context.account

    @blueprint.get("/")
    def every() -> str:
        state = tables.load_state(account.rounds_table, account.fleet)
        panel = live_panel(context, state)
        # What is no number is the first page.
        before = request.args.get("before", 0, type=int)
        pieces, following = newest_runs(account.rounds_table, account.fleet, _PER_PAGE, before)
        numbers = [piece.last for piece in pieces]
        found = tables.rounds_numbered(account.rounds_table, account.fleet, numbers) if numbers else []
        records = {record.round: record for record in found}
        going_on = None if panel.left_over else panel.run
        return render_template(
            "runs.html",
            entries=[
                RunEntry(piece, records[piece.last], piece.run == going_on)
                for piece in pieces
                # Removed by hand, or of another run since the fleet began anew.
                if piece.last in records and first_round(records[piece.last]) == piece.run
            ],
            before=before,
            following=following,
        )

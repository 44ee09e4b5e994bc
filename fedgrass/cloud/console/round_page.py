"""The rounds: the open one as it goes, those before it, and each down to its updates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from flask import Blueprint, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from fedgrass.cloud.console import charts, forms
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.notices import attempt, tell
from fedgrass.cloud.console.paging import Page
from fedgrass.cloud.console.starting import start_by_form, start_once
from fedgrass.errors import FedgrassError
from fedgrass.protocol import tables
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.fleet_state import FleetState
from fedgrass.protocol.metrics import label
from fedgrass.protocol.participations import participations_after
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import first_round
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.waiting import waiting_for
from fedgrass.rounds_api import aggregate_now, execution_named, is_running, start_rounds

_PER_PAGE = 25
_CHARTED = 50
_UPDATES_PER_PAGE = 25
# Step Functions' rule for names; it goes into an ARN below.
_EXECUTION = re.compile(r"^[A-Za-z0-9_-]{1,80}$")
_RESET_CONTENT = 205
_NO_CONTENT = 204
PHASES = ("collecting", "aggregating", "rolling_out", "closed")


@dataclass(frozen=True)
class Panel:
    """What is going on: the open round, or the start that is under way, or why the last start came to nothing.

    ``left_over`` says that the round's execution has ended without closing it. ``execution`` is the name of the execution
    that is followed. ``at_hand`` counts the updates that end the collecting: in a stream, those of earlier rounds too.
    ``before`` is the round before, while a run is between two of them.
    """

    record: RoundRecord | None = None
    left_over: bool = False
    execution: str = ""
    starting: bool = False
    failure: str = ""
    phases: tuple[str, ...] = PHASES
    at_hand: int = 0
    before: RoundRecord | None = None

    @property
    def address(self) -> str:
        """Where the panel's next state is asked for."""
        return url_for(
            "rounds.live",
            round=self.record.round if self.record else None,
            execution=self.execution or None,
            before=self.before.round if self.before else None,
        )

    @property
    def run(self) -> int | None:
        """Number of the first round of the run that goes on, to which the open round belongs; None if none does."""
        going_on = self.record or self.before
        return None if going_on is None else first_round(going_on)


def live_panel(context: Context, state: FleetState) -> Panel:
    """Return what is going on, following the execution that the request names, if any."""
    account = context.account
    execution = request.args.get("execution", "")
    if not _EXECUTION.match(execution):
        execution = ""
    if state.open is not None:
        record = tables.load_round(account.rounds_table, account.fleet, state.open.round)
        streams = record.settings.is_asynchronous and record.phase == "collecting"
        at_hand = updates_at_hand(account.rounds_table, record) if streams else record.uploaded
        return Panel(record, not is_running(account, state.open.execution), execution, at_hand=at_hand)
    if state.reserved is not None and is_running(account, state.reserved):
        return Panel(before=tables.load_round(account.rounds_table, account.fleet, state.last), execution=execution)
    if not execution:
        return Panel()
    arn = execution_named(account, execution)
    client = account.step_functions
    try:
        described = client.describe_execution(executionArn=arn)
    except (client.exceptions.ExecutionDoesNotExist, client.exceptions.InvalidArn):
        return Panel()
    if described["status"] == "RUNNING":
        return Panel(execution=execution, starting=True)
    if described["status"] in {"SUCCEEDED", "ABORTED"}:
        return Panel()
    return Panel(failure=str(described.get("cause") or described.get("error") or "no cause was given"))


def pages(context: Context) -> Blueprint:
    """Return the pages."""
    blueprint = Blueprint("rounds", __name__, url_prefix="/rounds")
    _add_views(blueprint, context)
    _add_form(blueprint, context)
    _add_actions(blueprint, context)
    return blueprint


def _add_views(blueprint: Blueprint, context: Context) -> None:
    account = context.account

    @blueprint.get("/")
    def rounds() -> str:
        state = tables.load_state(account.rounds_table, account.fleet)
        page = Page.of(state.last, _PER_PAGE)
        newest = state.last - page.first
        # Enough for the curves; the table shows the newest of them.
        records = tables.rounds_between(account.rounds_table, account.fleet, newest - _CHARTED + 1, newest)
        return render_template(
            "rounds.html",
            panel=live_panel(context, state),
            page=page,
            records=[record for record in records if record.round > newest - _PER_PAGE],
            charts=drawn(records),
            settings=tables.load_settings(account.rounds_table, account.fleet),
        )

    @blueprint.get("/live")
    def live() -> str | tuple[str, int]:
        """Give the panel's next state: 205 has the whole page loaded again, 204 leaves the panel as it is."""
        panel = live_panel(context, tables.load_state(account.rounds_table, account.fleet))
        # The page was drawn for another round or start: the script loads it as a whole.
        shown = request.args.get("round", type=int)
        if (panel.record.round if panel.record else None) != shown or panel.failure:
            return "", _RESET_CONTENT
        if (panel.before.round if panel.before else None) != request.args.get("before", type=int):
            return "", _RESET_CONTENT
        if panel.record is None and panel.before is None and panel.starting != bool(request.args.get("execution")):
            return "", _RESET_CONTENT
        if panel.record is None and not panel.starting:
            return "", _NO_CONTENT
        return render_template("panel.html", panel=panel)

    @blueprint.get("/<int:number>")
    def one(number: int) -> str:
        record = tables.load_round(account.rounds_table, account.fleet, number)
        # Only a round that was aggregated has one: S3 need not be asked for the others.
        report = context.report(record) if record.aggregated_at else None
        after = request.args.get("after", "")
        parts, following = participations_after(account.rounds_table, account.fleet, number, after)
        updates = report.updates if report else ()
        waiting = (
            waiting_for(account.rounds_table, account.devices_table, record) if record.phase == "collecting" else []
        )
        return render_template(
            "round.html",
            record=record,
            report=report,
            parts=parts,
            after=after,
            following=following,
            page=Page.of(len(updates), _UPDATES_PER_PAGE, "updates"),
            quarantined=Counter(entry.reason for entry in report.quarantined).most_common() if report else (),
            refused=Page.of(len(report.quarantined) if report else 0, _UPDATES_PER_PAGE, "refused"),
            waiting=waiting,
            waited=Page.of(len(waiting), _UPDATES_PER_PAGE, "waiting"),
            now_ms=context.now_ms,
            changed=forms.differences(FleetSettings(), record.settings),
            phases=PHASES,
        )


def _add_form(blueprint: Blueprint, context: Context) -> None:
    account = context.account

    @blueprint.route("/new", methods=["GET", "POST"])
    def new() -> str | Response | tuple[str, int]:
        settings = tables.load_settings(account.rounds_table, account.fleet)
        return start_by_form(
            account,
            "new_round.html",
            settings,
            partial(start_rounds, account),
            "rounds.rounds",
        )


def _add_actions(blueprint: Blueprint, context: Context) -> None:
    account = context.account

    @blueprint.post("/start")
    def start() -> Response:
        rounds = request.form.get("rounds", type=int)
        if rounds is None:
            abort(400, "How many rounds? The form has a number for it.")
        try:
            return start_once(account, lambda name: start_rounds(account, {"rounds": rounds}, name), "rounds.rounds")
        except FedgrassError as error:
            tell(str(error), good=False)
            return redirect(url_for("rounds.rounds"), 303)

    @blueprint.post("/aggregate")
    def aggregate() -> Response:
        def go_on() -> str:
            record = aggregate_now(account)
            return f"Round {record.round} goes on with {record.contributed} updates."

        attempt(go_on)
        return redirect(url_for("rounds.rounds"), 303)


_CURVES = ("f1", "auc", "rmse", "r2")


def _reported(records: Sequence[RoundRecord]) -> list[str]:
    """Return the figures that the newest round's devices report: loss and accuracy first, four at most."""
    names = records[-1].reported if records else {}
    return sorted(names, key=lambda name: (not name.endswith(("loss", "accuracy")), name))[:4]


def drawn(records: Sequence[RoundRecord]) -> list[charts.Chart]:
    """Return the curves of some rounds, given the newest first; a figure that they do not have has no curve."""
    oldest_first = list(reversed(records))
    found = [
        charts.line("Accuracy", [(record.round, record.accuracy) for record in oldest_first], percent=True),
        charts.line("Loss", [(record.round, record.loss) for record in oldest_first]),
        *(
            charts.line(label(name), [(record.round, record.metrics.get(name)) for record in oldest_first])
            for name in _CURVES
        ),
        *(
            charts.line(
                f"Devices say: {name.replace('_', ' ')}", [(r.round, r.reported.get(name)) for r in oldest_first]
            )
            for name in _reported(oldest_first)
        ),
        charts.line("Own models: best by device, median", [(r.round, _best(r)) for r in oldest_first]),
        charts.line("Devices whose update was used", _shares(oldest_first), percent=True),
    ]
    return [chart for chart in found if chart is not None]


def _best(record: RoundRecord) -> float | None:
    return record.personal.best.median if record.personal else None


def _shares(records: Sequence[RoundRecord]) -> list[tuple[int, float | None]]:
    return [
        (record.round, None if record.participants is None else record.participants / max(1, record.taking_part))
        for record in records
    ]

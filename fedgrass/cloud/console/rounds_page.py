"""The rounds: the open one as it goes, and those before it."""

from __future__ import annotations

from flask import Blueprint, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from fedgrass.cloud.console import round_page
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.curves import drawn
from fedgrass.cloud.console.notices import attempt, tell
from fedgrass.cloud.console.paging import Page
from fedgrass.cloud.console.panel import live_panel
from fedgrass.cloud.console.starting import add_start, start_once
from fedgrass.errors import FedgrassError
from fedgrass.protocol import tables
from fedgrass.rounds_api import aggregate_now, start_rounds

_PER_PAGE = 25
_CHARTED = 50
_RESET_CONTENT = 205
_NO_CONTENT = 204


def pages(context: Context) -> Blueprint:
    """Return the pages."""
    blueprint = Blueprint("rounds", __name__, url_prefix="/rounds")
    _add_views(blueprint, context)
    round_page.add_view(blueprint, context)
    add_start(blueprint, context.account, "new_round.html")
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

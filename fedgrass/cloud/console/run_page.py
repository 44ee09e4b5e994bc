"""A run: its rounds, how far it is, why it is over; it is begun, ended and resumed here."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from fedgrass.cloud.console import run_list
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.notices import attempt
from fedgrass.cloud.console.paging import Page
from fedgrass.cloud.console.panel import live_panel
from fedgrass.cloud.console.runs import view_run
from fedgrass.cloud.console.starting import add_start, start_by_form
from fedgrass.protocol import tables
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import first_round, run_rounds
from fedgrass.rounds_api import cancel_round, resume_run, resumed_settings

_PER_PAGE = 25
_SETTINGS = ("rounds", "until", "schedule")
_REASON = "cancelled in the web console"


def pages(context: Context) -> Blueprint:
    """Return the pages."""
    blueprint = Blueprint("runs", __name__, url_prefix="/runs")
    run_list.add_list(blueprint, context)
    _add_view(blueprint, context)
    add_start(blueprint, context.account, "new_run.html", only=_SETTINGS)
    _add_resume(blueprint, context)
    _add_end(blueprint, context)
    return blueprint


def _add_view(blueprint: Blueprint, context: Context) -> None:
    account = context.account

    @blueprint.get("/<int:number>")
    def one(number: int) -> str | Response:
        record = tables.load_round(account.rounds_table, account.fleet, number)
        if first_round(record) != number:
            return redirect(url_for("runs.one", number=first_round(record)))
        rounds = run_rounds(account.rounds_table, account.fleet, record)
        page = Page.of(rounds.count, _PER_PAGE)
        newest = rounds.count - 1 - page.first
        shown = rounds.at(range(newest, rounds.count - 1 - page.end, -1))
        view = view_run(context, record, rounds, shown)
        pieces = rounds.pieces[::-1]
        executions = Page.of(len(pieces), _PER_PAGE, "executions")
        return render_template(
            "run.html",
            view=view,
            page=page,
            records=[view.records[number] for number in shown if number in view.records],
            pieces=pieces[executions.first : executions.end],
            executions=executions,
            panel=live_panel(context, tables.load_state(account.rounds_table, account.fleet)),
        )


def _add_resume(blueprint: Blueprint, context: Context) -> None:
    account = context.account

    def last_of(number: int) -> RoundRecord:
        record = tables.load_round(account.rounds_table, account.fleet, number)
        rounds = run_rounds(account.rounds_table, account.fleet, record)
        return tables.load_round(account.rounds_table, account.fleet, *rounds.at([rounds.count - 1]))

    @blueprint.route("/<int:number>/resume", methods=["GET", "POST"])
    def resume(number: int) -> str | Response | tuple[str, int]:
        last = last_of(number)
        return start_by_form(
            account,
            "resume_run.html",
            resumed_settings(account, last),
            lambda changed, name: resume_run(account, changed, last.round, name),
            "runs.one",
            only=_SETTINGS,
            number=first_round(last),
        )


def _add_end(blueprint: Blueprint, context: Context) -> None:
    account = context.account

    @blueprint.post("/<int:number>/end")
    def end(number: int) -> Response:
        record = tables.load_round(account.rounds_table, account.fleet, number)
        reason = request.form.get("reason", "").strip() or _REASON

        def stop() -> str:
            cancelled = cancel_round(account, reason, number)
            run = " and its run" if record.settings.rounds > 1 else ""
            return f"Round {cancelled}{run} is being cancelled; the model stays as it is."

        attempt(stop)
        if record.settings.rounds > 1:
            return redirect(url_for("runs.one", number=number), 303)
        return redirect(url_for("rounds.rounds"), 303)
